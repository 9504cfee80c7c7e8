"""What changes where a run is not alone on one machine: whose GPUs count, and where a deployment works."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.profile_workspace import profile_workspace
from tasks.distill import _gpu_share
from tasks.project import change_params, lay_out
from tasks.recovery_cost import workers_per_device
from vdmini_core.errors import VDMiniError
from vdmini_core.params import load_params


def test_on_a_cluster_a_worker_has_a_whole_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 workers driven from a node that sees one GPU would else get a sixteenth each, over gloo."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _gpu_share(16) == 1 / 16 and workers_per_device("cuda", 16) == 16
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert _gpu_share(16) == 1 and workers_per_device("cuda", 16) == 1
    assert workers_per_device("cuda", 16, devices=8) == 2  # said by the caller
    assert workers_per_device("cpu", 16) == 16


def test_a_deployment_runs_its_profile_in_a_workspace_of_its_own(tmp_path: Path) -> None:
    lay_out(tmp_path / "proj")
    before = (tmp_path / "proj" / "params.yaml").read_text()
    folder = profile_workspace(tmp_path / "proj", "nano", ["distill.steps=3"])
    assert folder == tmp_path / "proj" / "workspaces" / "nano" and (folder / ".dvc").is_dir()
    params = load_params(folder / "params.yaml")
    assert (params.register_.name, params.distill.steps) == ("vdmini-nano", 3)
    change_params(folder, assignments=("distill.steps=5",))  # by hand, in between
    profile_workspace(tmp_path / "proj", "nano", ["distill.steps=3"])
    assert load_params(folder / "params.yaml") == params
    assert (tmp_path / "proj" / "params.yaml").read_text() == before
    with pytest.raises(VDMiniError):
        profile_workspace(tmp_path / "proj", "nono")
