"""How VBench finds videos and images, told again from its sources (Vchitect/VBench at 45e79ec).

Independent of the writer on purpose: `VBench.build_full_info_json`, `load_i2v_dimension_info`,
`get_prompt_from_filename` and `static_filter.py`.
"""

from __future__ import annotations

import re
from pathlib import Path


def names_in(folder: Path) -> list[str]:
    """As the directory lists them: in no order."""
    return [path.name for path in folder.iterdir()]


def standard(folder: Path, full_info: list[dict], dimension: str) -> dict[str, list[str]]:
    """Prompt -> videos found for one dimension of the standard prompt suite."""
    listed = names_in(folder)
    suffix = Path(listed[0]).suffix
    return {
        entry["prompt_en"]: [
            name for i in range(5) if (name := f"{entry['prompt_en']}-{i}{suffix}") in listed
        ]
        for entry in full_info
        if dimension in entry["dimension"]
    }


def first_frame(crop: Path, ratio: str, entry: dict) -> Path:
    """The image VBench-I2V compares a video with."""
    return crop / ratio / entry["image_name"]


def prompt_of(name: str) -> str:
    return re.sub(r"-\d+$", "", Path(name).stem)


def custom_pairs(folder: Path, images: Path) -> dict[str, Path]:
    """Video -> image in mode `custom_input`; a video without an image is an error there."""
    pictures = [path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    by_name = {path.stem: path for path in pictures}
    videos = [name for name in names_in(folder) if Path(name).suffix.lower() in (".mp4", ".gif")]
    return {name: by_name[prompt_of(name)] for name in videos}


def still_candidates(folder: Path, full_info: list[dict]) -> dict[str, int]:
    """Prompt of `temporal_flickering` -> videos its static filter looks at."""
    counts = {e["prompt_en"]: 0 for e in full_info if "temporal_flickering" in e["dimension"]}
    for path in folder.glob("*.mp4"):
        if prompt_of(path.name) in counts:
            counts[prompt_of(path.name)] += 1
    return counts
