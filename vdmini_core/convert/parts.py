"""A checkpoint's parts as our models: every weight used once, every weight of ours filled, shapes equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.convert import text_keys, unet_keys, vae_keys
from vdmini_core.convert.tables import our_key
from vdmini_core.errors import ModelError
from vdmini_core.models.pruned_unet import build_on_meta

GUIDANCE = "time_embedding.cond_proj.weight"
MOTION = frozenset({"time_embedding.motion_proj.weight", "time_embedding.combine_proj.weight"})
OTHER_SIZES = "give the original's constructor arguments with --config where sizes are not the published ones"


@dataclass(frozen=True)
class Part:
    """One model and the weights that are to go into it.

    Attributes:
        name: of the component: `unet`, `vae`, `text_encoder`.
        model: without memory (meta device).
        weights: our name -> tensor.
        unknown: original names that have no place.
    """

    name: str
    model: nn.Module
    weights: dict[str, Tensor]
    unknown: list[str]


def unet_part(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Part:
    """The U-Net of original weights (names without prefix) for a config of `UNet3DFpsConditionModel`."""
    from vdmini_core.models.fps_unet import UNet3DFpsConditionModel

    table, weights, unknown = unet_keys.module_table(config), {}, []
    for key, weight in state.items():
        ours = our_key(key, table)
        if ours is None:
            unknown.append(key)
        elif ours in unet_keys.SQUEEZED and weight.shape[-1:] == (1,):
            weights[ours] = weight.squeeze(-1)
        else:
            weights[ours] = weight
    return Part("unet", build_on_meta(UNet3DFpsConditionModel, config), weights, unknown)


def vae_part(state: Mapping[str, Tensor]) -> Part:
    """The autoencoder of original weights (names without prefix); its sizes are read off them."""
    from diffusers import AutoencoderKL

    config = vae_keys.vae_config(state)
    table, weights, unknown = vae_keys.module_table(config), {}, []
    for key, weight in state.items():
        ours = our_key(key, table)
        if ours is None:
            unknown.append(key)
        elif vae_keys.SQUEEZED.search(ours) and weight.shape[2:] == (1, 1):
            weights[ours] = weight[:, :, 0, 0]
        else:
            weights[ours] = weight
    return Part("vae", build_on_meta(AutoencoderKL, config), weights, unknown)


def text_part(state: Mapping[str, Tensor]) -> Part:
    """The text encoder of original weights (names without prefix); its sizes are read off them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = text_keys.text_config(state)
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config)).eval()
    # Before version 5 of transformers all names began so.
    prefix = "text_model." if next(iter(model.state_dict())).startswith("text_model.") else ""
    weights: dict[str, Tensor] = {}
    unknown = []
    for key, weight in state.items():
        for ours, tensor in text_keys.text_weights(key, weight, config):
            if ours is None:
                unknown.append(key)
            else:
                weights[prefix + ours] = tensor
    return Part("text_encoder", model, weights, unknown)


def check_fit(part: Part) -> None:
    """Refuse weights that are missing, of another shape, without a place, or (U-Net) of another kind.

    Raises:
        ModelError: naming the first of each sort.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in part.model.state_dict().items()}
    missing = [name for name in expected if name not in part.weights]
    unknown = part.unknown + [name for name in part.weights if name not in expected]
    shapes = [
        f"{name} {tuple(tensor.shape)}, not {expected[name]}"
        for name, tensor in part.weights.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    whole = [f"{name} of {t.dtype}" for name, t in part.weights.items() if not t.is_floating_point()]
    if not (missing or unknown or shapes or whole):
        return
    findings = [
        f"{len(names)} {what}: {names[0]}"
        for names, what in (
            (missing, "missing"),
            (unknown, "without a place"),
            (shapes, "of another shape"),
            (whole, "not floating point"),
        )
        if names
    ]
    raise ModelError(
        f"the checkpoint's {part.name} does not fit",
        expected=f"the {len(expected)} weights of {type(part.model).__name__}",
        found="; ".join(findings),
        fix=_way_out(part, missing, unknown, shapes),
    )


def _way_out(part: Part, missing: list[str], unknown: list[str], shapes: list[str]) -> str:
    if part.name != "unet":
        return "download the checkpoint again"
    if GUIDANCE in unknown:
        return "it is a T2V-Turbo U-Net: use `convert t2v-turbo-v2`"
    if set(unknown) & MOTION:
        return "it is told the motion guidance scale: say `motion_cond_proj_dim` in --config"
    if missing and set(missing) == MOTION:
        return 'it has no motion guidance: say so with --config and {"motion_cond_proj_dim": null} in it'
    if missing and set(missing) <= {GUIDANCE, *MOTION}:
        return "it is a VideoCrafter2 U-Net: use `convert videocrafter2`"
    if unknown or shapes:
        return OTHER_SIZES
    return (
        "the checkpoint is cut off: download it again" if missing else "give weights that are not quantised"
    )


def fill(part: Part, dtype: torch.dtype, done: Any) -> nn.Module:
    """The part's model with its weights in it.

    Args:
        part: as `check_fit` lets through.
        dtype: of all weights in the model; the checkpoint's may differ from each other.
        done: called with 1 after every tensor.

    Raises:
        ModelError: for a weight that is not finite.
    """
    state = {}
    for name, tensor in part.weights.items():
        state[name] = tensor.to(dtype).contiguous()
        if not bool(torch.isfinite(state[name]).all()):
            raise ModelError(
                f"the checkpoint's {part.name} has a weight that is not finite",
                found=name,
                fix=f"download it again; or {dtype} is too small for it: use another --dtype",
            )
        done(1)
    part.model.load_state_dict(state, strict=True, assign=True)
    return part.model
