"""What this process has asked the C library for and not given back: a leak adds to it, and nothing else."""

from __future__ import annotations

import ctypes
from contextlib import suppress


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc (malloc.h, since 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def memory_in_use() -> float | None:
    """MiB handed out by malloc in all arenas, large blocks of their own among them; None without glibc 2.33.

    Resident memory says less: glibc keeps pages between pieces that live on, and how many depends on the
    order in which they came and went.
    """
    with suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _MallInfo
        found = mallinfo2()
        return float((found.uordblks + found.hblkhd) / 2**20)
    return None
