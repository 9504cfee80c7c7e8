"""Every process of one attempt, and its death at one moment, as when a machine loses its power.

Standard library alone: the hook inside the killed processes uses it, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

MARK = "VDMINI_CHAOS"


def tree(mark: str) -> set[int]:
    """Processes whose environment carries the mark, and all below them, zombies apart.

    Children that made sessions of their own are found by the mark; those that wrote over their environment
    (a process that sets its title does) by their parents.
    """
    parents: dict[int, int] = {}
    found: set[int] = set()
    word = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(entry.name)] = int(parent)
            if word in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        found |= below
        grown = bool(below)
    return found


def kill_tree(mark: str) -> int:
    """SIGKILL to all of them; stopped first, so that none sees another one die. The caller's own comes last.

    Returns:
        How many there were.
    """
    frozen: set[int] = set()
    while new := tree(mark) - frozen - {os.getpid()}:
        for pid in new:
            _send(pid, signal.SIGSTOP)
        frozen |= new
    for pid in frozen:
        _send(pid, signal.SIGKILL)
    if os.getpid() in tree(mark):
        os.kill(os.getpid(), signal.SIGKILL)
    return len(frozen)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
