"""The student that no stock config can express: SVD's U-Net minus any removable units.

`UNetSpatioTemporalPrunedModel` keeps the teacher's whole config plus `removed_units`, and the teacher's
module names for everything kept. What is gone is a weightless placeholder, so the stock forward runs
unchanged and zero removed units are the stock model bit by bit. Profiling bypasses units with the same
placeholders: what was measured is what surgery makes.

Skip connections (down level l, its up block k; `s` are the slots of the skip stack):

    D.l:  s0 = input -> pair.0 -> s1 -> pair.1 -> s2         removed pair: its slot holds its input
    U.k:  pair.0 takes s2, pair.1 takes s1, pair.2 takes s0  removed pair: pops its slot and drops it

A pair or mid block that loses its temporal sub-layer alone keeps its place and its skips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vdmini_core.models.narrow import narrow_places

DOWN_BLOCKS = (*("CrossAttnDownBlockSpatioTemporal",) * 3, "DownBlockSpatioTemporal")
UP_BLOCKS = ("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 3)


class DroppedResnet(nn.Module):
    """In place of a resnet: the hidden part of its input, or its 1x1 shortcut where channels change.

    Args:
        channels: hidden channels to pass on; an up pair's input (B*F, C, h, w) holds the skip behind them.
        shortcut: the resnet's own shortcut, for a bypass of a pair that changes channels.
    """

    def __init__(self, channels: int, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.channels, self.shortcut = channels, shortcut

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Any = None
    ) -> Tensor:
        """(B*F, C, h, w) -> (B*F, channels, h, w)."""
        if self.shortcut is not None:
            return self.shortcut(hidden_states)
        return hidden_states[:, : self.channels]


class DroppedAttention(nn.Module):
    """In place of a spatio-temporal transformer: its input, in the 1-tuple the blocks expect."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """(B*F, C, h, w) -> the same."""
        return (hidden_states,)


class DroppedTemporal(nn.Module):
    """In place of a temporal convolution, resnet or transformer block, or the frame number's embedding.

    In a spatio-temporal layer its output reaches nothing: a `DroppedMixer` comes after it.
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Hands its input on."""
        return hidden_states


class DroppedMixer(nn.Module):
    """In place of the mixer of a spatial and a temporal output: as if it gave the spatial one weight 1."""

    def forward(
        self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        """Two tensors of one shape -> the first."""
        return x_spatial


class DroppedBlock(nn.Module):
    """In place of the mid block."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B*F, C, h, w) -> the same."""
        return hidden_states


class DroppedInnerDown(nn.Module):
    """In place of the innermost down block; its one skip keeps the stock forward's book-keeping whole."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, tuple[Tensor]]:
        """(B*F, C, h, w) -> the same, and one skip that `DroppedInnerUp` pops."""
        return hidden_states, (hidden_states,)


class DroppedInnerUp(nn.Module):
    """In place of the innermost up block: pops `DroppedInnerDown`'s skip."""

    resnets = (None,)  # the stock forward pops as many skips as a block has resnets

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """(B*F, C, h, w) -> the same."""
        return hidden_states


class UNetSpatioTemporalPrunedModel(UNetSpatioTemporalConditionModel):
    """SVD's U-Net without `removed_units`, narrower in `inner_widths`; the rest is the teacher's own config.

    `DiffusionPipeline.from_pretrained` loads it after `import vdmini_core`.

    Args:
        removed_units: canonical unit names (`vdmini_core.models.removal.canonical_units`), teacher naming.
        inner_widths: dotted path of a resnet or feed-forward network -> its inner channels, where fewer than
            the teacher's (`vdmini_core.models.narrow`).
    """

    # model_index.json names a foreign class by its module; diffusers finds it there once that is imported.
    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = DOWN_BLOCKS,
        up_block_types: tuple[str, ...] = UP_BLOCKS,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = 2,
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: Any = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20),
        num_frames: int = 25,
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
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=cast(Any, layers_per_block),
            cross_attention_dim=cast(Any, cross_attention_dim),
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        from vdmini_core.models.removal import placeholders

        model = cast(Any, self)  # diffusers is untyped to the checker
        narrow_places(model, inner_widths)
        swap_modules(model, placeholders(model, removed_units))
        if self.inner_level_removed:
            model.num_upsamplers -= 1

    @property
    def inner_level_removed(self) -> bool:
        """Whether the innermost level (D.3, M, U.0) is gone with its resamplers."""
        return isinstance(cast(Any, self).down_blocks[-1], DroppedInnerDown)


def swap_modules(root: nn.Module, replacement: Mapping[str, nn.Module | None]) -> dict[str, nn.Module | None]:
    """Put each module of `replacement` at its dotted path and return what was there, to swap back."""
    before: dict[str, nn.Module | None] = {}
    for path, module in replacement.items():
        parent_path, _, name = path.rpartition(".")
        parent = root.get_submodule(parent_path)
        before[path] = getattr(parent, name)
        # `_modules` directly: the entry keeps its place, so the state dict's order does not change.
        parent._modules[name] = module
    return before


def build_on_meta(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    """A model of `cls` without memory for its weights."""
    with torch.device("meta"):
        model = cls.from_config(dict(config))
    return model.to("meta").eval()  # some scalars are created by hand and ignore the default device
