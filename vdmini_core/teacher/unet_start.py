"""A starting point for a small one-step U-Net: it repeats the first frame, and its deep blocks speak.

From random weights so small a network spends most of a short training on learning to copy, and the shallow
blocks, which are nearest to the output, learn to do everything: the deep ones stay dead. So

* the first frame's latents z travel through the outermost skip as normalisation groups (z, -z, constant),
  which the output layer reads linearly (see `vae_start`): the untrained network repeats the first frame;
* in U.2 and U.3 the stream from below passes unchanged, what a skip brings enters through the residual
  branches only, and these are silent at first: nothing dilutes what the deep blocks say, whose own branches
  keep their random weights;
* noise is not listened to;
* D.2's second pair alone tells the frames apart, and D.0 and D.1 have no temporal layers (`quiet_parts`). As
  long as the other parts rest, D.0 and D.1 need to see one frame a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import nn

from vdmini_core.teacher import bypass
from vdmini_core.teacher.vae_start import CONSTANT, linear_read, silence

SHARED_DOWN = ("D.0", "D.1")
SHALLOW_UP = ("U.2", "U.3")


def has_room(unet: UNetSpatioTemporalConditionModel) -> bool:
    """Whether level 0 has a normalisation group of three channels or more for each latent."""
    return bool(
        unet.config.block_out_channels[0] >= 96
        and unet.config.out_channels <= 32
        and len(unet.up_blocks) == 4
    )


@torch.no_grad()
def start_from_first_frame(unet: UNetSpatioTemporalConditionModel) -> None:
    """Set fresh weights so that one step from pure noise repeats the first frame.

    Raises:
        ValueError: when `has_room` says no.
    """
    if not has_room(unet):
        raise ValueError("expected four levels, the first of at least 96 channels, and at most 32 latents")
    latents, width = unet.config.out_channels, unet.config.block_out_channels[0]
    group = width // 32
    _write_input(unet.conv_in, latents, group)
    for layer in _branch_ends(bypass.block_of(unet, name) for name in SHALLOW_UP):
        silence(layer)
    for name in SHALLOW_UP:
        for pair, resnet in enumerate(bypass.block_of(unet, name).resnets):
            signals = latents * group if name == "U.3" else 0
            _pass_stream(
                resnet.spatial_res_block.conv_shortcut,
                below=bypass.stream_width(unet, name, pair),
                first=signals if pair == 0 else 0,
            )
    last = bypass.block_of(unet, "U.3").resnets[-1].spatial_res_block.conv_shortcut
    for channel in range(latents * group):
        last.weight[channel, width + channel] = 1
    linear_read(unet.conv_norm_out, unet.conv_out, -torch.eye(latents), group)
    for part in quiet_parts(unet):
        for layer in _quiet_ends(part):
            silence(layer)


def quiet_parts(unet: UNetSpatioTemporalConditionModel) -> list[nn.Module]:
    """What could tell frames apart without D.2's second pair; without effect until it is trained.

    Every other frame index, every other temporal convolution (its zero padding shows which frame is near an
    end), and all temporal layers of D.0 and D.1. Temporal attention elsewhere treats all frames alike.
    """
    parts: list[nn.Module] = []
    speaking = bypass.block_of(unet, "D.2")
    speaks = (speaking.resnets[1], speaking.attentions[1])
    for module in unet.modules():
        if isinstance(module, TransformerSpatioTemporalModel) and module is not speaks[1]:
            parts.append(module.time_pos_embed)
        elif isinstance(module, SpatioTemporalResBlock) and module is not speaks[0]:
            parts.append(module.temporal_res_block)
    for name in SHARED_DOWN:
        for attention in bypass.block_of(unet, name).attentions:
            parts += attention.temporal_transformer_blocks
    return parts


def _quiet_ends(part: Any) -> Iterator[Any]:
    """The last layers of a quiet part's residual branches."""
    if hasattr(part, "linear_2"):  # a frame index
        yield part.linear_2
    elif hasattr(part, "conv2"):  # a temporal resnet
        yield part.conv2
    else:  # a temporal transformer block
        yield from (part.ff_in.net[2], part.ff.net[2], part.attn1.to_out[0])
        if part.attn2 is not None:
            yield part.attn2.to_out[0]


def _branch_ends(blocks: Iterable[nn.Module]) -> Iterator[Any]:
    for block in blocks:
        for module in block.modules():
            if isinstance(module, SpatioTemporalResBlock):
                yield module.spatial_res_block.conv2
                yield module.temporal_res_block.conv2
            elif isinstance(module, TransformerSpatioTemporalModel):
                yield module.proj_out


def _write_input(conv_in: Any, latents: int, group: int) -> None:
    """Groups (z, -z, constant, ...) of the first frame's latents; the other channels read them at random."""
    conv_in.weight[:, :latents] = 0
    for latent in range(latents):
        first = latent * group
        conv_in.weight[first : first + group] = 0
        conv_in.bias[first : first + group] = CONSTANT
        for channel, sign in ((first, 1.0), (first + 1, -1.0)):
            conv_in.weight[channel, latents + latent, 1, 1] = sign
            conv_in.bias[channel] = 0


def _pass_stream(shortcut: Any, below: int, first: int) -> None:
    """The `below` channels that come from below pass on, to channel `first` and up; a skip's do not.

    `first` > 0 keeps the channels before it free for the signals of the first frame. Where the stream is
    wider than the room, its channels are summed in turn, at constant power.
    """
    room = shortcut.out_channels - first
    silence(shortcut)
    for channel in range(below):
        shortcut.weight[first + channel % room, channel] = min(1.0, room / below) ** 0.5
