"""Latents and conditions on disk: shards of a few clips, made once, read a clip at a time.

A shard is written whole or not at all and depends on its clips alone, so that whoever is at hand makes those
that are missing: this process, or workers of any number.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdmini_core.artifacts import digest_of, read_json, write_json
from vdmini_core.data.clip_source import ClipSource
from vdmini_core.data.shards import SHARD_BYTES
from vdmini_core.distillation.data import RecoveryData
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.errors import DataError
from vdmini_core.models.base import Conditions
from vdmini_core.progress import track

SHARD_CLIPS = 8  # and more where that would make very many files
MANY_SHARDS = 1024
OPEN_SHARDS = 8  # kept mapped by a reader
IDENTITY, COMPLETE = "identity.json", "complete.json"
LATENTS, CONDITION = "latents", "condition."


def precompute(encoder: ClipEncoder, clips: ClipSource, folder: Path, identity: Any) -> None:
    """Encode every clip once, in this process; nothing is done where all is there.

    Args:
        encoder: the teacher's.
        clips: the training split.
        folder: where the shards go.
        identity: JSON-able data that says what the shards are made from.

    Raises:
        DataError: when there are no clips, or `folder` holds shards of something else.
    """
    missing = missing_shards(folder, clips.shape, identity)
    for start in track(missing, "encode clips", unit="shard") if missing else ():
        encode_shard(encoder, clips, folder, start)
    complete(folder, len(clips))


def shard_clips(shape: Sequence[int]) -> int:
    """How many clips of a set (n, F, H, W, 3) go to a shard; latents are smaller than the pixels counted."""
    fit = SHARD_BYTES // max(1, math.prod(shape[1:]))
    return max(SHARD_CLIPS, min(-(-shape[0] // MANY_SHARDS), fit))


def missing_shards(folder: Path, shape: Sequence[int], identity: Any) -> list[int]:
    """First clips of the shards that are still to be made; the folder is claimed for `identity`.

    Args:
        folder: where the shards go.
        shape: (n, F, H, W, 3) of the clips.
        identity: see `precompute`.

    Raises:
        DataError: when there are no clips, or `folder` holds shards of something else.
    """
    count, size = shape[0], shard_clips(shape)
    if not count:
        raise DataError(
            "there are no training clips", expected="at least one clip", fix="run `vdmini prepare`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):
        torn.unlink(missing_ok=True)
    _claim(folder, {"identity": digest_of(identity), "clips": count, "shard_clips": size})
    return [start for start in range(0, count, size) if not shard_path(folder, start).exists()]


def encode_shard(encoder: ClipEncoder, clips: ClipSource, folder: Path, start: int) -> None:
    """Make the shard that begins with clip `start`."""
    rows = encoder.encode(clips, range(len(clips))[start : start + shard_clips(clips.shape)])
    tensors = {LATENTS: rows.latents, **{CONDITION + k: v for k, v in rows.conditions.tensors.items()}}
    path = shard_path(folder, start)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def complete(folder: Path, count: int) -> None:
    """Say that every shard is there."""
    write_json(folder / COMPLETE, {"clips": count})


def shard_path(folder: Path, start: int) -> Path:
    """Where the shard that begins with clip `start` lies."""
    return folder / f"latents-{start:06d}.safetensors"


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    path = folder / IDENTITY
    if path.exists() and read_json(path) != identity:
        raise DataError(
            "the cached latents belong to other clips or another teacher",
            found=str(folder),
            fix="delete that folder and run the stage again",
        )
    write_json(path, identity)


class StoredLatents:
    """`RecoverySource` over the shards in a folder: what is asked for is read, a few files stay mapped.

    Memory does not grow with the number of clips. Threads may share one.

    Raises:
        DataError: when the shards are not complete.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / COMPLETE).exists():
            raise DataError(
                "the latents of the training clips are not complete",
                found=str(folder),
                fix="run `vdmini distill` again: it makes the shards that are missing",
            )
        self.folder, self.count = folder, int(read_json(folder / COMPLETE)["clips"])
        self.shard_clips = int(read_json(folder / IDENTITY)["shard_clips"])
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def rows(self, index_B: Tensor) -> RecoveryData:
        """Latents and conditions of these clips.

        Raises:
            DataError: when a shard cannot be read.
        """
        with self._lock:
            rows = [self._row(index) for index in index_B.tolist()]
        # `cat` copies: nothing that leaves here hangs on a mapped file
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        latents = joined.pop(LATENTS)
        given = {name.removeprefix(CONDITION): tensor for name, tensor in joined.items()}
        return RecoveryData(latents, Conditions(given))

    def _row(self, index: int) -> dict[str, Tensor]:
        place = index % self.shard_clips
        shard = self._shard(index - place)
        return {name: shard.get_slice(name)[place : place + 1] for name in sorted(shard.keys())}

    def _shard(self, start: int) -> Any:
        if start not in self._open:
            path = shard_path(self.folder, start)
            try:
                self._open[start] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{path.name} cannot be read",
                    found=str(error).split("\n")[0],
                    fix=f"delete {self.folder} and run the stage again",
                ) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(start)
        return self._open[start]
