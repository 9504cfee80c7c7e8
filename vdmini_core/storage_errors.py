"""A disk that is full or closed to this user: said as such, whichever library ran into it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vdmini_core.errors import VDMiniError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES}
# SQLite, safetensors and the workers of Ray pass on words alone.
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "database or disk is full")
_CLOSED_WORDS = (
    *("read-only file system", "readonly database"),
    *("[errno 13] permission denied", "permission denied (os error 13)"),  # without: a database's own refusal
)


def storage_error(error: BaseException) -> VDMiniError | None:
    """The plain error where a full or closed disk is at the bottom of another one; None where it is not."""
    for one in _with_causes(error):
        number = one.errno if isinstance(one, OSError) else None
        if number in _FULL or any(words in str(one).lower() for words in _FULL_WORDS):
            return VDMiniError(
                "the disk is full",
                expected="room for what a stage writes",
                found=_line(one),
                fix="make room, then run the same command again: it goes on where it stopped",
            )
        if number in _CLOSED or any(words in str(one).lower() for words in _CLOSED_WORDS):
            return VDMiniError(
                "a file or folder is closed to this user",
                expected="permission to read what a stage reads and to write what it writes",
                found=_line(one),
                fix="give it, or choose another folder, then run the same command again",
            )
    return None


def _line(error: BaseException) -> str:
    """The line that tells it, or the first: SQLAlchemy begins with what it was at."""
    lines = str(error).strip().split("\n")
    words = (*_FULL_WORDS, *_CLOSED_WORDS)
    return next((line for line in lines if any(word in line.lower() for word in words)), lines[0])


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
