"""Exact moments in a process of the pipeline: it counts them, or dies with all others at one of them.

A moment is an event (a rename, a file opened for writing, a commit of SQLite, a request to MLflow or S3, ...)
at a place (which kind of file, which request), the n-th of its kind within a stage of one process. Nothing of
the pipeline knows of this; standard library alone, for it is loaded before everything.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chaos_tree

STAGE = "VDMINI_CHAOS_STAGE"  # which one is at work, also for the processes below
POINT = "VDMINI_CHAOS_POINT"  # JSON: stage, event, place, nth, when ("before", "after"); none: count only
NOTES = "VDMINI_CHAOS_NOTES"  # folder for what was seen
ROOT = "VDMINI_CHAOS_ROOT"  # the project: files elsewhere are no concern of ours

REQUESTS = (
    *("create_run", "log_batch", "log_artifact", "log_artifacts", "set_terminated", "create_logged_model"),
    *("finalize_logged_model", "create_registered_model", "create_model_version", "set_model_version_tag"),
    *("set_registered_model_alias", "set_registered_model_tag", "delete_registered_model_tag"),
)
_counts: Counter[tuple[str, str, str]] = Counter()
_lock = threading.Lock()
_inside = threading.local()


def install() -> None:
    """Wrap what leaves traces on disk."""
    for name in ("rename", "replace", "link", "symlink", "mkdir", "rmdir", "unlink", "remove"):
        event = "rename" if name == "replace" else "unlink" if name == "remove" else name
        setattr(os, name, _wrapped(getattr(os, name), event, -1 if event in ("rename", "link") else 0))
    _wrap_open()
    sys.meta_path.insert(0, _AfterImport())


def at(event: str, place: str, when: str) -> None:
    """Called before and after each event: counts it, and dies if it is the one."""
    if getattr(_inside, "busy", False):
        return
    _inside.busy = True
    try:
        stage = os.environ.get(STAGE, "start")
        with _lock:
            if when == "before":
                _counts[stage, event, place] += 1
            nth = _counts[stage, event, place]
        told = os.environ.get(POINT)
        if told is None:
            if when == "before":
                _note("seen", {"stage": stage, "event": event, "place": place})
            return
        wanted = json.loads(told)
        here = {"stage": stage, "event": event, "place": place, "nth": nth, "when": when}
        if all(here[key] == wanted[key] for key in here):
            _note("hit", here)
            chaos_tree.kill_tree(os.environ[chaos_tree.MARK])
    finally:
        _inside.busy = False


def place_of(path: Any, folder: int | None = None) -> str | None:
    """The kind of a file, without numbers and digests: the same in every run. None: not the project's.

    `folder`: descriptor of the folder that `path` is below.
    """
    try:
        base = Path.cwd() if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
        full = base / os.fsdecode(path)
    except (TypeError, OSError):  # a file descriptor; a folder that is gone
        return None
    root = Path(os.environ[ROOT])
    if not full.is_relative_to(root) or full == root:
        return None
    parts = list(full.relative_to(root).parts)
    if parts[:2] == [".dvc", "cache"]:
        parts = parts[:3]
    elif parts[0] == "mlruns":
        parts = ["mlruns", "models"] if "models" in parts else ["mlruns", parts[-1]]
    elif parts[:3] == [".vdmini", "work", "register"]:  # copies of the model and of its code
        parts = parts[:3]
    plain = [re.sub(r"^\.[\w-]{16,}\.tmp$|[0-9a-f]{6,}|\d+|tmp\w{8}", "#", part) for part in parts]
    return "/".join(
        plain[:4] if plain[0] == "artifacts" else plain[:2] + plain[-1:] if len(plain) > 3 else plain
    )


def _note(kind: str, data: dict[str, Any]) -> None:
    line = json.dumps({"pid": os.getpid(), **data}) + "\n"
    handle = os.open(Path(os.environ[NOTES]) / f"{kind}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


def _wrapped(call: Callable[..., Any], event: str, which: int) -> Callable[..., Any]:
    """Of a function of `os`; the file at stake is its last or first path."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        paths = arguments[:2] if which == -1 else arguments[:1]
        busy = getattr(_inside, "busy", False)
        place = place_of(paths[which], options.get("dir_fd")) if paths and not busy else None
        if place is None:
            return call(*arguments, **options)
        at(event, place, "before")
        result = call(*arguments, **options)
        at(event, place, "after")
        return result

    return wrapper


def _wrap_open() -> None:
    import io

    plain = io.open

    def wrapper(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        writes = set(mode) & set("wax+")
        place = place_of(file) if writes and not getattr(_inside, "busy", False) else None
        if place is None:
            return plain(file, mode, *arguments, **options)
        at("open", place, "before")
        result = plain(file, mode, *arguments, **options)
        at("open", place, "after")  # made or emptied, nothing written yet
        return result

    io.open = builtins.open = wrapper


class _AfterImport(importlib.abc.MetaPathFinder):
    """Wraps what is at stake in other packages as they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module's own spec, with a loader that wraps afterwards."""
        patch = _PATCHES.get(name)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _in_stage(call: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        os.environ[STAGE] = name_of(*arguments)
        try:
            return call(*arguments, **options)
        finally:
            os.environ[STAGE] = "end"

    return wrapper


def _execution(module: Any) -> None:
    module.Execution.stage = _in_stage(module.Execution.stage, lambda self, name: name)


def _reproduction(module: Any) -> None:
    module._reproduce_stage = _in_stage(module._reproduce_stage, lambda stage, **options: stage.name)
    # its default for `repro_fn` was bound before
    module._reproduce.__defaults__ = tuple(
        module._reproduce_stage if getattr(value, "__name__", "") == "_reproduce_stage" else value
        for value in module._reproduce.__defaults__
    )


def _sql(module: Any) -> None:
    plain = module.DefaultDialect.do_commit

    def do_commit(self: Any, connection: Any) -> None:
        at("commit", "database", "before")
        plain(self, connection)
        at("commit", "database", "after")

    module.DefaultDialect.do_commit = do_commit


def _requests(module: Any) -> None:
    for name in REQUESTS:
        if hasattr(module.MlflowClient, name):
            setattr(module.MlflowClient, name, _request(getattr(module.MlflowClient, name), name))


def _request(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        at("mlflow", name, "before")
        result = call(*arguments, **options)
        at("mlflow", name, "after")
        return result

    return wrapper


def _s3(module: Any) -> None:
    plain = module.BaseClient._make_api_call

    def call(self: Any, operation: str, given: Any) -> Any:
        at("s3", operation, "before")
        result = plain(self, operation, given)
        at("s3", operation, "after")
        return result

    module.BaseClient._make_api_call = call


_PATCHES: dict[str, Callable[[Any], None]] = {
    "flows.execution": _execution,
    "dvc.repo.reproduce": _reproduction,
    "sqlalchemy.engine.default": _sql,
    "mlflow.tracking.client": _requests,
    "botocore.client": _s3,
}
