"""What a killed DVC process may leave half written, put right before DVC is asked anything.

DVC writes two files in place: `dvc.lock`, and `.dvc/tmp/rwlock`, its list of who is at work on which path.
A kill in between leaves them empty or cut off, and DVC then refuses to do anything until a person removes
them. Nothing is lost with either: what was made stands in DVC's run cache, and a list of processes that are
gone is worth nothing. Copies that DVC had begun stay beside their targets, and nothing of DVC removes them.
A folder of its run cache that a kill left empty ends every later run of that stage.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo

CLOCK_SLACK_S = 2.0  # the start of a process is derived from the boot time, which clock updates shift
COPYING_S = 600.0  # a copy in a cache that nothing was added to for so long: workspaces share the cache
FILLING_S = 3.0  # DVC makes a folder of its run cache, then the file in it; an empty one is an error to it
_COPY = re.compile(r"(?:[0-9a-f]{32,64})?\.[\w-]{22}\.tmp")  # how DVC names one, some by their target too
_CONFLICT = "<<<<<<< "  # of git: not a kill's doing, and for a person to decide


def mend(repo: Repo) -> list[str]:
    """Remove what a kill has cut off; what was done, a line each. Finished files are never touched."""
    done = []
    lock_file, artifacts = Path(repo.root_dir) / "dvc.lock", Path(repo.root_dir) / "artifacts"
    if _is_torn(repo, lock_file) or any(_copies(artifacts, "**/.*.tmp")):
        # Whoever writes one of them holds this lock. Where it cannot be had, somebody is at work: no kill.
        with suppress(LockError), repo.lock:
            if _is_torn(repo, lock_file):
                lock_file.unlink()
                done.append("dvc.lock was cut off by a kill: it is made anew from DVC's run cache")
            for path in list(_copies(artifacts, "**/.*.tmp")):
                path.unlink(missing_ok=True)
    if _entries_to_drop(Path(repo.tmp_dir) / "rwlock") is not None:
        with suppress(LockError):
            done += _mend_list(Path(repo.tmp_dir))
    cache = Path(repo.cache.local.path).parents[1]
    for path in (*_copies(cache / "files" / "md5", "*/*.tmp"), *_copies(cache, "runs/*/*/*.tmp")):
        if time.time() - path.stat().st_mtime > COPYING_S:
            path.unlink(missing_ok=True)
    for folder in cache.glob("runs/??/*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > FILLING_S:
            with suppress(OSError):
                folder.rmdir()  # goes where it is empty
                done.append("a folder of DVC's run cache was left empty by a kill: removed")
    return done


def _copies(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if _COPY.fullmatch(path.name) and path.is_file())


def _is_torn(repo: Repo, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        text = path.read_text(encoding="utf-8", errors="replace")
        return not any(line.startswith(_CONFLICT) for line in text.splitlines())
    return False


def _mend_list(folder: Path) -> list[str]:
    path = folder / "rwlock"
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        wrong = _entries_to_drop(path)
        if wrong is None:  # somebody was writing it
            return []
        if not wrong:
            path.unlink()
            return ["DVC's list of processes at work was cut off by a kill: removed"]
        listed = json.loads(path.read_text(encoding="utf-8"))
        kept = {
            "read": {
                p: left for p, every in listed.get("read", {}).items() if (left := _without(every, wrong))
            },
            "write": {p: info for p, info in listed.get("write", {}).items() if info["pid"] not in wrong},
        }
        path.write_text(json.dumps(kept), encoding="utf-8")
    return ["DVC's list of processes at work named some that are gone: removed"]


def _entries_to_drop(path: Path) -> set[int] | None:
    """Process numbers of the list that nobody has, or somebody else; empty: unreadable; None: all is well.

    A process that started after the list was last written has inherited its number: in a container the same
    few come again after every start, and DVC waits for whoever has one.
    """
    if not path.is_file():
        return None
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        infos: list[dict[str, Any]] = [*listed.get("write", {}).values()]
        infos += [info for every in listed.get("read", {}).values() for info in every]
        numbers = {int(info["pid"]) for info in infos}
        written = path.stat().st_mtime
    except (ValueError, AttributeError, KeyError, TypeError):
        return set()
    return {number for number in numbers if not _was_there(number, written)} or None


def _was_there(number: int, moment: float) -> bool:
    try:
        return psutil.Process(number).create_time() < moment + CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False


def _without(infos: list[dict[str, Any]], wrong: set[int]) -> list[dict[str, Any]]:
    return [info for info in infos if int(info["pid"]) not in wrong]
