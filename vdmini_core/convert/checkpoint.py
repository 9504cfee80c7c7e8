"""Reading an original checkpoint: tensors only, nothing in it is run; and sorting them by model part."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vdmini_core.artifacts import is_safetensors, unreadable
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.foreign import demand_header, demand_held, demand_stored

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
DEEPSPEED = "_forward_module."  # before all names, where its wrapper was saved with the model
# Buffers of the original's training class; the sampler makes them anew from its config.
SCHEDULE = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "lvlb_weights", "logvar", "scale_arr", "scale_arr_prev", "scale_factor",
})  # fmt: skip


@dataclass(frozen=True)
class CheckpointParts:
    """A checkpoint's weights by part, names without their prefixes; a part that is absent is empty."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    schedule: dict[str, Tensor]


def read_checkpoint(path: Path) -> CheckpointParts:
    """Read and sort a `.safetensors`, or a `.ckpt` or `.pt` with `weights_only=True`.

    Weights under the entry `state_dict` (Lightning) or `module` (DeepSpeed) are found there. Tensors stay
    in the mapped file until they are used.

    Raises:
        ModelError: no such file, not a checkpoint, truncated, holding code, or weights that belong nowhere.
    """
    if not path.is_file():
        raise ModelError("there is no such checkpoint", expected="a file", found=str(path))
    return _sorted(_named_tensors(path, _content(path)), path)


def _content(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        if path.suffix == ".safetensors" or is_safetensors(path):
            demand_header(path)
            return load_file(path)
        if zipped:
            demand_stored(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except VDMiniError:
        raise
    except Exception as error:  # bytes from outside: the readers raise whatever comes of them
        raise ModelError(
            f"{path.name} cannot be read as a checkpoint; nothing in it was run",
            expected="a whole .safetensors, or a .ckpt or .pt of tensors alone",
            found=unreadable(error),
            fix="download it again if it may be cut off; of a checkpoint with other objects in it, save the "
            "`state_dict` alone where you trust it",
        ) from None


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        if isinstance(content.get("module"), Mapping):
            content = content["module"]
        elif isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    usable = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not usable or not content:
        raise ModelError(
            f"{path.name} holds no weights",
            expected="tensors by name, at the top or under `state_dict` or `module`",
            found=type(content).__name__ if not isinstance(content, Mapping) else f"{len(content)} entries",
        )
    for key, value in content.items():
        if not _is_dense(value):
            raise ModelError(
                f"{path.name} holds a tensor of a kind that is not converted",
                expected="dense tensors with values",
                found=f"{key}, {value.layout} on {value.device}",
                fix="save its weights again as dense tensors that are not quantised",
            )
    demand_held(path, content)
    wrapped = all(key.startswith(DEEPSPEED) for key in content)
    return {key.removeprefix(DEEPSPEED) if wrapped else key: value for key, value in content.items()}


def _is_dense(tensor: Tensor) -> bool:
    """Not sparse, nested, quantised, or without values (meta device)."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return plain and tensor.device.type == "cpu"


def _sorted(tensors: dict[str, Tensor], path: Path) -> CheckpointParts:
    if "time_embed.0.weight" in tensors:  # a U-Net saved on its own
        return CheckpointParts(tensors, {}, {}, {})
    parts = {prefix: _below(tensors, prefix) for prefix in (UNET, VAE, TEXT)}
    schedule = {key: value for key, value in tensors.items() if key in SCHEDULE}
    strange = [key for key in tensors if key not in SCHEDULE and not key.startswith((UNET, VAE, TEXT))]
    if strange or not parts[UNET]:
        raise ModelError(
            f"{path.name} is not a checkpoint of these models",
            expected=f"weights under `{UNET}` (with or without `{VAE}` and `{TEXT}`), or a U-Net's own",
            found=f"{len(strange)} others, such as {strange[0]}" if strange else "no U-Net",
        )
    return CheckpointParts(parts[UNET], parts[VAE], parts[TEXT], schedule)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
