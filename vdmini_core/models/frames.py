"""Numbers of frames that a model makes: one latent frame for the first, one for every `frame_scale` more."""

from __future__ import annotations

from vdmini_core.errors import ModelError
from vdmini_core.models.base import SamplingSettings


def check_frames(settings: SamplingSettings, name: str) -> None:
    """Refuse a number of frames that is not a whole number of latent frames.

    Args:
        settings: with `frames`, and the model's `frame_scale`.
        name: what sets the number, for the message: `prepare.frames`, `--frames`.

    Raises:
        ModelError: naming the next larger number that fits.
    """
    rest = (settings.frames - 1) % settings.frame_scale
    if rest:
        raise ModelError(
            f"{name} does not fit the model",
            expected=f"1 more than a multiple of {settings.frame_scale}, the frames in one latent frame",
            found=str(settings.frames),
            fix=f"set {name} to {settings.frames - rest + settings.frame_scale}",
        )
