"""VideoCrafter2's and T2V-Turbo-v2's U-Net: ModelScope's (`UNet3DConditionModel`) told the frame rate too.

The stock class does all the work; what it lacks is here: an embedding of the frame rate added to that of
the timestep, and the projections of T2V-Turbo-v2's guidance embeddings, in the order

    c = cond_proj(timestep_cond)                        where it is given, else 0
    c = combine_proj(cat(c, motion_proj(motion_cond)))  where that is given
    embedding = mlp(sinusoid(timestep) + c) + fps_embedding(sinusoid(fps))

Shape letters: B batch, F frames, C channels, h w latent sides, N text tokens, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from vdmini_core.errors import ModelError
from vdmini_core.models import removal, topology
from vdmini_core.models.narrow import narrow_places
from vdmini_core.models.pruned_unet import swap_modules
from vdmini_core.models.recomputed import recompute_layers

DOWN_BLOCKS = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D")
UP_BLOCKS = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3)


@dataclass(frozen=True)
class TimeConditions:
    """What is embedded beside the timestep: the projected frame rate (B, E) and the guidance embeddings."""

    fps: Tensor
    guidance: Tensor | None
    motion: Tensor | None


class ConditionedTimeEmbedding(TimestepEmbedding):
    """The stock embedding of the timestep with the other conditions of this family added to it.

    Args:
        channels: of the sinusoid.
        width: of the embedding.
        act_fn: its activation.
        guidance_channels: of `timestep_cond`; None: there is none.
        motion_channels: of `motion_cond`; None: there is none.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        act_fn: str = "silu",
        guidance_channels: int | None = None,
        motion_channels: int | None = None,
    ) -> None:
        super().__init__(channels, width, act_fn=act_fn, cond_proj_dim=guidance_channels)
        if motion_channels is not None:
            self.motion_proj = nn.Linear(motion_channels, channels, bias=False)
            self.combine_proj = nn.Linear(2 * channels, channels, bias=False)

    def forward(self, sample: Tensor, condition: TimeConditions) -> Tensor:
        """(B, channels) and what comes with it -> (B, width)."""
        if condition.guidance is not None:
            projected = cast(Any, self).cond_proj(condition.guidance.to(sample.dtype))
            if condition.motion is not None:
                motion = self.motion_proj(condition.motion.to(sample.dtype))
                projected = self.combine_proj(torch.cat([projected, motion], dim=1))
            sample = sample + projected
        return super().forward(sample) + condition.fps


def take_out(model: Any, removed_units: tuple[str, ...], inner_widths: dict[str, int] | None) -> None:
    """Narrow and remove in place, as the config of a U-Net of ModelScope's structure says."""
    narrow_places(model, inner_widths)
    swap_modules(model, removal.placeholders(model, removed_units))
    if not topology.inner_present(model):
        model.num_upsamplers -= 1


class UNet3DFpsConditionModel(UNet3DConditionModel):
    """`UNet3DConditionModel` with an embedding of the frame rate and, where asked for, of guidance scales.

    `DiffusionPipeline.from_pretrained` loads it after `import vdmini_core`. All arguments but the
    last three are the stock class's own.

    Args:
        motion_cond_proj_dim: width of the embedding of the motion guidance scale (T2V-Turbo-v2); None: none.
        removed_units: canonical names of units that are not there (`vdmini_core.models.removal`); what is
            kept has the whole model's module names, what is gone is a weightless placeholder.
        inner_widths: dotted path of a resnet or feed-forward network -> its inner channels, where fewer than
            the whole model's (`vdmini_core.models.narrow`).
    """

    # model_index.json names a foreign class by its module; diffusers finds it there once that is imported.
    __module__ = "vdmini_core"
    _supports_gradient_checkpointing = True

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
        motion_cond_proj_dim: int | None = None,
        removed_units: tuple[str, ...] = (),
        inner_widths: dict[str, int] | None = None,
    ) -> None:
        if motion_cond_proj_dim is not None and time_cond_proj_dim is None:
            raise ModelError(
                "a U-Net told the motion guidance scale must be told the guidance scale too",
                expected="time_cond_proj_dim beside motion_cond_proj_dim",
                found=f"motion_cond_proj_dim {motion_cond_proj_dim} alone",
            )
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
        width = block_out_channels[0]
        model = cast(Any, self)  # diffusers is untyped to the checker
        model.time_embedding = ConditionedTimeEmbedding(
            width, 4 * width, act_fn, time_cond_proj_dim, motion_cond_proj_dim
        )
        model.fps_embedding = TimestepEmbedding(width, 4 * width, act_fn=act_fn)
        take_out(model, removed_units, inner_widths)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        fps: Tensor | float | int = 16,
        timestep_cond: Tensor | None = None,
        motion_cond: Tensor | None = None,
        return_dict: bool = True,
        **stock: Any,
    ) -> Any:
        """Predicted noise.

        Args:
            sample: noisy latents (B, C, F, h, w).
            timestep: training timestep, one for all or (B,).
            encoder_hidden_states: text (B, N, D).
            fps: frame rate, one for all or (B,).
            timestep_cond: embedding of the guidance scale (B, time_cond_proj_dim), see `guidance_embedding`.
            motion_cond: embedding of the motion guidance scale (B, motion_cond_proj_dim).
            return_dict: False gives the plain 1-tuple.
            stock: further arguments of the stock class.

        Returns:
            `UNet3DConditionOutput` whose `sample` is (B, C, F, h, w).

        Raises:
            ModelError: for an embedding this model does not take, or a motion scale without a guidance scale.
        """
        self._check_conditions(timestep_cond, motion_cond)
        model = cast(Any, self)
        rates = torch.as_tensor(fps, device=sample.device).expand(sample.shape[0])
        embedded = model.fps_embedding(model.time_proj(rates).to(model.dtype))
        # The stock forward hands `timestep_cond` to `time_embedding` untouched: the one way in that it has.
        conditions = TimeConditions(embedded, timestep_cond, motion_cond)
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=cast(Any, conditions),
            return_dict=return_dict,
            **stock,
        )

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Resnets and temporal convolutions are computed twice too; the stock class knows attention alone."""
        recompute_layers(self)
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    def _check_conditions(self, guidance: Tensor | None, motion: Tensor | None) -> None:
        config = cast(Any, self).config
        for name, given, width in (
            ("timestep_cond", guidance, config.time_cond_proj_dim),
            ("motion_cond", motion, config.motion_cond_proj_dim),
        ):
            if given is not None and (width is None or given.shape[-1] != width):
                raise ModelError(
                    f"`{name}` does not fit this U-Net",
                    expected="none" if width is None else f"shape (batch, {width})",
                    found=f"shape {tuple(given.shape)}",
                )
        if motion is not None and guidance is None:
            raise ModelError(
                "`motion_cond` needs `timestep_cond` beside it", found="motion_cond alone", fix="give both"
            )


def guidance_embedding(scale_B: Tensor, width: int = 256) -> Tensor:
    """Embedding of guidance scales as T2V-Turbo-v2 was trained with: sin(1000 w f), then cos.

    f falls geometrically from 1 to 1/10000 over the half width, rounded to float32 as in training: the
    arguments go up to 14000 rad, where the last bit of f moves the values by up to 1e-3. Libraries differ in
    that bit of exp; here it is the correctly rounded one, the same on every machine.

    Args:
        scale_B: guidance scales, or motion guidance scales (B,).
        width: of the embedding, even.

    Returns:
        float32 (B, width).
    """
    half = width // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    exponents = torch.arange(half, dtype=torch.float32) * -step
    frequencies = exponents.double().exp().float().to(scale_B.device)
    angles = (scale_B.float() * 1000.0)[:, None] * frequencies[None, :]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
