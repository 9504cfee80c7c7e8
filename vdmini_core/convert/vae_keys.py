"""The per-frame autoencoder of the checkpoint (`first_stage_model`) and `AutoencoderKL`.

It is Stable Diffusion's: eight times smaller latents, two residual blocks a level (three in the decoder),
one attention in the middle. Its sizes are read off the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vdmini_core.errors import ModelError

SCALING_FACTOR = 0.18215
NORM_GROUPS = 32
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# 1x1 convolutions in the original, linear layers here: both trailing dimensions, of size 1, go.
SQUEEZED = re.compile(r"mid_block\.attentions\.0\.to_.*weight$")


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the `AutoencoderKL` these weights are of.

    Args:
        state: weights by their original names, without the checkpoint's prefix.

    Raises:
        ModelError: when the weights that tell the sizes are not there.
    """
    blocks = [re.fullmatch(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", key) for key in state]
    places = {(int(match[1]), int(match[2])) for match in blocks if match}
    try:
        count = 1 + max(level for level, _ in places)
        widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(count)]
        images, latents = state["encoder.conv_in.weight"].shape[1], state["decoder.conv_in.weight"].shape[1]
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(
            "the checkpoint's VAE is incomplete",
            expected="the weights of `first_stage_model`, encoder and decoder",
            found=f"nothing to read its sizes from ({error})",
            fix="download the checkpoint again",
        ) from None
    if any(width % NORM_GROUPS for width in widths):
        raise ModelError(
            "the checkpoint's VAE is of an unknown kind",
            expected=f"channels in multiples of {NORM_GROUPS}",
            found=str(widths),
        )
    return {
        "in_channels": images,
        "out_channels": images,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "block_out_channels": widths,
        "layers_per_block": 1 + max(index for level, index in places if level == 0),
        "latent_channels": latents,
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": SCALING_FACTOR,
    }


def module_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module path -> ours, for every module with weights.

    Args:
        config: from `vae_config`.
    """
    count, layers = len(config["block_out_channels"]), config["layers_per_block"]
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        for index in range(2):
            table |= _residual(f"{side}.mid.block_{index + 1}", f"{side}.mid_block.resnets.{index}")
        table |= {
            f"{side}.mid.attn_1.{old}": f"{side}.mid_block.attentions.0.{new}"
            for old, new in ATTENTION.items()
        }
    for level in range(count):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{count - 1 - level}"
        for index in range(layers):
            table |= _residual(f"encoder.down.{level}.block.{index}", f"{down}.resnets.{index}")
        for index in range(layers + 1):
            table |= _residual(f"decoder.up.{level}.block.{index}", f"{up}.resnets.{index}")
        table[f"encoder.down.{level}.downsample"] = f"{down}.downsamplers.0"
        table[f"decoder.up.{level}.upsample"] = f"{up}.upsamplers.0"
    return table


def _residual(theirs: str, ours: str) -> dict[str, str]:
    return {theirs: ours, f"{theirs}.nin_shortcut": f"{ours}.conv_shortcut"}
