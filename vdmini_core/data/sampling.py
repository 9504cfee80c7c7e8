"""Which frames make a clip: sampling by time, from exact time stamps.

Time is counted in ticks of the target rate: a clip that starts at tick `j` shows the source at the
moments j / fps, (j + 1) / fps, ... of the video, the first frame being at 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_REPEATS = 0.5  # share of a clip's steps that may show the same source frame again
MAX_TICKS = 10_000_000  # two weeks at 8 frames per second: beyond it the time stamps are damaged
_TIE_S = 1e-4  # so that rounding of time stamps cannot decide between two equally near frames

Run = tuple[int, int]


def nearest_frames(times: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the frame nearest to each moment, the earlier one in a tie.

    Args:
        times: sorted frame times in seconds, (n,), n >= 1.
        moments: seconds, (m,).
    """
    after = np.clip(np.searchsorted(times, moments), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(moments), np.int64)
    earlier = moments - times[after - 1] <= times[after] - moments + _TIE_S
    return np.where(earlier, after - 1, after).astype(np.int64)


def tick_count(times: NDArray[np.float64], fps: float) -> int:
    """Number of ticks that the video covers; the last frame reaches half its own duration."""
    if len(times) < 2:
        return min(len(times), 1)
    reach = min(float(np.median(np.diff(times))) / 2, 0.5 / fps)
    return int(np.floor((times[-1] + reach) * fps + 1e-6)) + 1


def clip_frames(times: NDArray[np.float64], start: int, frames: int, fps: float) -> NDArray[np.int64]:
    """Source frame indices (frames,) of the clip that starts at tick `start`."""
    return nearest_frames(times, (start + np.arange(frames)) / fps)


def clip_runs(times: NDArray[np.float64], frames: int, fps: float) -> list[Run]:
    """Runs (first, last) of ticks at which a clip may start, both ends included.

    A start is left out where more than `MAX_REPEATS` of the clip's steps would repeat a frame: a source
    slower than half the target rate, or a gap in its time stamps.
    """
    ticks = min(tick_count(times, fps), MAX_TICKS)
    if ticks < frames:
        return []
    chosen = nearest_frames(times, np.arange(ticks) / fps)
    repeats = np.concatenate([[0], np.cumsum(chosen[1:] == chosen[:-1])])
    starts = np.arange(ticks - frames + 1)
    usable = repeats[starts + frames - 1] - repeats[starts] <= MAX_REPEATS * (frames - 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], usable, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def starts_in(runs: Sequence[Run], stride: int) -> list[int]:
    """Starts `stride` ticks apart within each run."""
    return [start for first, last in runs for start in range(first, last + 1, stride)]


def clip_to(runs: Sequence[Run], begin: int, end: int, frames: int) -> list[Run]:
    """The parts of `runs` whose clips lie wholly within ticks [begin, end)."""
    bounded = [(max(first, begin), min(last, end - frames)) for first, last in runs]
    return [(first, last) for first, last in bounded if first <= last]


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly over the whole sequence."""
    if count >= len(items):
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]
