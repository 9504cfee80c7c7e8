"""Features of videos behind one small interface: `load_extractor(name)(videos) -> float32 (n, d)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.artifacts import read_json
from vdmini_core.errors import DataError
from vdmini_core.metrics import embedded, motion
from vdmini_core.metrics.clips import checked_videos, network_batches
from vdmini_core.metrics.embedded_weights import WEIGHTS, load_networks
from vdmini_core.progress import track

EXTRACTORS = ("embedded", "content", "motion")
MOTION_VERSION = 1  # raise when a change alters the numbers


class Extractor:
    """Videos in, features out.

    Attributes:
        name: `embedded`, `content` or `motion`.
        dim: number of features.
        least_frames: fewest frames a clip may have.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        function: Callable[[Tensor], Tensor],
        identity: dict[str, Any],
        *,
        least_frames: int = 2,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.name, self.dim, self.least_frames = name, dim, least_frames
        self._function, self._identity = function, identity
        self._device, self._batch_size = device, batch_size

    def __call__(self, videos: Tensor, *, progress: bool = False) -> NDArray[np.float32]:
        """Features (n, d) of clips (n, F, H, W, 3), uint8 or floats in [0, 1]; memory is one batch's.

        Raises:
            DataError: on a wrong shape, too few frames, NaN or values outside [0, 1], naming the clip.
        """
        videos = checked_videos(videos, least_frames=self.least_frames)
        if not len(videos):
            return np.zeros((0, self.dim), np.float32)
        batches = network_batches(videos, embedded.SIDE, self._batch_size)
        total = -(-len(videos) // self._batch_size)
        with torch.inference_mode():
            parts = [
                self._function(batch.to(self._device)).float().cpu()
                for batch in (track(batches, self.name, total, "batch") if progress else batches)
            ]
        return torch.cat(parts).numpy()

    extract = __call__

    def passport(self) -> dict[str, Any]:
        """What a value computed from these features depends on; equal passports may be compared."""
        return {
            "extractor": self.name,
            "dim": self.dim,
            "resize": f"scale to [0, 1], then bilinear antialiased to {embedded.SIDE} x {embedded.SIDE}",
            **self._identity,
        }


def load_extractor(name: str, *, device: torch.device | str = "cpu", batch_size: int = 16) -> Extractor:
    """One of the extractors that ship with the package.

    `embedded` sees everything (FVD). `content` averages features of single frames, so the order of frames
    cannot matter. `motion` is statistics of block-matching flow, nearly blind to what things look like.

    Raises:
        DataError: when the name is unknown.
    """
    if name == "motion":
        identity = {"weights_sha256": None, "layer": f"flow histograms, version {MOTION_VERSION}"}
        return Extractor(
            name, motion.DIM, motion.motion_features, identity, device=device, batch_size=batch_size
        )
    if name not in EXTRACTORS:
        raise DataError(f"there is no extractor `{name}`", expected=", ".join(EXTRACTORS))
    clip_network, frame_network = load_networks()
    function: Callable[[Tensor], Tensor]
    if name == "embedded":
        layer, dim, least = "clip network neck", embedded.CLIP_DIM, 2
        function = clip_network.to(device).features
    else:
        layer, dim, least = "frame network neck, mean and spread over frames", 2 * embedded.FRAME_DIM, 1
        function = functools.partial(embedded.content_features, frame_network.to(device))
    identity = {"weights_sha256": read_json(WEIGHTS / "embedded.json")["sha256"], "layer": layer}
    return Extractor(name, dim, function, identity, least_frames=least, device=device, batch_size=batch_size)
