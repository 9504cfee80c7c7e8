"""Names of the original U-Net's weights (VideoCrafter2, T2V-Turbo-v2) and what they are called here.

One table per configuration, from module to module; the weights of a module keep their own names, but for
the residual blocks, whose layers are renamed too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Layers of the original's residual block -> of ours; the temporal convolution lives inside the block there.
RESIDUAL_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TEMPORAL_CONVOLUTION = "temopral_conv"  # spelt like this in the checkpoints
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_cond_proj": "time_embedding.cond_proj",
    "motion_cond_proj": "time_embedding.motion_proj",
    "combine_proj": "time_embedding.combine_proj",
    "fps_embedding.0": "fps_embedding.linear_1",
    "fps_embedding.2": "fps_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "init_attn.0": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# 1x1 convolutions over time in the original, linear layers here: the last dimension, of size 1, goes.
SQUEEZED = frozenset({"transformer_in.proj_in.weight", "transformer_in.proj_out.weight"})


def module_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module path -> ours, for every module of the original that has weights.

    Args:
        config: of `UNet3DFpsConditionModel` (`block_out_channels`, `layers_per_block`, block types).
    """
    count, layers = len(config["block_out_channels"]), config["layers_per_block"]
    table = dict(OUTSIDE)
    for level, kind in enumerate(config["down_block_types"]):
        first, ours = 1 + (layers + 1) * level, f"down_blocks.{level}"
        for index in range(layers):
            table |= _pair(f"input_blocks.{first + index}", ours, index, "CrossAttn" in kind)
        if level < count - 1:
            table[f"input_blocks.{first + layers}.0.op"] = f"{ours}.downsamplers.0.conv"
    table |= _residual("middle_block.0", "mid_block", 0) | _residual("middle_block.3", "mid_block", 1)
    table |= {"middle_block.1": "mid_block.attentions.0", "middle_block.2": "mid_block.temp_attentions.0"}
    for level, kind in enumerate(config["up_block_types"]):
        first, ours, attends = (layers + 1) * level, f"up_blocks.{level}", "CrossAttn" in kind
        for index in range(layers + 1):
            table |= _pair(f"output_blocks.{first + index}", ours, index, attends)
        if level < count - 1:
            upsampler = f"output_blocks.{first + layers}.{3 if attends else 1}.conv"
            table[upsampler] = f"{ours}.upsamplers.0.conv"
    return table


def _pair(theirs: str, ours: str, index: int, attends: bool) -> dict[str, str]:
    table = _residual(f"{theirs}.0", ours, index)
    if attends:
        table |= {
            f"{theirs}.1": f"{ours}.attentions.{index}",
            f"{theirs}.2": f"{ours}.temp_attentions.{index}",
        }
    return table


def _residual(theirs: str, ours: str, index: int) -> dict[str, str]:
    layers = {f"{theirs}.{old}": f"{ours}.resnets.{index}.{new}" for old, new in RESIDUAL_LAYERS.items()}
    return layers | {f"{theirs}.{TEMPORAL_CONVOLUTION}": f"{ours}.temp_convs.{index}"}
