"""Claims: what a kill left beside a finished stage goes when the next run finds the stage up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.project import change_params, lay_out
from tasks.stage import clear_finished, run_stage
from vdmini_core.artifacts import read_json
from vdmini_core.errors import VDMiniError


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
