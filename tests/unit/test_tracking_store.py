"""Claims: the project's own MLflow store is there whole or not at all, and is made once."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from alembic import command
from mlflow.tracking import MlflowClient

from tasks.tracking import connect, store_of_the_process, tracking_uri
from tasks.tracking_store import make_store


def test_a_store_that_was_not_finished_is_not_there_and_the_next_try_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the midst of the migrations; before that a process was killed there."""
    (tmp_path / ".mlflow.db.999999999.tmp").write_text("half")
    (tmp_path / ".mlflow.db.999999999.tmp-journal").write_text("half")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", full)
        with pytest.raises(OSError, match="No space"):
            connect(tmp_path)
    assert not [path for path in tmp_path.iterdir() if "mlflow" in path.name]
    assert connect(tmp_path).search_experiments()
    assert [path.name for path in tmp_path.iterdir() if "mlflow" in path.name] == ["mlflow.db"]


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    make_store(path)
    MlflowClient(f"sqlite:///{path}").create_experiment("mine")
    made = path.stat().st_ino
    left = (
        tmp_path / ".mlflow.db.999999999.0a.tmp"
    )  # of one that was killed when the store stood in its place
    left.write_text("whole")
    make_store(path)
    assert not left.exists()
    assert path.stat().st_ino == made
    assert {e.name for e in MlflowClient(f"sqlite:///{path}").search_experiments()} == {"Default", "mine"}


def test_a_server_that_is_silent_is_waited_for_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.tracking.getproxies", dict)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    connect(tmp_path)
    said = capsys.readouterr().err
    assert "MLflow at 127.0.0.1:9 does not answer" in said and "secret" not in said
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        connect(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("before", [None, "sqlite:///another.db"])
def test_one_projects_store_does_not_become_that_of_the_next(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow keeps what it was set to in the environment, where the next project's store is looked for."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)  # as in a process in which nobody has set it
    if before:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    expected, usual = tracking_uri(tmp_path / "one"), mlflow.get_tracking_uri()
    with pytest.raises(KeyError), store_of_the_process(tmp_path / "one"):
        assert mlflow.get_tracking_uri() == expected
        raise KeyError
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert mlflow.get_tracking_uri() == usual
    assert tracking_uri(tmp_path / "two") == (before or f"sqlite:///{tmp_path / 'two' / 'mlflow.db'}")
