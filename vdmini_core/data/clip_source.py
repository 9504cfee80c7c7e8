"""Sets of clips that are larger than memory: read from disk, joined or derived a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdmini_core.data.shards import (
    Shard,
    clip_shape,
    clips_path,
    index_path,
    places,
    save_clips,
    shards_of,
)

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
    shards = shards_of(directory, split)
    shape, count = clip_shape(shards[0].path, split)[1:], sum(shard.count for shard in shards)

    def read(indices: Sequence[int]) -> Tensor:
        clips = [
            clip for shard, inside in places(shards, indices) for clip in _of_shard(shard, split, inside)
        ]
        return torch.stack(clips) if clips else torch.zeros((0, *shape), dtype=torch.uint8)

    return ClipSource((count if limit is None else min(limit, count), *shape), read)


def _of_shard(shard: Shard, split: str, numbers: Sequence[int]) -> list[Tensor]:
    from safetensors import safe_open

    clip_shape(shard.path, split)  # says what is wrong with it
    with safe_open(shard.path, framework="pt") as handle:
        clips = handle.get_slice("clips")
        return [clips[number] for number in numbers]


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
        # the first shard last: where it lies, all do
        made = [shard.path for shard in shards_of(partial, name)]
        listed = [index_path(partial, name)] if len(made) > 1 else []
        for path in [*made[1:], *listed, made[0]]:
            path.replace(directory / path.name)
    return stored_clips(directory, name)
