"""Feature extractors by name: `load_extractor(name)(videos) -> float32 (n, d)`.

| name | sees | weights |
|---|---|---|
| `embedded` | everything | ship with the package |
| `content` | single frames; their order cannot matter | ship with the package |
| `motion` | block-matching flow, nearly blind to what things look like | none |
| `i3d` | what the field reports as FVD | given |
| `videomae` | content-debiased FVD (arXiv 2404.12391) | given |
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from vdmini_core.artifacts import read_json
from vdmini_core.errors import DataError
from vdmini_core.metrics import embedded, motion
from vdmini_core.metrics.clips import resized
from vdmini_core.metrics.embedded_weights import WEIGHTS, load_networks
from vdmini_core.metrics.extractor import Extractor, Network

EXTRACTORS = ("embedded", "content", "motion")  # those that ship with the package
GIVEN_WEIGHTS = ("i3d", "videomae")  # those whose weights are the user's
ALL_EXTRACTORS = (*EXTRACTORS, *GIVEN_WEIGHTS)
MOTION_VERSION = 1  # raise when a change alters the numbers
_OPTIONS = {
    "i3d": {"weights", "sha256", "convention", "layer", "bn_eps", "dtype"},
    "videomae": {"weights", "dtype"},
}

__all__ = ["ALL_EXTRACTORS", "EXTRACTORS", "GIVEN_WEIGHTS", "Extractor", "load_extractor"]


def load_extractor(
    name: str, *, device: torch.device | str = "cpu", batch_size: int = 16, **options: Any
) -> Extractor:
    """An extractor, ready to be called with clips (n, F, H, W, 3).

    Args:
        name: one of `ALL_EXTRACTORS`.
        device: where it computes.
        batch_size: clips at once, at most.
        options: of `i3d`: `weights` (path or https address of a state dict like `rgb_imagenet.pt`),
            `sha256` of that file, `convention` (`videogpt`, `styleganv`, `cdfvd`), `layer` (`logits`,
            `pooled`), `bn_eps`; of `videomae`: `weights` (directory or hub name of a VideoMAE); of both
            `dtype` of the network (`float32`, `float64`, `bfloat16`, `float16`).

    Raises:
        DataError: on an unknown name, an option that the extractor does not have, or weights that do not fit.
    """
    if name not in ALL_EXTRACTORS:
        raise DataError(f"there is no extractor `{name}`", expected=", ".join(ALL_EXTRACTORS))
    unknown = sorted(options.keys() - _OPTIONS.get(name, set()))
    if unknown:
        raise DataError(
            f"extractor `{name}` has no option {', '.join(unknown)}",
            expected=", ".join(sorted(_OPTIONS.get(name, ()))) or "no options",
        )
    return Extractor(name, _network(name, device, options), device, batch_size)


def _network(name: str, device: torch.device | str, options: dict[str, Any]) -> Network:
    if name == "i3d":
        from vdmini_core.metrics.i3d_extractor import load_i3d

        return load_i3d(device, **options)
    if name == "videomae":
        from vdmini_core.metrics.videomae import load_videomae

        return load_videomae(device, **options)
    return _shipped(name, device)


def _shipped(name: str, device: torch.device | str) -> Network:
    resize = f"scale to [0, 1], then bilinear antialiased to {embedded.SIDE} x {embedded.SIDE}"
    prepare = functools.partial(resized, side=embedded.SIDE)
    if name == "motion":
        layer = f"flow histograms, version {MOTION_VERSION}"
        identity = {"weights_sha256": None, "layer": layer, "resize": resize}
        return Network(motion.DIM, prepare, motion.motion_features, identity)
    digest = read_json(WEIGHTS / "embedded.json")["sha256"]
    clip_network, frame_network = load_networks()
    if name == "embedded":
        identity = {"weights_sha256": digest, "layer": "clip network neck", "resize": resize}
        return Network(embedded.CLIP_DIM, prepare, clip_network.to(device).features, identity)
    layer = "frame network neck, mean and spread over frames"
    identity = {"weights_sha256": digest, "layer": layer, "resize": resize}
    features = functools.partial(embedded.content_features, frame_network.to(device))
    return Network(2 * embedded.FRAME_DIM, prepare, features, identity, least_frames=1)
