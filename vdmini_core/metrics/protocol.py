"""A published protocol of FVD on clips that are prepared already: which clips, frames, rate and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdmini_core.artifacts import sha256_file
from vdmini_core.data.clip_source import CHUNK, ClipSource
from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import resized_frames
from vdmini_core.metrics.extractors import Extractor, load_extractor
from vdmini_core.params import FvdParams, PrepareParams


@dataclass(frozen=True)
class Protocol:
    """An extractor and the part of every row that it sees.

    Attributes:
        extract: the network.
        chosen: indices of the clips, the same in every row.
        every: one of how many prepared frames.
        frames: the first ones, after `every`.
        fps: of the clips as the network sees them.
        size: (height, width) both sides are resized to, None: as they are.
    """

    extract: Extractor
    chosen: tuple[int, ...]
    every: int
    frames: int
    fps: float
    size: tuple[int, int] | None

    def view(self, clips: ClipSource, chosen: Sequence[int] | None = None) -> ClipSource:
        """What the network sees of clips, or of the chosen ones among them."""
        indices = range(len(clips)) if chosen is None else chosen
        shape = (len(indices), self.frames, *(self.size or clips.shape[2:4]), 3)
        return ClipSource(shape, lambda part: self.see(clips.read([indices[i] for i in part])))

    def see(self, clips: Tensor) -> Tensor:
        """Clips (n, F, H, W, 3) uint8 -> (n, frames, height, width, 3) uint8, antialiased where resized."""
        clips = clips[:, :: self.every][:, : self.frames]
        if self.size is None or tuple(clips.shape[2:4]) == self.size:
            return clips
        return torch.cat([_resized(part, self.size) for part in clips.split(CHUNK)])


def _resized(clips: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = (resized_frames(clips, size) * 255).round().to(torch.uint8)
    return pixels.permute(0, 1, 3, 4, 2).contiguous()


def load_protocol_extractor(params: FvdParams, weights: Path | str | None, device: str) -> Extractor:
    """The network of the protocol.

    Args:
        params: the section `evaluate.fvd`; its extractor is not `embedded`.
        weights: `params.weights` as a path that can be opened from here, or as the address it is.
        device: where it runs.

    Raises:
        DataError: when weights or their sha256 are not given, missing or others.
    """
    options: dict[str, Any] = {}
    if params.extractor == "i3d":
        _demand_weights(params, weights)
        options = params.model_dump(include={"sha256", "convention", "layer", "bn_eps"})
    if weights is not None:
        options["weights"] = str(weights)
    return load_extractor(params.extractor, device=device, **options)


def _demand_weights(params: FvdParams, weights: Path | str | None) -> None:
    if weights is None:
        raise DataError(
            "evaluate.fvd.weights is not set",
            expected="the I3D weights that the field uses (`rgb_imagenet.pt` or a conversion)",
            fix="--set evaluate.fvd.weights=FILE --set evaluate.fvd.sha256=... , "
            "or --set evaluate.fvd.extractor=embedded to do without",
        )
    if isinstance(weights, Path) and not weights.is_file():
        raise DataError(
            "the weights of evaluate.fvd are not there",
            expected="a file at evaluate.fvd.weights",
            found=str(weights),
        )
    if params.sha256 is None:
        known = f"={sha256_file(weights)}" if isinstance(weights, Path) else ""
        raise DataError(
            "evaluate.fvd.sha256 is not set: a result must name the weights it came from",
            found=str(weights),
            fix=f"--set evaluate.fvd.sha256{known}",
        )


def make_protocol(
    extract: Extractor, params: FvdParams, prepare: PrepareParams, sources: Sequence[str | None]
) -> Protocol:
    """Fit the protocol to what was prepared.

    Args:
        extract: from `load_protocol_extractor`.
        params: the section `evaluate.fvd`.
        prepare: how the clips were prepared.
        sources: the video that each clip of a row comes from; None: one of its own.

    Raises:
        DataError: when there are fewer clips than asked for, or too few frames for the network.
    """
    every = round(prepare.fps / (params.fps or prepare.fps))
    frames = params.frames or -(-prepare.frames // every)
    if frames < extract.least_frames:
        raise DataError(
            f"`{extract.name}` needs longer clips",
            expected=f"at least {extract.least_frames} frames",
            found=f"{frames} (evaluate.fvd.frames, prepare.frames)",
        )
    size = None if params.height is None or params.width is None else (params.height, params.width)
    chosen = _chosen(sources, params.clips, params.clips_per_video)
    return Protocol(extract, chosen, every, frames, prepare.fps / every, size)


def _chosen(sources: Sequence[str | None], clips: int | None, per_video: int | None) -> tuple[int, ...]:
    used: Counter[str] = Counter()
    chosen = []
    for index, source in enumerate(sources):
        if source is not None and per_video is not None and used[source] >= per_video:
            continue
        used.update([source] if source is not None else [])
        chosen.append(index)
    if clips is not None and len(chosen) < clips:
        raise DataError(
            "there are fewer test clips than evaluate.fvd.clips asks for",
            expected=str(clips),
            found=f"{len(chosen)} of {len(sources)} test clips"
            + (f", at most {per_video} of a video" if per_video is not None else ""),
            fix="prepare more videos, or lower evaluate.fvd.clips: no clip counts twice",
        )
    return tuple(chosen[:clips])
