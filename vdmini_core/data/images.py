"""Pictures from outside: PNG or JPEG, of a bounded size, and no other kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from vdmini_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads many more kinds, some by starting other programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 64 * 2**20  # as RGB 192 MiB; an 8K frame has 33 million


def open_image(source: Path | IO[bytes], name: str) -> Image:
    """A picture, upright, in RGB; its size is looked at before its pixels are unpacked.

    Args:
        source: a file or its bytes.
        name: what to call it in errors.

    Raises:
        DataError: when it is no PNG or JPEG, damaged, or has too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{name} is too large for a first frame",
                    expected=f"at most {MOST_PIXELS:,} pixels",
                    found=f"{image.width} x {image.height}",
                    fix="make it smaller: it is scaled to the size of the video anyway",
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} cannot be read as an image", found=str(error)[:200], fix="give a PNG or JPEG"
        ) from None
