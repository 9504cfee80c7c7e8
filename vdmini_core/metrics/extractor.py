"""The one interface of all feature extractors: videos in, features out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import checked_videos
from vdmini_core.progress import track

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Network:
    """What makes an extractor: how clips are prepared, what is computed, and how both are identified.

    Attributes:
        dim: number of features.
        prepare: checked clips (B, F, H, W, 3) -> what `features` takes.
        features: -> (B, dim).
        identity: weights, layer, resize convention: whatever a value depends on.
        least_frames: fewest frames a clip may have.
        frames: the only number of frames a clip may have, where there is only one.
        most_clips: more at once cost memory and gain no time.
    """

    dim: int
    prepare: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    identity: dict[str, Any] = field(default_factory=dict)
    least_frames: int = 2
    frames: int | None = None
    most_clips: int | None = None


class Extractor:
    """Callable: clips (n, F, H, W, 3), uint8 or floats in [0, 1] -> float32 (n, d).

    Attributes:
        name: as given to `load_extractor`.
        dim: number of features d.
        least_frames: fewest frames a clip may have.
    """

    def __init__(
        self, name: str, network: Network, device: torch.device | str = "cpu", batch_size: int = 16
    ) -> None:
        self.name, self.dim, self.least_frames = name, network.dim, network.least_frames
        self._network, self._device = network, device
        self._batch_size = min(batch_size, network.most_clips or batch_size)

    def __call__(self, videos: Tensor, *, progress: bool = False) -> NDArray[np.float32]:
        """Features (n, d); memory is one batch's.

        Raises:
            DataError: on a wrong shape, a number of frames it cannot take, NaN or values outside [0, 1],
                naming the clip.
        """
        videos = checked_videos(videos, least_frames=self.least_frames)
        only = self._network.frames
        if only is not None and videos.shape[1] != only:
            raise DataError(
                f"`{self.name}` takes clips of one length",
                expected=f"{only} frames",
                found=str(videos.shape[1]),
            )
        if not len(videos):
            return np.zeros((0, self.dim), np.float32)
        starts = range(0, len(videos), self._batch_size)
        with torch.inference_mode(), _exact_convolutions():
            parts = [
                self._batch(videos[start : start + self._batch_size])
                for start in (_tracked(starts, self.name) if progress else starts)
            ]
        return torch.cat(parts).numpy()

    extract = __call__

    def _batch(self, videos: Tensor) -> Tensor:
        prepared = self._network.prepare(videos.to(self._device))
        return self._network.features(prepared).float().cpu()

    def passport(self) -> dict[str, Any]:
        """What a value computed from these features depends on; equal passports may be compared."""
        return {"extractor": self.name, "dim": self.dim, **self._network.identity}


def dtype_of(name: str) -> torch.dtype:
    """The floating type of that name.

    Raises:
        DataError: on another name.
    """
    if name not in DTYPES:
        raise DataError(f"extractors do not compute in `{name}`", expected=", ".join(DTYPES))
    return DTYPES[name]


def _exact_convolutions() -> AbstractContextManager[None]:
    """Without TF32, which cuDNN takes by itself and which moves I3D's logits by a hundred times rounding."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


def _tracked(starts: range, name: str) -> Iterator[int]:
    yield from track(starts, name, len(starts), "batch")
