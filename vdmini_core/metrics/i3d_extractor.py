"""I3D as an extractor: its options, and the passport that names them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import DataError
from vdmini_core.metrics.extractor import Network, dtype_of
from vdmini_core.metrics.i3d import CLASSES, I3D, LEAST_FRAMES, WIDTH
from vdmini_core.metrics.i3d_preprocess import CONVENTIONS, RESIZE, Convention, preprocess
from vdmini_core.metrics.weights_source import load_state_dict, locate

Layer = Literal["logits", "pooled"]
BN_EPS = (1e-5, 1e-3)  # FVD's line of code; the network as it was published
MOST_CLIPS_ON_CPU = 1  # more at once are no faster there, and cost 0.1 GB each


def load_i3d(
    device: torch.device | str,
    weights: str | Path | None = None,
    sha256: str | None = None,
    convention: Convention = "videogpt",
    layer: Layer = "logits",
    bn_eps: float = BN_EPS[0],
    dtype: str = "float32",
) -> Network:
    """I3D with given weights; see `load_extractor`.

    Raises:
        DataError: without weights, or when they or an option do not fit.
    """
    if weights is None:
        raise DataError(
            "`i3d` needs weights",
            expected="a state dict like `rgb_imagenet.pt`, as .pt or .safetensors",
            fix="give its path or https address, with its sha256",
        )
    choices: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "convention": (convention, CONVENTIONS),
        "layer": (layer, ("logits", "pooled")),
        "bn_eps": (bn_eps, BN_EPS),
    }
    for what, (value, known) in choices.items():
        if value not in known:
            raise DataError(f"`i3d` has no {what} {value!r}", expected=", ".join(map(str, known)))
    kind = dtype_of(dtype)
    path = locate(weights, sha256)
    network = I3D().to(kind).load(load_state_dict(path), bn_eps).on(device)
    outcome = network if layer == "logits" else network.pooled

    def features(clips: Tensor) -> Tensor:
        return outcome(clips.to(kind))

    identity = {
        "weights_sha256": sha256_file(path),
        "layer": "logits, mean over time" if layer == "logits" else "pooled, mean over time positions",
        "resize": f"{convention}: {RESIZE[convention]}",
        "bn_eps": bn_eps,
        "dtype": dtype,
    }
    return Network(
        CLASSES if layer == "logits" else WIDTH,
        functools.partial(preprocess, convention=convention),
        features,
        identity,
        least_frames=LEAST_FRAMES,
        most_clips=MOST_CLIPS_ON_CPU if torch.device(device).type == "cpu" else None,
    )
