"""Claim: a cluster's GPUs are not left idle because the driver has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from tasks.distill import _demand_the_clusters_device
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from vdmini_core.errors import TrainingError
from vdmini_core.params import Params


@pytest.mark.parametrize(
    ("device", "address", "gpus", "refused"),
    [
        ("auto", "head:6379", 8, True),
        ("cpu", "head:6379", 8, False),  # asked for
        ("auto", "head:6379", 0, False),
        ("auto", None, 8, False),  # a session of this machine's own
    ],
)
def test_auto_without_a_gpu_here_on_a_cluster_that_has_some(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    address: str | None,
    gpus: int,
    refused: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        ray, "cluster_resources", lambda: {"CPU": 64.0, **({"GPU": float(gpus)} if gpus else {})}
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    params = Params.model_validate({"base": {"device": device}})
    job = StageJob(tmp_path, params, tmp_path, tmp_path, QuietMonitor())
    if not refused:
        _demand_the_clusters_device(job)
        return
    with pytest.raises(TrainingError, match=r"no GPU here, 8 in the cluster[\s\S]*base\.device"):
        _demand_the_clusters_device(job)
