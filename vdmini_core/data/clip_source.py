"""Sets of clips that are larger than memory: read from disk, joined or derived a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdmini_core.data.clips import clip_count, clips_path, load_clips, save_clips

CHUNK = 16  # clips; what feature extractors take at once


@dataclass(frozen=True)
class ClipSource:
    """Clips of which only those that are asked for are in memory.

    Attributes:
        shape: (n, F, H, W, 3) of the whole set.
        read: indices -> uint8 clips (len(indices), F, H, W, 3).
    """

    shape: tuple[int, ...]
    read: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        return self.read(range(len(self))[part])

    def chunks(self) -> Iterator[Tensor]:
        """All clips in order, a few at a time; see `parts`."""
        return (self[part] for part in parts(len(self)))

    def derived(self, change: Callable[[Tensor], Tensor]) -> ClipSource:
        """The same clips, each changed by a function that looks at one clip at a time and keeps its shape."""
        return ClipSource(self.shape, lambda indices: change(self.read(indices)))


Clips = Tensor | ClipSource


def parts(count: int) -> list[slice]:
    """Slices of `CHUNK`; one left over at the end goes with those before it, for measures want two clips."""
    starts = list(range(0, count, CHUNK))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in itertools.pairwise([*starts, count])]


def as_source(clips: Clips) -> ClipSource:
    """A set in memory as a source; a source as it is."""
    if isinstance(clips, ClipSource):
        return clips
    return ClipSource(tuple(clips.shape), lambda indices: clips[list(indices)])


def stored_clips(directory: Path, split: str, limit: int | None = None) -> ClipSource:
    """The first clips of a split, read as they are needed.

    Raises:
        DataError: when they are missing.
    """
    count = clip_count(directory, split)

    def read(indices: Sequence[int]) -> Tensor:
        clips = load_clips(directory, split)  # mapped, not read
        return torch.stack([clips[index] for index in indices]) if indices else clips[:0].clone()

    shape = tuple(load_clips(directory, split).shape[1:])
    return ClipSource((count if limit is None else min(limit, count), *shape), read)


def joined(first: ClipSource, second: ClipSource) -> ClipSource:
    """Two sets of clips of one shape, one after the other."""

    count = len(first)

    def read(indices: Sequence[int]) -> Tensor:
        found = [first.read([i]) if i < count else second.read([i - count]) for i in indices]
        return torch.cat(found) if found else first.read([])

    return ClipSource((count + len(second), *first.shape[1:]), read)


def kept_clips(directory: Path, name: str, batches: Iterable[Tensor], count: int) -> ClipSource:
    """Clips made batch by batch, written to disk as they come; a set that lies there already is used.

    Args:
        directory: made where it is missing; its owner answers for what lies there.
        name: of the set.
        batches: uint8 clips (any number, F, H, W, 3), not asked for where the set is there.
        count: clips of all batches together.

    Raises:
        DataError: when the batches hold more or fewer clips.
    """
    target = clips_path(directory, name)
    if not target.is_file():
        partial = directory / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        clips = itertools.chain.from_iterable(batches)
        first = next(clips)
        save_clips(partial, name, itertools.chain([first], clips), (count, *first.shape))
        clips_path(partial, name).replace(target)
    return stored_clips(directory, name)
