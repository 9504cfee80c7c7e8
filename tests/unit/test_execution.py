"""A flow beside `dvc repro`: it waits, and holds nothing that the other one waits for."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows import execution
from flows.execution import Execution
from tasks.project import change_params, lay_out
from tasks.versioning import ProjectBusy, init_repository
from vdmini_core.errors import VDMiniError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    lay_out(tmp_path)
    init_repository(tmp_path)
    change_params(tmp_path, profile="nano")
    return tmp_path


def test_it_waits_for_dvc_and_gives_its_own_lock_back_meanwhile(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def busy_twice(_: Execution, name: str) -> bool:
        asked.append(name)
        if len(asked) < 3:
            raise ProjectBusy("cannot check `plan`: another DVC process holds this project")
        return True

    def look(seconds: float) -> None:
        with (project / ".vdmini" / "stage.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the flow kept it

    monkeypatch.setattr(Execution, "_current", busy_twice)
    monkeypatch.setattr(execution.time, "sleep", look)
    report = Execution(project).stage("plan")
    assert report.fate == "up to date" and asked == ["plan"] * 3
    assert capsys.readouterr().err.count("holds this project: waiting for it") == 1


def test_it_does_not_wait_for_ever(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Execution, name: str) -> bool:
        raise ProjectBusy("held", fix="wait until it ends, then run again")

    monkeypatch.setattr(Execution, "_current", busy)
    monkeypatch.setattr(execution, "BUSY_S", -1.0)
    with pytest.raises(VDMiniError, match="then run again"):
        Execution(project).stage("plan")


def test_dvc_is_kept_from_the_files_of_a_stage_that_runs(project: Path) -> None:
    """It would remove the outputs; and the entry goes with the work."""
    versions = Execution(project).versions
    with versions.holding("plan"):
        repro = [sys.executable, "-m", "dvc", "repro", "--single-item", "plan"]
        done = subprocess.run(repro, cwd=project, capture_output=True, text=True)
        assert done.returncode != 0 and "is busy, it is being blocked by" in done.stderr, done.stderr
    assert json.loads((project / ".dvc" / "tmp" / "rwlock").read_text()) == {}
