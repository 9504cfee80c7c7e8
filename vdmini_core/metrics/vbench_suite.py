"""What a VBench suite asks for: prompts, the dimensions they are scored on, and first frames."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from vdmini_core.data.images import open_image
from vdmini_core.errors import DataError
from vdmini_core.foreign import parse_json
from vdmini_core.metrics.vbench_results import DIMENSIONS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_RATIO = re.compile(r"([1-9]\d*)-([1-9]\d*)")


@dataclass(frozen=True)
class Entry:
    """One prompt of a suite.

    Attributes:
        prompt: text, which is also the stem of the file names.
        dimensions: what VBench scores with it; empty where the suite does not say.
        image: file name of the first frame; None: named after the prompt.
    """

    prompt: str
    dimensions: tuple[str, ...] = ()
    image: str | None = None


def read_suite(path: Path, kind: str) -> list[Entry]:
    """Prompts of a suite in its order, each once.

    A prompt that several entries name is one entry with all their dimensions, for its videos are the same
    files. A text file's prompts are stripped; its name says their dimension where it is one of VBench's
    (`prompts_per_dimension/temporal_flickering.txt`).

    Args:
        path: `.json`: a list of {`prompt_en`, `dimension`, for `i2v` `image_name`}, as VBench ships it;
            anything else: text, one prompt a line.
        kind: `i2v` or `t2v`.

    Raises:
        DataError: naming file and entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = parse_json(text) if path.suffix.lower() == ".json" else None
    except (OSError, ValueError) as error:
        raise DataError(
            f"the suite {path} cannot be read",
            expected="VBench's full_info JSON, or a text file with one prompt a line",
            found=str(error),
        ) from None
    if data is None:
        dimensions = (path.stem,) if path.stem in DIMENSIONS[kind] else ()
        found = [Entry(line.strip(), dimensions) for line in text.split("\n") if line.strip()]
    elif isinstance(data, list):
        found = [_entry(item, number, path, kind) for number, item in enumerate(data)]
    else:
        found = []
    if not found:
        raise DataError(f"the suite {path} holds no prompts", expected="a list of prompts")
    return _merged(found, path)


def _entry(item: Any, number: int, path: Path, kind: str) -> Entry:
    fields = item if isinstance(item, dict) else {}
    prompt, dimensions, image = (fields.get(key) for key in ("prompt_en", "dimension", "image_name"))
    good = isinstance(prompt, str) and prompt and isinstance(dimensions, list)
    good = good and all(isinstance(name, str) for name in dimensions or ())
    if kind == "i2v":
        good = good and isinstance(image, str) and Path(image).name == image
    if not good:
        wanted = "`prompt_en` (text), `dimension` (a list of names)"
        raise DataError(
            f"entry {number} of the suite {path} is not as VBench writes it",
            expected=wanted + (", `image_name` (a file name)" if kind == "i2v" else ""),
            found=json.dumps(item)[:200],
        )
    return Entry(str(prompt), tuple(dimensions or ()), image if kind == "i2v" else None)


def _merged(entries: Sequence[Entry], path: Path) -> list[Entry]:
    by_prompt: dict[str, Entry] = {}
    for entry in entries:
        known = by_prompt.get(entry.prompt, entry)
        if known.image != entry.image:
            raise DataError(
                f"the suite {path} names two images for one prompt, whose videos would share their names",
                found=f"{entry.prompt!r}: {known.image}, {entry.image}",
                fix="give one of them another prompt, or take it out",
            )
        together = tuple(dict.fromkeys((*known.dimensions, *entry.dimensions)))
        by_prompt[entry.prompt] = Entry(entry.prompt, together, entry.image)
    return list(by_prompt.values())


def image_folder(images: Path, size: tuple[int, int] | None) -> Path:
    """The folder of first frames: `images`, or the one of its ratio folders nearest to `size`.

    Args:
        images: a folder of images, or VBench-I2V's `crop` with `1-1`, `8-5`, `7-4`, `16-9` (width-height).
        size: height and width.

    Raises:
        DataError: when it is not there, or holds ratios and no size is given.
    """
    if not images.is_dir():
        raise DataError(
            "the folder of first frames is not there",
            found=str(images),
            fix="set evaluate.vbench.images to it",
        )
    ratios = {
        path: int(found[1]) / int(found[2])
        for path in sorted(images.iterdir())
        if path.is_dir() and (found := _RATIO.fullmatch(path.name))
    }
    if not ratios:
        return images
    if size is None:
        raise DataError(
            "the folder of first frames holds several ratios",
            expected="the height and width of the videos, or one of its folders",
            found=", ".join(path.name for path in ratios),
        )
    wanted = math.log(size[1] / size[0])
    return min(ratios, key=lambda path: abs(math.log(ratios[path]) - wanted))


def find_images(folder: Path, entries: Sequence[Entry]) -> list[Path]:
    """The first frame of every entry.

    Raises:
        DataError: naming the first that are missing, or two images of one prompt.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            by_stem.setdefault(path.stem, []).append(path)
    found, missing = [], []
    for entry in entries:
        paths = by_stem.get(entry.prompt, []) if entry.image is None else [folder / entry.image]
        if len(paths) > 1:
            raise DataError(
                f"several images are named after one prompt in {folder}",
                expected="one of .jpg, .jpeg, .png",
                found=", ".join(path.name for path in paths),
            )
        if paths and paths[0].is_file():
            found.append(paths[0])
        else:
            missing.append(entry.image or f"{entry.prompt}.jpg")
    if missing:
        raise DataError(
            f"{len(missing)} first frames of the suite are not in {folder}",
            found="; ".join(missing[:3]),
            fix="give VBench-I2V's `crop` folder, or images named after the prompts",
        )
    return found


def read_first_frame(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """An image scaled and cropped about its centre: uint8 (height, width, 3).

    Raises:
        DataError: when it is no image.
    """
    return np.array(ImageOps.fit(open_image(path, str(path)), (width, height)))
