"""What this process holds of the C library's memory, and how it comes to give the rest back."""

from __future__ import annotations

import ctypes
from contextlib import suppress

LARGE_MIB = 8  # a step of mini costs nothing more; from 1 MiB on it costs 1.1 to 1.3 times as much
_M_MMAP_THRESHOLD = -3


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

    A leak adds to it, and nothing else does. Resident memory says less: glibc keeps pages between pieces that
    live on, and how many depends on the order in which they came and went.
    """
    with suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _MallInfo
        found = mallinfo2()
        return float((found.uordblks + found.hblkhd) / 2**20)
    return None


def large_pieces_apart(mib: int = LARGE_MIB) -> bool:
    """From now on pieces of `mib` MiB and more are mappings of their own, gone when they are freed.

    glibc raises that bound to 32 MiB as it sees such pieces freed (mallopt(3), M_MMAP_THRESHOLD); then
    activations and the copies of a checkpoint lie in one heap, and a small piece that lives on between them
    holds tens of MiB. True where the C library has taken it.
    """
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, mib * 2**20))
    return False
