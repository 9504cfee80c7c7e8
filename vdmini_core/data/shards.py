"""The clips of a split on disk: safetensors files of a bounded size, and an index where there are several.

The first file is `clips-<split>.safetensors`; most sets have no other. What does not fit goes to
`clips-<split>-00001.safetensors` and on, and `clips-<split>.index.json` says which clips lie where. A file
that is written stays as it is: clips that come later come in files of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdmini_core.artifacts import digest_of, read_json, sha256_file, write_json
from vdmini_core.errors import DataError
from vdmini_core.foreign import is_plain_name

SHARD_BYTES = 256 * 2**20  # of a file, at most; a larger clip has one to itself


@dataclass(frozen=True)
class Shard:
    """One file: its path, the number of its first clip in the split, how many it holds."""

    path: Path
    first: int
    count: int


@dataclass(frozen=True)
class Kept:
    """Where finished shards wait while a stage may still be killed.

    Attributes:
        folder: scratch that survives a kill, on the file system of the outputs.
        keys: what each clip is made from; equal keys mean equal bytes.
    """

    folder: Path
    keys: Sequence[str]


def clips_path(directory: Path, split: str, number: int = 0) -> Path:
    """Where a split's shard lies."""
    return directory / f"clips-{split}{f'-{number:05d}' if number else ''}.safetensors"


def index_path(directory: Path, split: str) -> Path:
    """Where the shards of a split are listed, if there are several."""
    return directory / f"clips-{split}.index.json"


def shards_of(directory: Path, split: str) -> list[Shard]:
    """The shards of a split, in the order of its clips.

    Raises:
        DataError: when there are none, or the index does not say what it should.
    """
    index = index_path(directory, split)
    if not index.is_file():
        path = clips_path(directory, split)
        return [Shard(path, 0, clip_shape(path, split)[0])]
    try:
        rows = [(str(row["file"]), int(row["clips"])) for row in read_json(index)["shards"]]
        if not all(is_plain_name(name) for name, _ in rows):
            raise ValueError("a shard that is not beside the index")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{index} is no index of clips", found=repr(error), fix=_AGAIN) from None
    firsts = itertools.accumulate((count for _, count in rows), initial=0)
    return [Shard(directory / name, first, count) for (name, count), first in zip(rows, firsts, strict=False)]


_AGAIN = "run `vdmini prepare` again"


def clip_shape(path: Path, split: str) -> list[int]:
    """(n, F, H, W, 3) of a shard, from its header.

    Raises:
        DataError: when it is missing or holds no clips.
    """
    from safetensors import safe_open

    if not path.is_file():
        if path.name == clips_path(path.parent, split).name:
            raise DataError(
                f"there are no {split} clips here", found=str(path.parent), fix="run `vdmini prepare` first"
            )
        raise DataError(f"{path.name} is missing", expected=str(path), found="nothing", fix=_AGAIN)
    with safe_open(path, framework="np") as shard:
        if "clips" not in shard.keys():  # noqa: SIM118  not a dict
            raise DataError(
                f"{path.name} holds no tensor `clips`",
                found=", ".join(shard.keys()),
                fix="`vdmini prepare --force` makes the shards again",
            )
        clips = shard.get_slice("clips")
        shape: list[int] = clips.get_shape()
        if clips.get_dtype() != "U8" or len(shape) != 5 or shape[-1] != 3:
            raise DataError(
                f"{path} holds no clips",
                expected="uint8 (n, F, H, W, 3)",
                found=f"{clips.get_dtype()} {tuple(shape)}",
                fix=_AGAIN,
            )
    return shape


def places(shards: Sequence[Shard], indices: Iterable[int]) -> Iterator[tuple[Shard, list[int]]]:
    """Clips by number, as runs of neighbours that lie in one shard, numbered within it."""
    firsts = [shard.first for shard in shards]
    for number, run in itertools.groupby(indices, key=lambda index: bisect_right(firsts, index) - 1):
        yield shards[number], [index - shards[number].first for index in run]


def split_digest(directory: Path, split: str) -> str:
    """One sha256 for the clips of a split: the file's where there is one, else over those of all."""
    shards = shards_of(directory, split)
    digests = [sha256_file(shard.path) for shard in shards]
    return digests[0] if len(digests) == 1 else digest_of(digests)


def save_clips(
    directory: Path, split: str, clips: Iterable[Any], shape: Sequence[int], kept: Kept | None = None
) -> None:
    """Write the clips of a split, as a stream: no shard has to fit in memory.

    Args:
        directory: an existing folder.
        split: train, validation or test.
        clips: uint8 arrays or tensors (F, H, W, 3), or buffers of as many bytes, one after the other.
        shape: (n, F, H, W, 3) of the whole.
        kept: shards that an earlier, killed call finished are taken from there, and new ones left there.

    Raises:
        DataError: when `clips` holds more or fewer bytes than `shape` says.
    """
    rows = _write(directory, split, clips, shape, kept, 0)
    if len(rows) > 1:
        write_json(index_path(directory, split), {"clips": shape[0], "shards": rows})


def add_clips(
    directory: Path,
    split: str,
    clips: Iterable[Any],
    shape: Sequence[int],
    kept: Kept | None = None,
    **facts: Any,
) -> list[str]:
    """Append clips to a split in shards of their own; those that are there keep their bytes.

    Args:
        directory: holds the split.
        split: train, validation or test.
        clips: see `save_clips`.
        shape: (n, F, H, W, 3) of the new ones.
        kept: see `save_clips`.
        facts: noted in the index beside each new shard.

    Returns:
        Names of the new files.

    Raises:
        DataError: when the split is missing, or the clips do not fit.
    """
    there = shards_of(directory, split)
    has = clip_shape(there[0].path, split)[1:]
    if has != list(shape[1:]):
        raise DataError("clips of another shape cannot be added", expected=str(has), found=str(shape[1:]))
    index = index_path(directory, split)
    before = [{"file": shard.path.name, "clips": shard.count} for shard in there]
    if index.is_file():
        before = read_json(index)["shards"]
    rows = [row | facts for row in _write(directory, split, clips, shape, kept, len(before))]
    total = sum(int(row["clips"]) for row in [*before, *rows])
    write_json(index, {"clips": total, "shards": [*before, *rows]})
    return [str(row["file"]) for row in rows]


def _write(
    directory: Path, split: str, clips: Iterable[Any], shape: Sequence[int], kept: Kept | None, number: int
) -> list[dict[str, Any]]:
    count, rest = shape[0], tuple(shape[1:])
    most = max(1, SHARD_BYTES // int(np.prod(rest)))
    stream = iter(clips)
    rows: list[dict[str, Any]] = []
    for first in range(0, max(count, 1), most):
        size = min(most, count - first)
        path = clips_path(directory, split, number + len(rows))
        # The last one takes whatever comes, so that too much of it is seen.
        part = stream if first + size >= count else itertools.islice(stream, size)
        if kept is None:
            _write_shard(path, split, part, (size, *rest))
        else:
            done = kept.folder / f"shard-{digest_of([rest, list(kept.keys[first : first + size])])[:32]}"
            if done.is_file():
                _skip(stream, size)
            else:
                torn = done.with_suffix(".torn")
                _write_shard(torn, split, part, (size, *rest))
                torn.replace(done)
            same_file(done, path)
        rows.append({"file": path.name, "clips": size})
    return rows


def _skip(stream: Iterator[Any], count: int) -> None:
    for _ in itertools.islice(stream, count):
        pass


def _write_shard(path: Path, split: str, clips: Iterable[Any], shape: Sequence[int]) -> None:
    total = int(np.prod(shape))
    entry = {"clips": {"dtype": "U8", "shape": list(shape), "data_offsets": [0, total]}}
    header = json.dumps(entry, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    written = 0
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for clip in clips:
            data = clip if isinstance(clip, bytes) else np.ascontiguousarray(clip, np.uint8).tobytes()
            written += out.write(data)
    if written != total:
        raise DataError(f"clips of {split} do not fit", expected=f"{total} bytes", found=f"{written}")


def same_file(source: Path, target: Path) -> None:
    """Give a file that nobody changes any more a second name, or copy it where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
