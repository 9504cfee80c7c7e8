"""SVD's autoencoder with a narrower, shallower decoder (paper, Appendix A); its encoder is the teacher's.

The decoder is built by the stock classes from widths of its own, then what the plan removes becomes a
weightless placeholder. It stays a temporal decoder: every kept layer keeps its convolutions over time and
its time mixer.
"""

from __future__ import annotations

from typing import Any, cast

from diffusers import AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from torch import nn

from vdmini_core.models.narrow import narrow_inside
from vdmini_core.models.pruned_unet import DroppedBlock, swap_modules


class AutoencoderKLTemporalPrunedDecoder(AutoencoderKLTemporalDecoder):
    """`AutoencoderKLTemporalDecoder` with decoder widths and layers of its own.

    `DiffusionPipeline.from_pretrained` loads it after `import vdmini_core`.

    Args:
        decoder_channels: width of each up block, from the latents outwards (the stock order is inwards).
        decoder_inner_channels: width between the convolutions of each block's resnets; None: the block's.
        decoder_layers: resnets kept in each up block, the first ones.
        decoder_mid_block: whether the mid block stays.
    """

    # model_index.json names a foreign class by its module; diffusers finds it there once that is imported.
    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        force_upcast: bool = True,
        decoder_channels: tuple[int, ...] = (64,),
        decoder_layers: tuple[int, ...] = (2,),
        decoder_mid_block: bool = True,
        decoder_inner_channels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=cast(Any, down_block_types),
            block_out_channels=cast(Any, block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=cast(Any, force_upcast),
        )
        decoder = TemporalDecoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            block_out_channels=cast(Any, tuple(reversed(decoder_channels))),
            layers_per_block=layers_per_block,
        )
        inner_channels = decoder_channels if decoder_inner_channels is None else decoder_inner_channels
        up_blocks = cast(Any, decoder.up_blocks)
        for block, layers, inner in zip(up_blocks, decoder_layers, inner_channels, strict=True):
            block.resnets = nn.ModuleList(list(block.resnets)[:layers])
            for resnet in block.resnets:
                narrow_inside(resnet.spatial_res_block, inner)
                narrow_inside(resnet.temporal_res_block, inner)
        if not decoder_mid_block:
            swap_modules(decoder, {"mid_block": DroppedBlock()})
        cast(Any, self).decoder = decoder
