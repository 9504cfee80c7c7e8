"""The batch of a recovery that is only rehearsed: the shapes of a family's latents and conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, Family, SamplingSettings
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.models.flops import unet_inputs


def meta_batch(family: Family, denoiser: Any, settings: SamplingSettings, clips: int) -> RecoveryBatch:
    """A batch of the right shapes without memory.

    Raises:
        ModelError: for a denoiser whose conditions are not known here.
    """
    height, width = settings.latent_size
    config: Any = getattr(denoiser, "config", {})
    if type(denoiser).__name__ in ARCHITECTURES:
        given = _of_transformer(denoiser, settings, clips)
    elif "cross_attention_dim" in config:
        given = _of_unet(denoiser, settings, clips)
    else:
        raise ModelError(
            f"the cost of recovering a {type(denoiser).__name__} is not known yet",
            fix="measure some steps with `vdmini distill --set distill.steps=5`",
        )
    frames = settings.latent_frames
    frames += -frames % (config.get("patch_size_t") or 1)  # CogVideoX 1.5 fills its tokens' frames
    shape = (clips, frames, config.out_channels, height, width)
    clean, noisy, renoise = (torch.zeros(shape, device="meta") for _ in range(3))
    level, renoise_level = (torch.zeros(clips, device="meta") for _ in range(2))
    return RecoveryBatch(clean, noisy, level, renoise, renoise_level, Conditions(given))


def _of_unet(denoiser: Any, settings: SamplingSettings, clips: int) -> dict[str, Tensor]:
    height, width = settings.latent_size
    inputs = unet_inputs(denoiser, settings.frames, height, width)

    def wide(one: Tensor) -> Tensor:
        return torch.zeros(clips, *one.shape[1:], device="meta")

    if hasattr(denoiser, "fps_embedding"):
        text = wide(inputs[2])
        numbers = {name: torch.zeros(clips, device="meta") for name in ("fps", "guidance")}
        seeds = torch.zeros(clips, dtype=torch.long, device="meta")
        return {"text": text, "negative_text": torch.zeros_like(text), **numbers, "seed": seeds}
    return {
        "image_latents": torch.zeros(clips, denoiser.config.out_channels, height, width, device="meta"),
        "image_embeds": wide(inputs[2]),
        "added_time_ids": wide(inputs[3]),
    }


def _of_transformer(denoiser: Any, settings: SamplingSettings, clips: int) -> dict[str, Tensor]:
    """Conditions by name; those that a family looks at have values."""
    name, config = type(denoiser).__name__, denoiser.config
    tokens = ARCHITECTURES[name].text_tokens
    if name == "CogVideoXTransformer3DModel":
        tokens = min(tokens, config.max_text_seq_length)
        text = torch.zeros(clips, tokens, config.text_embed_dim, device="meta")
        shift = torch.full((clips,), settings.flow_shift)
        seeds = torch.zeros(clips, dtype=torch.long, device="meta")
        return {"text": text, "negative_text": torch.zeros_like(text), "snr_shift": shift, "seed": seeds}
    if name == "LTXVideoTransformer3DModel":
        text = torch.zeros(clips, tokens, config.caption_channels, device="meta")
        mask = torch.ones(clips, tokens, dtype=torch.long)
        return {
            **{"text": text, "text_mask": mask},
            **{"negative_text": torch.zeros_like(text), "negative_text_mask": mask.clone()},
            "frame_rate": torch.full((clips,), settings.fps),
            "cell": torch.tensor([settings.frame_scale, settings.latent_scale]).repeat(clips, 1),
        }
    if "pooled_projection_dim" in config and "text_embed_dim" in config:  # HunyuanVideo
        return {
            "text": torch.zeros(clips, tokens, config.text_embed_dim, device="meta"),
            "text_mask": torch.ones(clips, tokens),  # looked at; a prompt of full length costs most
            "pooled": torch.zeros(clips, config.pooled_projection_dim, device="meta"),
            "guidance": torch.zeros(clips, device="meta"),
        }
    if "text_dim" in config and config.get("image_dim") is None:  # Wan
        text = torch.zeros(clips, tokens, config.text_dim, device="meta")
        return {"text": text, "negative_text": torch.zeros_like(text)}
    raise ModelError(
        f"the cost of recovering a {type(denoiser).__name__} is not known yet",
        fix="measure some steps with `vdmini distill --set distill.steps=5`",
    )
