"""VDMini's core: profiling, planning, surgery, ICMD recovery and video metrics for video diffusion models.

It needs torch, diffusers and transformers, and no orchestrator. Importing it also makes the thin
student classes known to `diffusers`, so that `DiffusionPipeline.from_pretrained` finds them.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# diffusers resolves "vdmini_core" in a model_index.json only from a module that is already imported and
# whose top level shows ModelMixin; both are resolved lazily so that a light import stays light.
_LAZY = {
    "ModelMixin": ("diffusers", "ModelMixin"),
    "SchedulerMixin": ("diffusers", "SchedulerMixin"),
    "AutoencoderKLTemporalPrunedDecoder": (
        "vdmini_core.models.pruned_vae",
        "AutoencoderKLTemporalPrunedDecoder",
    ),
    "UNetSpatioTemporalPrunedModel": ("vdmini_core.models.pruned_unet", "UNetSpatioTemporalPrunedModel"),
    "UNet3DPrunedModel": ("vdmini_core.models.pruned_unet3d", "UNet3DPrunedModel"),
    "I2VGenXLPrunedUNet": ("vdmini_core.models.pruned_unet3d", "I2VGenXLPrunedUNet"),
    "UNet3DFpsConditionModel": ("vdmini_core.models.fps_unet", "UNet3DFpsConditionModel"),
    "ConsistencyScheduler": ("vdmini_core.models.t2v_schedulers", "ConsistencyScheduler"),
    "RescaledDDIMScheduler": ("vdmini_core.models.t2v_schedulers", "RescaledDDIMScheduler"),
    "VideoCrafterPipeline": ("vdmini_core.models.t2v_pipeline", "VideoCrafterPipeline"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
