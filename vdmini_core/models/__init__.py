"""models of the core."""

from vdmini_core.models.denoiser import load_denoiser

__all__ = ["load_denoiser"]
