"""A starting point for the small autoencoder: the best linear encoder, a decoder that knows the colours.

From random weights so narrow a network draws sharp grey pictures for hundreds of steps: encoder and decoder
must find colour together, and normalisation removes absolute values. So the stock encoder starts as the
principal components of all 4 x 4 patches, written into its convolutions: the two strided convolutions unfold
a patch into channels, a shortcut projects them. Absolute values pass a normalisation group that holds
(z, -z) beside a large constant, because silu(u) - silu(-u) = u and the constant alone sets the scale.

The encoder stays as it is: its latents move with the picture, exactly for shifts by whole cells and by a
linear map for others, so that motion is easy to learn on them. The decoder is trained: it starts by painting
every cell in its mean colour, with silent residual branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from numpy.typing import NDArray
from torch import Tensor, nn

COLOURS = 3
CONSTANT = 16.0  # large against the latents, whose root mean square is about one
POSTERIOR_STD = 0.02  # of a latent whose decoder gain is one


@dataclass(frozen=True)
class PatchBasis:
    """Principal components of patches of `side` x `side` pixels in -1..1.

    Attributes:
        mean: (side * side * 3,) the average patch, ordered as the encoder unfolds it.
        components: (latents, side * side * 3) orthonormal rows, largest variance first.
        gains: (latents,) latent i is component i divided by gain i.
    """

    side: int
    mean: Tensor
    components: Tensor
    gains: Tensor


def patch_basis(clips_uint8: NDArray[np.uint8], side: int, latents: int) -> PatchBasis:
    """The basis of clips (n, F, H, W, 3). Gains are the square roots of the components' deviations.

    So a latent's deviation is the root of its component's: fine detail counts for more than in pixels, yet
    for less than colour.
    """
    pixels = torch.from_numpy(clips_uint8).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = _unfold(pixels, side).movedim(1, -1).flatten(0, -2).double()
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    order = variances.argsort(descending=True)[:latents]
    signs = vectors[:, order].sum(0).sign()  # eigenvectors have no sign of their own
    signs[signs == 0] = 1
    components = (vectors[:, order] * signs).T
    return PatchBasis(side, mean.float(), components.float(), variances[order].pow(0.25).float())


def patch_latents(clips_uint8: NDArray[np.uint8], basis: PatchBasis) -> Tensor:
    """What the encoder makes of clips (n, F, H, W, 3), in closed form: float32 (n, F, latents, h, w)."""
    pixels = torch.from_numpy(clips_uint8).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    rows = basis.components / basis.gains[:, None]
    latents = torch.einsum("lp,nphw->nlhw", rows, _unfold(pixels, basis.side) - basis.mean[:, None, None])
    return latents.unflatten(0, clips_uint8.shape[:2])


def _unfold(x_NCHW: Tensor, side: int) -> Tensor:
    """Space into channels, a factor of two at a time, as the strided convolutions do it."""
    while side > 1:
        n, c, h, w = x_NCHW.shape
        x_NCHW = (
            x_NCHW.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, -1)
        )
        side //= 2
    return x_NCHW


@torch.no_grad()
def start_from_patches(vae: AutoencoderKLTemporalDecoder, basis: PatchBasis) -> None:
    """Set fresh weights: the encoder is `basis`, decode(encode(x)) is about x averaged over patches.

    Raises:
        ValueError: when the widths leave no room for the basis.
    """
    levels, latents = len(vae.config.block_out_channels), len(basis.gains)
    if 2 ** (levels - 1) != basis.side or latents != vae.config.latent_channels:
        raise ValueError(
            f"expected a basis of side {2 ** (levels - 1)} with {vae.config.latent_channels} components, "
            f"got side {basis.side} with {latents}"
        )
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
            silence(module.conv2)
    for module in (*vae.encoder.mid_block.attentions, *vae.decoder.mid_block.attentions):
        silence(module.to_out[0])
    _write_encoder(vae, basis)
    _write_decoder(vae.decoder, basis)


def has_room(vae: AutoencoderKLTemporalDecoder) -> bool:
    """Whether the widths hold a basis; the innermost level has to change its width."""
    widths, latents = vae.config.block_out_channels, vae.config.latent_channels
    patch = 4 ** (len(widths) - 1) * COLOURS
    return bool(
        widths[0] >= 96
        and widths[-1] != widths[-2]
        and widths[-1] >= max(96, latents + COLOURS)
        and widths[-2] >= max(patch, latents + COLOURS)
        and latents <= 32
    )


def silence(layer: Any) -> None:
    """Zero weights and bias: a residual branch that ends here adds nothing until it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _write_encoder(vae: Any, basis: PatchBasis) -> None:
    encoder, latents = vae.encoder, len(basis.gains)
    _pass_on(encoder.conv_in, COLOURS, 1)
    width = COLOURS
    for block in encoder.down_blocks[:-1]:
        _pass_shortcuts(block.resnets, width)
        _unfold_kernel(block.downsamplers[0].conv, width)
        width *= 4
    project = encoder.down_blocks[-1].resnets[0].conv_shortcut
    if project is None or project.in_channels < width or project.out_channels < 4 * latents:
        raise ValueError(
            f"the encoder's last level needs a change of width, at least {width} channels in "
            f"and {4 * latents} out"
        )
    _write_groups(project, basis, project.out_channels // 32)
    linear_read(encoder.conv_norm_out, encoder.conv_out, torch.eye(latents), project.out_channels // 32)
    encoder.conv_out.bias[latents:] = 2 * (np.log(POSTERIOR_STD) - basis.gains.log())
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.zeros_(vae.quant_conv.bias)


def _write_groups(project: Any, basis: PatchBasis, group: int) -> None:
    """Each latent z gets a normalisation group (z, -z, constant, ...)."""
    rows = basis.components / basis.gains[:, None]
    offsets = -(rows @ basis.mean)
    for latent, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        first = latent * group
        project.weight[first : first + group] = 0
        project.bias[first : first + group] = CONSTANT
        for channel, sign in ((first, 1.0), (first + 1, -1.0)):
            project.weight[channel, : len(row), 0, 0] = sign * row
            project.bias[channel] = sign * offset


def linear_read(norm: Any, convolution: Any, matrix: Tensor, group: int) -> None:
    """Outputs are `matrix` times the signals of the first groups, which hold (x, -x, constant, ...).

    Normalisation subtracts the group's mean, (group - 2) / group of the constant, and divides by the
    deviation that the constant alone has; the affine bias puts the mean back.
    """
    outputs, signals = matrix.shape
    share = (group - 2) / group
    mean, deviation = CONSTANT * share, CONSTANT * (share * (1 - share)) ** 0.5
    convolution.weight[:] = 0
    convolution.bias[:] = 0
    for signal in range(signals):
        plus, minus = signal * group, signal * group + 1
        norm.weight[plus : plus + 2] = 1
        norm.bias[plus : plus + 2] = mean / deviation
        centre = convolution.kernel_size[0] // 2
        convolution.weight[:outputs, plus, centre, centre] = deviation * matrix[:, signal]
        convolution.weight[:outputs, minus, centre, centre] = -deviation * matrix[:, signal]


def _pass_on(convolution: Any, channels: int, centre: int) -> None:
    """The first channels pass unchanged; a 1 x 1 kernel has centre 0, a 3 x 3 one 1."""
    for channel in range(channels):
        convolution.weight[channel] = 0
        convolution.weight[channel, channel, centre, centre] = 1
        convolution.bias[channel] = 0


def _pass_shortcuts(resnets: Any, channels: int) -> None:
    for resnet in resnets:
        if resnet.conv_shortcut is not None:
            _pass_on(resnet.conv_shortcut, channels, 0)


def _unfold_kernel(convolution: Any, channels: int) -> None:
    """A strided convolution that unfolds 2 x 2 pixels of each channel into four channels."""
    if convolution.out_channels < 4 * channels:
        raise ValueError(f"the encoder needs {4 * channels} channels, it has {convolution.out_channels}")
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                out = 4 * channel + 2 * row + column
                convolution.weight[out] = 0
                convolution.weight[out, channel, row, column] = 1
                convolution.bias[out] = 0


def _write_decoder(decoder: Any, basis: PatchBasis) -> None:
    """Latents and the three mean colours are carried upwards; the last level reads the colours."""
    latents = len(basis.gains)
    colours = (basis.components * basis.gains[:, None]).unflatten(1, (COLOURS, -1)).mean(-1).T  # (3, latents)
    mean = basis.mean.unflatten(0, (COLOURS, -1)).mean(-1)
    _pass_on(decoder.conv_in, latents, 1)
    for colour in range(COLOURS):
        row = latents + colour
        decoder.conv_in.weight[row] = 0
        decoder.conv_in.weight[row, :, 1, 1] = colours[colour]
        decoder.conv_in.bias[row] = mean[colour]
    carried = latents + COLOURS
    for block in decoder.up_blocks[:-1]:
        _pass_shortcuts([resnet.spatial_res_block for resnet in block.resnets], carried)
        _pass_on(block.upsamplers[0].conv, carried, 1)
        smooth = torch.tensor([1.0, 2.0, 1.0]) / 4
        for channel in range(latents, carried):
            block.upsamplers[0].conv.weight[channel, channel] = smooth[:, None] * smooth
    project = decoder.up_blocks[-1].resnets[0].spatial_res_block.conv_shortcut
    group = decoder.conv_norm_out.num_channels // 32
    if project is None or group < 3:
        raise ValueError("the decoder's last level needs a change of width and at least 96 channels")
    for colour in range(COLOURS):
        first = colour * group
        project.weight[first : first + group] = 0
        project.bias[first : first + group] = CONSTANT
        for channel, sign in ((first, 1.0), (first + 1, -1.0)):
            project.weight[channel, latents + colour, 0, 0] = sign
            project.bias[channel] = 0
    linear_read(decoder.conv_norm_out, decoder.conv_out, torch.eye(COLOURS), group)
    nn.init.dirac_(decoder.time_conv_out.weight)
    nn.init.zeros_(decoder.time_conv_out.bias)
