"""The one door to a denoiser alone: whatever its family, stock or pruned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.models.pipeline_dir import (
    INDEX,
    check_configs,
    check_weights,
    found_at,
    read_config,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "diffusion_pytorch_model"
COMPONENTS = ("unet", "transformer")
# Class name in config.json -> the library that has it; nothing else is loaded.
DENOISERS = {
    "UNetSpatioTemporalConditionModel": "diffusers",
    "UNetSpatioTemporalPrunedModel": "vdmini_core",
    "UNet3DFpsConditionModel": "vdmini_core",
    "UNet3DConditionModel": "diffusers",
    "UNet3DPrunedModel": "vdmini_core",
    "I2VGenXLUNet": "diffusers",
    "I2VGenXLPrunedUNet": "vdmini_core",
    **dict.fromkeys(ARCHITECTURES, "diffusers"),
}


def load_denoiser(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    mapped: bool = False,
) -> nn.Module:
    """Load the denoiser of a pipeline directory, or of its own directory: frozen, in eval mode.

    The class is the one its `config.json` names: the stock one, or one of ours.

    Args:
        directory: pipeline directory (with `unet/` or `transformer/`), or the component's directory.
        device: to put it on.
        dtype: of its weights; float32 where None.
        mapped: leave the weights in their files, in the precision they are stored in, so that processes of
            one machine share them and none needs memory for the whole. For FSDP2, which takes its parts
            from there (`sharding`); computing with them on a CPU may give other last bits (`own_memory`).

    Raises:
        ValueError: `mapped` with a device or dtype.
        ModelError: no denoiser there, an unknown class, pickled weights, or weights that do not fill it.
    """
    import importlib

    import torch

    from vdmini_core.models.parts import load_part
    from vdmini_core.models.registry import own_memory

    if mapped and (torch.device(device).type != "cpu" or dtype is not None):
        raise ValueError("mapped weights stay on the CPU, as they are stored")
    folder = _component(Path(directory))
    name = read_config(folder / "config.json").get("_class_name")
    if not isinstance(name, str) or name not in DENOISERS:
        raise ModelError(
            f"{folder} is of a class that is not supported",
            expected=" or ".join(DENOISERS),
            found=str(name),
            fix="only these classes are loaded; code from a model directory is never run",
        )
    check_configs(folder)
    check_weights(folder, WEIGHTS)
    cls: Any = getattr(importlib.import_module(DENOISERS[name]), name)
    model = load_part(
        folder, cls, WEIGHTS, _stored_dtype(folder) if mapped else dtype or torch.float32, exact=True
    )
    model.eval().requires_grad_(False)
    if not mapped:
        own_memory(model.to(device))
    return model


def _stored_dtype(folder: Path) -> torch.dtype:
    """Of the largest tensor; where files mix precisions, the others are converted to it in memory."""
    import torch
    from safetensors import safe_open

    stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    largest, found = 0, torch.float32
    for path in sorted(folder.glob(f"{WEIGHTS}*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping: it has no iterator
                part = file.get_slice(name)
                if (size := math.prod(part.get_shape())) > largest:
                    largest, found = size, stored.get(part.get_dtype(), torch.float32)
    return found


def _component(directory: Path) -> Path:
    """The denoiser's own directory."""
    choices = [directory, *(directory / name for name in COMPONENTS)]
    found = [path for path in choices if (path / "config.json").is_file()]
    if not found:
        raise ModelError(
            f"there is no denoiser in {directory}",
            expected=f"a pipeline directory ({INDEX} and unet/ or transformer/), or one with config.json",
            found=found_at(directory, "config.json"),
        )
    return found[0]
