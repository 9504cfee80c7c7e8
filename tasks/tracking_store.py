"""The project's own MLflow store, a SQLite file: there with all its tables or not at all.

MLflow makes it in place, by dozens of migrations that take seconds and cannot be taken up again: one that a
kill or a full disk ended halfway refuses every later run.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import psutil


def make_store(path: Path) -> None:
    """Make the store beside `path` and put it there in one step; one that is there stays."""
    _sweep(path)
    if path.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # heavy, and a server needs none

    # A name of its own each time: MLflow keeps connections by it, also to a file that is gone.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        SqlAlchemyStore(f"sqlite:///{temporary}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        _put(temporary, path)
    finally:
        for left in path.parent.glob(f"{temporary.name}*"):
            left.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left, with SQLite's journals; the store may be in place already."""
    for old in path.parent.glob(f".{path.name}.*.tmp*"):
        if not psutil.pid_exists(int(old.name.removeprefix(f".{path.name}.").split(".")[0])):
            old.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """A link, unlike a rename, leaves alone what another process has put there meanwhile."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            temporary.rename(path)
