"""Whether a teacher can sample clips of a size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError

if TYPE_CHECKING:
    from vdmini_core.models.base import SamplingSettings

SMALLEST_LATENT = 8  # cells; below it the innermost level sees a single cell


def check_fit(pipeline: Any, settings: SamplingSettings) -> None:
    """Refuse a clip size that this teacher cannot sample.

    Raises:
        ModelError: not a whole number of latent cells, or too few of them.
    """
    from vdmini_core.models.frames import check_frames

    check_frames(settings, "prepare.frames")
    scale = settings.latent_scale * _patch(pipeline)
    least = min(SMALLEST_LATENT, _cells(pipeline))
    for name, pixels in (("height", settings.height), ("width", settings.width)):
        if pixels % scale:
            raise ModelError(
                f"prepare.{name} does not fit the teacher",
                expected=f"a multiple of {scale}, the teacher's pixels per latent cell",
                found=str(pixels),
                fix=f"set prepare.{name} to {max(pixels // scale, least) * scale}",
            )
        if pixels // scale < least:
            raise ModelError(
                f"prepare.{name} is too small for the teacher",
                expected=f"at least {least * scale} pixels ({least} latent cells of {scale})",
                found=f"{pixels} pixels",
                fix=f"set prepare.{name} to {least * scale} or more",
            )


def _patch(pipeline: Any) -> int:
    """Latent cells a side of one token, where the denoiser has tokens."""
    from vdmini_core.models.dit.arguments import patch_of

    return 1 if hasattr(pipeline, "unet") else patch_of(pipeline.transformer.config)[1]


def _cells(pipeline: Any) -> int:
    """Latent cells a side the pipeline itself is made for, where that is fewer than the usual least."""
    if not hasattr(pipeline, "unet"):
        return 1  # a transformer sees a single token as well
    size = pipeline.unet.config.sample_size
    if size is None:
        return SMALLEST_LATENT
    return size if isinstance(size, int) else min(size)
