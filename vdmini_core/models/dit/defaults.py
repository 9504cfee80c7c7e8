"""How flow-matching pipelines want to be sampled, from the configs of autoencoder and scheduler alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdmini_core.models.base import SamplingSettings

# As the stock calls default: Wan 2.1, HunyuanVideo, CogVideoX, LTX-Video.
WAN_DEFAULTS = {"frames": 81, "height": 480, "width": 832, "fps": 16.0, "steps": 50, "guidance": 5.0}
HUNYUAN_DEFAULTS = {"frames": 129, "height": 720, "width": 1280, "fps": 24.0, "steps": 50, "guidance": 6.0}
COGVIDEOX_DEFAULTS = {"steps": 50, "guidance": 6.0}
LTX_DEFAULTS = {"frames": 161, "height": 512, "width": 704, "fps": 25.0, "steps": 50, "guidance": 3.0}


def flow_settings(
    vae: Mapping[str, Any], scheduler: Mapping[str, Any], denoiser: Mapping[str, Any]
) -> SamplingSettings | None:
    """Settings of a video autoencoder's pipeline; None for an autoencoder of frames."""
    found: dict[str, Any]
    if "scale_factor_temporal" in vae:
        found = WAN_DEFAULTS | _scales(vae["scale_factor_spatial"], vae["scale_factor_temporal"])
    elif "spatio_temporal_scaling" in vae:
        found = _ltx(vae, scheduler)
    elif "spatial_compression_ratio" in vae:
        scales = _scales(vae["spatial_compression_ratio"], vae["temporal_compression_ratio"])
        found = HUNYUAN_DEFAULTS | scales
    elif "temporal_compression_ratio" in vae:
        found = _cogvideox(vae, denoiser)
    else:
        return None
    if scheduler.get("use_dynamic_shifting"):  # by the number of tokens instead
        return SamplingSettings(**found)
    keys = ("flow_shift", "shift", "snr_shift_scale")
    shift = next((float(scheduler[key]) for key in keys if scheduler.get(key)), 1.0)
    return SamplingSettings(**found, flow_shift=shift)


def _scales(side: int, frames: int) -> dict[str, int]:
    return {"latent_scale": side, "frame_scale": frames}


def _cogvideox(vae: Mapping[str, Any], denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """Frames and size as the transformer's config says; 8 frames a second, of CogVideoX 1.5 twice as many."""
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        **COGVIDEOX_DEFAULTS,
        **_scales(scale, vae["temporal_compression_ratio"]),
        "frames": denoiser["sample_frames"],
        "height": denoiser["sample_height"] * scale,
        "width": denoiser["sample_width"] * scale,
        "fps": 16.0 if denoiser.get("patch_size_t") else 8.0,
    }


def _ltx(vae: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    halvings = 2 ** sum(vae["spatio_temporal_scaling"])
    side = vae.get("spatial_compression_ratio") or vae["patch_size"] * halvings
    frames = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * halvings
    base, slope = token_shift(scheduler) if scheduler.get("use_dynamic_shifting") else (0.0, 0.0)
    return {**LTX_DEFAULTS, **_scales(side, frames), "log_shift": base, "log_shift_per_token": slope}


def token_shift(scheduler: Mapping[str, Any]) -> tuple[float, float]:
    """Logarithm of the shift at no token, and what a token adds: a line through the config's two points."""
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return low - slope * few, slope
