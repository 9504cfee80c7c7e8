"""A starting point for the small autoencoder: it already passes the average colour of each 4 x 4 patch.

From random weights so narrow a network draws sharp grey pictures for many hundreds of steps: colour must
be found by encoder and decoder together, and the 32 normalisation groups are two channels each here, so
that absolute values hardly pass. So six channels of each stream carry +-(R + 2), +-(G + 2) and +-(B + 2),
one pair a group: silu(x) - silu(-x) = x, hence colour contrast passes normalisation and activation
unbent (its absolute level is learned later, from the texture). Residual branches start at zero. All
weights are trained afterwards; nothing is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import nn

OFFSET = 2.0
SCALE = 2.05  # about the root mean square of colour + OFFSET, colours in -1..1
COLOURS = 3
POSTERIOR_LOG_VARIANCE = -4.0


@torch.no_grad()
def start_as_colour_average(vae: AutoencoderKLTemporalDecoder) -> None:
    """Set fresh weights so that decode(encode(x)) is about x averaged over patches; 3 latents or more."""
    _silence_residual_branches(vae)
    encoder, decoder = vae.encoder, vae.decoder
    _carry(encoder.conv_in, sources=list(range(COLOURS)), offset=OFFSET)
    _carry(decoder.conv_in, sources=list(range(COLOURS)), offset=0.0)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            _pass_on(module, rows=slice(0, 2), weight=0.25)
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or []:
            _pass_on(upsampler.conv, rows=slice(1, 2), weight=1.0)
    _read(encoder.conv_out, gain=1.0, offset=0.0)
    _read(decoder.conv_out, gain=SCALE, offset=-OFFSET, rest=0.0)
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.zeros_(vae.quant_conv.bias)
    vae.quant_conv.bias[vae.config.latent_channels :] = POSTERIOR_LOG_VARIANCE
    nn.init.dirac_(decoder.time_conv_out.weight)
    nn.init.zeros_(decoder.time_conv_out.bias)


def _silence_residual_branches(vae: nn.Module) -> None:
    module: Any
    for path, module in vae.named_modules():
        if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        if path.endswith("to_out.0"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _carry(convolution: Any, sources: list[int], offset: float) -> None:
    """Output pairs carry plus and minus one input channel each; the others get opposite offsets."""
    convolution.bias[0::2] += 1
    convolution.bias[1::2] -= 1
    for source in sources:
        for sign, channel in ((1.0, 2 * source), (-1.0, 2 * source + 1)):
            convolution.weight[channel] = 0
            convolution.weight[channel, source, 1, 1] = sign
            convolution.bias[channel] = sign * offset


def _pass_on(convolution: Any, rows: slice, weight: float) -> None:
    """The colour channels pass unchanged; `rows` are the kernel taps that are averaged, both ways."""
    convolution.bias[0::2] += 1
    convolution.bias[1::2] -= 1
    for channel in range(2 * COLOURS):
        convolution.weight[channel] = 0
        convolution.weight[channel, channel, rows, rows] = weight
        convolution.bias[channel] = 0


def _read(convolution: Any, gain: float, offset: float, rest: float = 1.0) -> None:
    """The first outputs are the colours again; `rest` scales what else the kernel reads."""
    convolution.weight *= rest
    for colour in range(COLOURS):
        convolution.weight[colour] = 0
        convolution.weight[colour, 2 * colour, 1, 1] = gain
        convolution.weight[colour, 2 * colour + 1, 1, 1] = -gain
        convolution.bias[colour] = offset
