"""Every file below a folder, once: candidates to decode, and what is set aside before that with a reason."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})


@dataclass(frozen=True)
class Found:
    """A file of the tree.

    Attributes:
        path: where it is.
        name: relative to the root, with `/`; bytes that are no UTF-8 are escaped.
        status: candidate, quarantined or skipped; `reason` says why for the latter two.
        size, modified_ns: identify its content for resumption.
    """

    path: Path
    name: str
    status: str
    reason: str = ""
    size: int = 0
    modified_ns: int = 0


def discover(root: Path) -> list[Found]:
    """All files below `root`, sorted by name; links to folders are followed, loops are not.

    Raises:
        DataError: when `root` is no folder or holds no file of a video kind.
    """
    if not root.is_dir():
        raise DataError(
            "the folder of videos is not there",
            expected="a folder with " + ", ".join(sorted(VIDEO_SUFFIXES)),
            found=f"{root} is {'a file' if root.exists() else 'missing'}",
            fix="set prepare.videos, or use --videos DIR",
        )
    found = _without_duplicates(every_file(root))
    if all(item.status == "skipped" for item in found):
        raise DataError(
            "there are no videos in this folder",
            expected="files with " + ", ".join(sorted(VIDEO_SUFFIXES)),
            found=f"{len(found)} other files in {root}",
            fix="set prepare.videos, or use --videos DIR",
        )
    return found


def every_file(root: Path) -> list[Found]:
    """All files below an existing folder, sorted by name, copies among them; no two have one name."""
    root = root.absolute()  # decoders take what stands before a colon in a relative path for a protocol
    return sorted(_told_apart(_walk(root)), key=lambda f: f.name)


def _told_apart(found: Iterable[Found]) -> Iterator[Found]:
    """Number what escapes would confuse: a byte that is no UTF-8, and a name that spells its escape."""
    seen: set[str] = set()
    for item in found:
        names = chain([item.name], (f"{item.name} ({number})" for number in count(2)))
        name = next(name for name in names if name not in seen)
        seen.add(name)
        yield replace(item, name=name)


def _walk(root: Path) -> Iterator[Found]:
    """Depth first and without recursion: folders may lie deeper than Python calls functions."""
    visited: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        inner: list[Path] = []
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in visited:
                yield Found(
                    folder, _name(root, folder), "quarantined", "a link to a folder that was already read"
                )
                continue
            visited.add((facts.st_dev, facts.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            yield Found(
                folder, _name(root, folder), "quarantined", f"the folder cannot be read ({error.strerror})"
            )
            continue
        for entry in entries:
            path = Path(entry.path)
            if _is_folder(entry):
                inner.append(path)
            else:
                yield _look_at(path, _name(root, path))
        waiting += reversed(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _look_at(path: Path, name: str) -> Found:
    if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("._"):
        return Found(path, name, "skipped", f"not a video ({path.suffix.lower() or 'no suffix'})")
    try:
        facts = path.stat()
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ELOOP)  # another look may be refused as well
        reason = "a link that leads nowhere" if nowhere else f"cannot be read ({error.strerror})"
        return Found(path, name, "quarantined", reason)
    if not stat.S_ISREG(facts.st_mode):
        return Found(path, name, "quarantined", "not a regular file (a pipe, socket or device)")
    if not facts.st_size:
        return Found(path, name, "quarantined", "empty (0 bytes)")
    if not os.access(path, os.R_OK):
        return Found(path, name, "quarantined", "no permission to read it")
    return Found(path, name, "candidate", "", facts.st_size, facts.st_mtime_ns)


def _name(root: Path, path: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def _without_duplicates(found: list[Found]) -> list[Found]:
    """Set aside files with the bytes of an earlier one: a copy would leak from one split into another."""
    by_size: dict[int, list[Found]] = defaultdict(list)
    for item in found:
        if item.status == "candidate":
            by_size[item.size].append(item)
    copies: dict[str, str] = {}
    for group in by_size.values():
        first: dict[str, str] = {}
        for item in group if len(group) > 1 else ():
            original = first.setdefault(_digest(item.path), item.name)
            if original != item.name:
                copies[item.name] = original
    return [
        replace(item, status="quarantined", reason=f"the same bytes as {copies[item.name]}")
        if item.name in copies
        else item
        for item in found
    ]


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return str(path)
