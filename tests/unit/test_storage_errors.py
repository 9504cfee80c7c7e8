"""Claims: a full or closed disk is told as such, whoever met it; anything else is not taken for one."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import typer

from flows.compress import worth_retrying
from tasks import recovery_progress
from tasks.recovery_progress import train_watched
from vdmini_core.cli import run_app
from vdmini_core.errors import TrainingError, VDMiniError
from vdmini_core.storage_errors import storage_error

OTHERS = RuntimeError("permission denied for table runs")  # of a database


def raised_from(cause: BaseException) -> Exception:
    try:
        try:
            raise cause
        finally:
            raise RuntimeError("the stage failed")
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (raised_from(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "artifacts"), "a file or folder is closed"),
        (OSError(errno.EROFS, "Read-only file system"), "a file or folder is closed"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "a file or folder is closed"),
    ],
)
def test_it_is_said_as_such(error: Exception, problem: str) -> None:
    told = storage_error(error)
    assert told is not None
    assert told.problem.startswith(problem)
    assert told.fix


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("disk"), KeyError(28), OTHERS]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert storage_error(error) is None


def test_the_command_line_says_it_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "artifacts/prepare")

    argv = pytest.MonkeyPatch()
    argv.setattr("sys.argv", ["vdmini"])
    try:
        assert run_app(app) == 1
    finally:
        argv.undo()
    said = capsys.readouterr().err
    assert said.startswith("error: the disk is full")
    assert "artifacts/prepare" in said
    assert "Traceback" not in said


def test_a_full_disk_is_not_tried_again() -> None:
    class Failed:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self) -> None:
            raise self.error

    assert not worth_retrying(None, None, Failed(OSError(errno.ENOSPC, "No space left on device")))
    assert worth_retrying(None, None, Failed(ConnectionError("reset")))


def test_a_full_disk_of_a_recoverys_worker_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        raise RuntimeError(text)

    job: Any = None
    monkeypatch.setattr(recovery_progress, "_progress", lambda _: nullcontext(lambda: None))
    with pytest.raises(VDMiniError, match="the disk is full"):
        train_watched(job, partial(fail, "worker 0:\nI/O error: No space left on device (os error 28)"))
    with pytest.raises(TrainingError, match="the recovery's workers failed"):
        train_watched(job, partial(fail, "killed"))
    with pytest.raises(TrainingError, match=r"ran out of memory[\s\S]*--dry-run"):
        train_watched(job, partial(fail, "CUDA out of memory. Tried to allocate 20 GiB"))
