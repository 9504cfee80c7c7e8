"""Extractors whose weights the user brings: I3D and VideoMAE."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.artifacts import read_json, sha256_file
from vdmini_core.errors import DataError
from vdmini_core.metrics.clips import as_unit_floats
from vdmini_core.metrics.extractor import Network
from vdmini_core.metrics.i3d import CLASSES, I3D, LEAST_FRAMES, WIDTH
from vdmini_core.metrics.i3d_preprocess import CONVENTIONS, RESIZE, Convention, preprocess
from vdmini_core.metrics.weights_source import load_state_dict, locate

Layer = Literal["logits", "pooled"]


def load_i3d(
    device: torch.device | str,
    weights: str | Path | None = None,
    sha256: str | None = None,
    convention: Convention = "videogpt",
    layer: Layer = "logits",
    bn_eps: float = 1e-5,
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
    for value, known, what in (
        (convention, CONVENTIONS, "convention"),
        (layer, ("logits", "pooled"), "layer"),
    ):
        if value not in known:
            raise DataError(f"`i3d` has no {what} {value!r}", expected=", ".join(known))
    path = locate(weights, sha256)
    network = I3D().load(load_state_dict(path), bn_eps).to(device)
    identity = {
        "weights_sha256": sha256_file(path),
        "layer": "logits, mean over time" if layer == "logits" else "pooled, mean over time positions",
        "resize": f"{convention}: {RESIZE[convention]}",
        "bn_eps": bn_eps,
    }
    return Network(
        CLASSES if layer == "logits" else WIDTH,
        functools.partial(preprocess, convention=convention),
        network if layer == "logits" else network.pooled,
        identity,
        least_frames=LEAST_FRAMES,
    )


def load_videomae(device: torch.device | str, weights: str | Path | None = None) -> Network:
    """VideoMAE (Tong et al. 2022) of a local directory or the hub; features: mean of the last hidden states.

    Raises:
        DataError: when it cannot be loaded.
    """
    from transformers import VideoMAEModel

    if weights is None:
        raise DataError("`videomae` needs weights", expected="a directory or hub name of a VideoMAE model")
    try:
        model: Any = VideoMAEModel.from_pretrained(str(weights), use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"{weights} is no VideoMAE model", found=str(error).split("\n")[0]) from error
    directory = Path(weights)
    processor = directory / "preprocessor_config.json"
    facts = read_json(processor) if processor.is_file() else {}
    # ImageNet's statistics are what every published VideoMAE was trained with.
    mean = torch.tensor(facts.get("image_mean", (0.485, 0.456, 0.406)), device=device)
    spread = torch.tensor(facts.get("image_std", (0.229, 0.224, 0.225)), device=device)
    side, frames = int(model.config.image_size), int(model.config.num_frames)

    def prepare(videos_BTHWC: Tensor) -> Tensor:
        unit = (as_unit_floats(videos_BTHWC) - mean) / spread
        images = unit.flatten(0, 1).permute(0, 3, 1, 2)
        images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return images.reshape(-1, frames, 3, side, side)

    weights_file = directory / "model.safetensors"
    identity = {
        "weights_sha256": sha256_file(weights_file) if weights_file.is_file() else None,
        "weights": None if weights_file.is_file() else f"{weights} at {model.config._commit_hash}",
        "layer": "last hidden states, mean over places and time",
        "resize": f"to [0, 1], normalised, both sides to {side} (bilinear, antialiased)",
    }
    return Network(
        int(model.config.hidden_size),
        prepare,
        lambda clips: model(clips).last_hidden_state.mean(dim=1),
        identity,
        frames=frames,
    )
