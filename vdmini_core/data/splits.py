"""Which source video serves which split, and at which starts: pure functions of names, time lines and a seed.

Three ways, the first that gives every split enough:
1. *by source*, from `MANY_SOURCES` videos on: no video is in two splits; a hash of name and seed orders them.
2. *by time*: every video is cut into contiguous segments for train, validation and test; no frame is in two.
3. *by source* with fewer videos, where they are too short to be cut.

Clips follow one another without overlap. Where that would make a split smaller than `COMFORT`, they start
every half clip, then every quarter: more, but not more independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vdmini_core.data.clips import SPLITS
from vdmini_core.data.sampling import Run, clip_to, spread, starts_in

MANY_SOURCES = 10
MINIMUM = {"train": 1, "validation": 4, "test": 2}  # what the later stages cannot do without
COMFORT = {"train": 64, "validation": 16, "test": 16}
SEGMENTS = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
_HELD_OUT_SHARE = 0.15  # of all clips, for validation and for test, while clips are scarce


@dataclass(frozen=True)
class Source:
    """A usable video: its name, the runs of ticks at which a clip may start, its length in ticks."""

    name: str
    runs: tuple[Run, ...]
    ticks: int


@dataclass(frozen=True)
class Assignment:
    """Candidate starts per split: `parts[split]` lists (source name, starts) in the order of use."""

    mode: str
    stride: int
    parts: Mapping[str, list[tuple[str, list[int]]]]


def ordered(sources: Sequence[Source], seed: int) -> list[Source]:
    """Sources in an order that depends on their names and the seed alone."""
    return sorted(sources, key=lambda s: hashlib.sha256(f"{seed}\0{s.name}".encode()).digest())


def assign(
    sources: Sequence[Source], wanted: Mapping[str, int], frames: int, cap: int, seed: int
) -> Assignment:
    """Share the sources out.

    Args:
        sources: usable videos.
        wanted: clips per split at most.
        frames: ticks a clip spans.
        cap: clips per video at most.
        seed: decides the order of the sources.

    Returns:
        An assignment of mode `none`, of no use, when no way gives every split its `MINIMUM`.
    """
    line = ordered(sources, seed)
    strides = sorted({frames, -(-frames // 2), -(-frames // 4)}, reverse=True)
    comfort = {split: min(COMFORT[split], wanted[split]) for split in SPLITS}
    ways = ["by source"] if len(line) >= MANY_SOURCES else ["by time", "by source"]
    for mode in [*ways, "by time"]:
        for stride in strides:
            share = _by_source if mode == "by source" else _by_time
            found = Assignment(mode, stride, share(line, wanted, frames, cap, stride))
            if _reaches(found, comfort):
                return found
        if _reaches(found, MINIMUM):
            return found
    return Assignment("none", found.stride, found.parts)


def counts(assignment: Assignment) -> dict[str, int]:
    """Candidate clips per split."""
    return {split: sum(len(starts) for _, starts in assignment.parts[split]) for split in SPLITS}


def level_for(available: Sequence[int], needed: int) -> int:
    """The least number of clips per source that together make `needed`, or all there are."""
    low, high = 1, max(available, default=1)
    while low < high:
        middle = (low + high) // 2
        if sum(min(count, middle) for count in available) >= needed:
            high = middle
        else:
            low = middle + 1
    return low


def _reaches(assignment: Assignment, least: Mapping[str, int]) -> bool:
    found = counts(assignment)
    return all(found[split] >= least[split] for split in SPLITS)


def _by_source(
    line: Sequence[Source], wanted: Mapping[str, int], frames: int, cap: int, stride: int
) -> dict[str, list[tuple[str, list[int]]]]:
    """Whole sources to test, then validation, until each has its share; the rest trains."""
    starts = {source.name: spread(starts_in(source.runs, stride), cap) for source in line}
    total = sum(len(s) for s in starts.values())
    scarce = total < sum(wanted.values())
    waiting = [source.name for source in line]
    parts: dict[str, list[tuple[str, list[int]]]] = {split: [] for split in SPLITS}
    for split in ("test", "validation"):
        share = int(total * _HELD_OUT_SHARE) if scarce else total
        target = min(wanted[split], max(MINIMUM[split], share))
        reached = 0
        while waiting and reached < target:
            name = waiting.pop(0)
            parts[split].append((name, starts[name]))
            reached += min(len(starts[name]), -(-target // 2))  # at least two videos each
    parts["train"] = [(name, starts[name]) for name in waiting]
    return parts


def _by_time(
    line: Sequence[Source], wanted: Mapping[str, int], frames: int, cap: int, stride: int
) -> dict[str, list[tuple[str, list[int]]]]:
    """A segment of every source to each split; a source too short to be cut trains."""
    parts: dict[str, list[tuple[str, list[int]]]] = {split: [] for split in SPLITS}
    for source in line:
        for split, (begin, end) in SEGMENTS.items():
            if source.ticks < 3 * frames:
                begin, end = (0.0, 1.0) if split == "train" else (0.0, 0.0)
            runs = clip_to(source.runs, int(begin * source.ticks), int(end * source.ticks), frames)
            starts = spread(starts_in(runs, stride), max(1, int(cap * (end - begin))))
            if starts:
                parts[split].append((source.name, starts))
    return parts
