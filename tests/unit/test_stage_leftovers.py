"""Claims: what a kill left beside a finished stage goes when the next run finds the stage up to date."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from tasks.monitor import QuietMonitor
from tasks.project import change_params, lay_out
from tasks.stage import CARRIED_OUT, _work_folder, clear_finished, run_stage, stage_params
from vdmini_core.artifacts import read_json
from vdmini_core.errors import VDMiniError
from vdmini_core.params import load_params


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lay_out(tmp_path / "proj")
    change_params(tmp_path / "proj", profile="nano", assignments=("prepare.clips.train=4",))
    return tmp_path / "proj"


def scratch_of(root: Path) -> Path:
    """What a run of `prepare` that was killed before its end leaves."""
    (root / ".vdmini" / "work" / "prepare").mkdir(parents=True, exist_ok=True)
    before = set((root / ".vdmini" / "work" / "prepare").iterdir())
    run_stage("prepare", root, keep_work=True)
    (made,) = set((root / ".vdmini" / "work" / "prepare").iterdir()) - before
    return made


def test_scratch_and_halves_go_and_those_of_other_parameters_stay(root: Path) -> None:
    change_params(root, assignments=("prepare.clips.train=5",))
    other = scratch_of(root)
    change_params(root, assignments=("prepare.clips.train=4",))
    mine = scratch_of(root)
    manifest = read_json(root / "artifacts" / "prepare" / "manifest.json")
    half = root / "artifacts" / ".prepare.999999999-abc.old"
    half.mkdir()
    clear_finished(root, "prepare")
    assert not mine.exists()
    assert not half.exists()
    assert other.is_dir(), "a run with these parameters goes on from it"
    assert read_json(root / "artifacts" / "prepare" / "manifest.json") == manifest
    change_params(root, assignments=("prepare.clips.train=5",))
    clear_finished(root, "prepare")
    assert not other.parent.exists()


def test_a_stage_whose_inputs_are_gone_is_no_error_here(root: Path) -> None:
    clear_finished(root, "teacher")
    with pytest.raises(VDMiniError, match="needs the outputs"):
        run_stage("teacher", root)
    clear_finished(root, "teacher")


def test_parameters_half_written_by_a_killed_process_go_with_the_next_change(root: Path) -> None:
    (root / ".params.999999999.tmp").write_text("prepare:")
    (root / ".params.1.tmp").write_text("of a process that is there")
    change_params(root, assignments=("base.seed=3",))
    assert [path.name for path in root.glob(".params.*")] == [".params.1.tmp"]


def test_what_mlflow_writes_before_it_sends_it_lies_in_the_scratch(root: Path) -> None:
    """A kill in the middle of it then leaves nothing in the temporary folder of the machine."""

    class Page:
        monitor, notes = QuietMonitor(), ()

        def describe(self) -> dict[str, str]:
            return {}

        def finish(self, out: Path, outcome: object) -> None:
            seen.append(Path(tempfile.gettempdir()))

    seen: list[Path] = []
    before = tempfile.gettempdir()
    run_stage("prepare", root, lambda *_: nullcontext(Page()))
    assert [path.parent for path in seen] == [root / ".vdmini" / "work" / "prepare"]
    assert tempfile.gettempdir() == before


def test_how_a_recovery_is_carried_out_does_not_decide_where_it_goes_on(root: Path) -> None:
    params = load_params(root / "params.yaml")

    def scratch(**changes: object) -> Path:
        sections = stage_params(params, "distill")
        sections["distill"] |= changes
        return _work_folder(root, "distill", {}, sections)

    mine = scratch()
    others = {"workers": 1, "max_failures": 9, "checkpoint_every": 3, "activation_checkpointing": True}
    assert scratch(**others) == mine
    made_by: dict[str, object]
    for made_by in ({"steps": 7}, {"learning_rate": 1e-5}, {"batch_size": 8}, {"parallel": "fsdp2"}):
        assert scratch(**made_by) != mine, made_by
    assert set(CARRIED_OUT["distill"]) <= set(stage_params(params, "distill")["distill"])
