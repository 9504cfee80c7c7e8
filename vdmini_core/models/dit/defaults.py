"""How flow-matching pipelines want to be sampled, from the configs of autoencoder and scheduler alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdmini_core.models.base import SamplingSettings

# As the stock calls default: Wan 2.1 and HunyuanVideo.
WAN_DEFAULTS = {"frames": 81, "height": 480, "width": 832, "fps": 16.0, "steps": 50, "guidance": 5.0}
HUNYUAN_DEFAULTS = {"frames": 129, "height": 720, "width": 1280, "fps": 24.0, "steps": 50, "guidance": 6.0}


def flow_settings(vae: Mapping[str, Any], scheduler: Mapping[str, Any]) -> SamplingSettings | None:
    """Settings of a video autoencoder's pipeline; None for an autoencoder of frames."""
    if "scale_factor_temporal" in vae:
        defaults, scales = WAN_DEFAULTS, (vae["scale_factor_spatial"], vae["scale_factor_temporal"])
    elif "temporal_compression_ratio" in vae:
        defaults, scales = (
            HUNYUAN_DEFAULTS,
            (vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]),
        )
    else:
        return None
    shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)
    return SamplingSettings(
        **defaults,  # type: ignore[arg-type]
        latent_scale=scales[0],
        frame_scale=scales[1],
        flow_shift=shift,
    )
