"""Claims: the project's own MLflow store is there whole or not at all, and is made once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from mlflow.tracking import MlflowClient

from tasks.tracking import connect
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
    make_store(path)
    assert path.stat().st_ino == made
    assert {e.name for e in MlflowClient(f"sqlite:///{path}").search_experiments()} == {"Default", "mine"}
