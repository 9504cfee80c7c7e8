"""Pictures of the mini teacher: contact sheet of the clips, strips of samples, and what cuts do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vdmini_core.artifacts import read_json
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.data.scene import Level
from vdmini_core.models.registry import family_of
from vdmini_core.teacher import bypass
from vdmini_core.teacher.export import load_exported
from vdmini_core.teacher.measure import interleaved, sample_clips, write_strips

STRIPS, CUT_CLIPS, SHEET_ROWS = 12, 3, 4
Cut = Literal["teacher", "D.2", "U.1", "paper"]
Floats = NDArray[np.float32]


def make_pictures(directory: Path, target: Path) -> dict[str, float]:
    """Write `teacher-clips.png`, `teacher-strips.png` and `teacher-cuts.png` into `target`.

    Returns the squared error in pixels (0..1) of each cut on the clips of `teacher-cuts.png`, divided by that
    of repeating the first frame: `teacher` whole, the second pair of `D.2` and of `U.1` left out, and the
    whole recipe of the `paper` (Sec. 3.2) without recovery.
    """
    pipeline, arguments = load_exported(directory), read_json(directory / "vdmini.json")
    size = (arguments["num_frames"], arguments["height"], arguments["width"])
    rows = [clip for level in get_args(Level) for clip in _clips(size, level, SHEET_ROWS)]
    write_strips(target / "teacher-clips.png", rows)
    real = _clips(size, "normal", STRIPS)
    bytes_uint8 = (real * 255).round().astype(np.uint8)
    made = sample_clips(pipeline, bytes_uint8, arguments)
    write_strips(target / "teacher-strips.png", interleaved(real, made))
    shown: dict[str, Floats] = {"teacher": made[:CUT_CLIPS]}
    for cut in get_args(Cut)[1:]:
        with _cut(pipeline, cut):
            shown[cut] = sample_clips(pipeline, bytes_uint8[:CUT_CLIPS], arguments)
    real = real[:CUT_CLIPS]
    rows = [clips[i] for i in range(CUT_CLIPS) for clips in (real, *shown.values())]
    write_strips(target / "teacher-cuts.png", rows)
    copied = ((real[:, :1] - real) ** 2).mean()
    return {cut: round(float(((clips - real) ** 2).mean() / copied), 4) for cut, clips in shown.items()}


def _clips(size: tuple[int, int, int], level: Level, count: int) -> Floats:
    clips = render_clips(ProceduralSpec(*size, level=level), split_seeds("test", count, 0))
    return (clips / 255).astype(np.float32)


@contextmanager
def _cut(pipeline: Any, cut: str) -> Iterator[None]:
    """The pipeline without a pair, or with the student of the paper's recipe in place of its U-Net."""
    if cut != "paper":
        with bypass.without_pair(pipeline.unet, cut, 1):
            yield
        return
    family, teacher = family_of(pipeline), pipeline.unet
    pipeline.register_modules(unet=family.prune(copy.deepcopy(teacher), family.paper_cut(teacher)))
    try:
        yield
    finally:
        pipeline.register_modules(unet=teacher)
