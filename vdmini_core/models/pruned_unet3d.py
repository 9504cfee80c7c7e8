"""Students of ModelScope's and I2VGen-XL's U-Nets: the stock classes minus any removable units.

Their blocks are those of `UNet3DFpsConditionModel`, whose names and placeholders they share; see
`pruned_unet` for what removed means. The stock configs count the same number of layers at every level and
cannot express a cut, so that a student is always one of these.
"""

from __future__ import annotations

from typing import Any, cast

from diffusers import I2VGenXLUNet, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config

from vdmini_core.models.fps_unet import DOWN_BLOCKS, UP_BLOCKS, take_out


class UNet3DPrunedModel(UNet3DConditionModel):
    """ModelScope's U-Net (and ZeroScope's) without `removed_units`; the rest is the teacher's own config.

    Args:
        removed_units: canonical unit names (`vdmini_core.models.removal.canonical_units`), teacher naming.
        inner_widths: dotted path of a resnet or feed-forward network -> its inner channels, where fewer than
            the teacher's (`vdmini_core.models.narrow`).
    """

    # A config names a foreign class by its module; diffusers finds it there once that is imported.
    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = DOWN_BLOCKS,
        up_block_types: tuple[str, ...] = UP_BLOCKS,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_attention_heads: int | None = None,
        time_cond_proj_dim: int | None = None,
        removed_units: tuple[str, ...] = (),
        inner_widths: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            downsample_padding=downsample_padding,
            mid_block_scale_factor=mid_block_scale_factor,
            act_fn=act_fn,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        take_out(self, removed_units, inner_widths)


class I2VGenXLPrunedUNet(I2VGenXLUNet):
    """I2VGen-XL's U-Net without `removed_units`; arguments as of `UNet3DPrunedModel`."""

    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = DOWN_BLOCKS,
        up_block_types: tuple[str, ...] = UP_BLOCKS,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int | None = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | tuple[int, ...] = 64,
        num_attention_heads: int | tuple[int, ...] | None = None,
        removed_units: tuple[str, ...] = (),
        inner_widths: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=cast(Any, attention_head_dim),
            num_attention_heads=cast(Any, num_attention_heads),
        )
        take_out(self, removed_units, inner_widths)


# Stock class -> the class of its students.
STUDENTS: dict[Any, Any] = {UNet3DConditionModel: UNet3DPrunedModel, I2VGenXLUNet: I2VGenXLPrunedUNet}
