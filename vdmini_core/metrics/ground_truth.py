"""Errors against the known truth of procedural clips: where sprites are, and what they look like.

No network judges: the sprite's own pixels, cut from the real frame at its true centre, are looked for in the
generated frame. How far they have to be shifted is the motion error, what still differs there the content
error. These are the reference measures that the learned and the hand-made metrics are held against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdmini_core.errors import DataError

REACH = 12  # pixels a sprite is looked for on each side of its true place; farther counts as REACH
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


def sprite_errors(
    made: NDArray[np.uint8], real: NDArray[np.uint8], truth: Mapping[str, Any]
) -> dict[str, Any]:
    """Errors of every clip.

    Args:
        made: generated clips (n, F, H, W, 3) uint8.
        real: the true clips of the same first frames, same shape.
        truth: `sprite_count` (n,), `sprite_centres` (n, S, F, 2) pixels as (x, y), `sprite_visible`
            (n, S, F), `sprite_radii` (n, S) pixels, as `prepare` writes them.

    Returns:
        Per clip, float64 (n,), NaN where no sprite can be seen after the first frame:
        `trajectory_error`: pixels between true and found place, mean over frames and sprites;
        `colour_error`: distance of the mean RGB (0..1) of the sprite found and the true one;
        `shape_error`: what differs in the patch found once its mean colour is put right, as a share of
        the true patch's own deviation from its mean colour (1: nothing of the sprite's pattern is left).

    Raises:
        DataError: on different shapes.
    """
    if made.shape != real.shape or made.dtype != np.uint8 or real.dtype != np.uint8:
        raise DataError(
            "generated and real clips must have one shape, uint8",
            expected=f"{real.shape} {real.dtype}",
            found=f"{made.shape} {made.dtype}",
        )
    names = ("trajectory_error", "colour_error", "shape_error")
    table = [
        _clip_errors(made[i], real[i], {k: np.asarray(v)[i] for k, v in truth.items()})
        for i in range(len(made))
    ]
    columns = np.array(table, np.float64).reshape(len(made), len(names))
    return dict(zip(names, columns.T, strict=True))


def _clip_errors(
    made_FHWC: NDArray[np.uint8], real_FHWC: NDArray[np.uint8], truth: Mapping[str, Any]
) -> Floats:
    found = []
    for sprite in range(int(truth["sprite_count"])):
        radius = int(np.floor(truth["sprite_radii"][sprite]))
        for frame in range(1, len(real_FHWC)):
            x, y = np.rint(truth["sprite_centres"][sprite, frame] - 0.5).astype(int)
            height, width = real_FHWC.shape[1:3]
            inside = radius <= x < width - radius and radius <= y < height - radius
            if inside and truth["sprite_visible"][sprite, frame]:
                found.append(_patch_errors(made_FHWC[frame] / 255, real_FHWC[frame] / 255, x, y, radius))
    return np.mean(found, axis=0) if found else np.full(3, np.nan)


def _patch_errors(
    made_HWC: Floats, real_HWC: Floats, x: int, y: int, radius: int
) -> tuple[float, float, float]:
    """Look for the real sprite around its place; errors as `sprite_errors` names them."""
    axis = np.arange(-radius, radius + 1)
    disc = axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2
    template = real_HWC[y - radius : y + radius + 1, x - radius : x + radius + 1][disc]
    costs = _costs(made_HWC, template, disc, x, y, radius)
    row, column = (int(place) for place in np.unravel_index(int(np.argmin(costs)), costs.shape))
    across = column - REACH + _vertex(costs[row], column)
    down = row - REACH + _vertex(costs[:, column], row)
    top, left = y + row - REACH - radius, x + column - REACH - radius
    patch = made_HWC[top : top + len(axis), left : left + len(axis)][disc]
    colour, deviation = template.mean(axis=0), template - template.mean(axis=0)
    rest = (patch - patch.mean(axis=0)) - deviation
    shape = float(np.sqrt((rest**2).sum() / max((deviation**2).sum(), 1e-12)))
    distance = min(float(np.hypot(across, down)), REACH)
    return distance, float(np.linalg.norm(patch.mean(axis=0) - colour)), shape


def _costs(
    made_HWC: Floats, template: Floats, disc: NDArray[np.bool_], x: int, y: int, radius: int
) -> Floats:
    """Mean squared difference of the template at every shift (2 REACH + 1,) * 2; infinite outside the frame.

    Mean colours are put right first: a pale sprite in the right place has moved rightly.
    """
    side = 2 * radius + 1
    padded = np.pad(made_HWC, ((REACH, REACH), (REACH, REACH), (0, 0)), constant_values=np.nan)
    area = padded[y - radius : y + radius + 1 + 2 * REACH, x - radius : x + radius + 1 + 2 * REACH]
    windows = np.lib.stride_tricks.sliding_window_view(area, (side, side), axis=(0, 1))
    patches = windows.transpose(0, 1, 3, 4, 2)[:, :, disc]
    centred = patches - patches.mean(axis=2, keepdims=True)
    costs = ((centred - (template - template.mean(axis=0))) ** 2).mean(axis=(2, 3))
    return np.where(np.isfinite(costs), costs, np.inf)


def _vertex(costs: Floats, at: int) -> float:
    """Where the parabola through a least cost and its neighbours has its lowest point, in -0.5..0.5."""
    if not 0 < at < len(costs) - 1:
        return 0.0
    left, middle, right = costs[at - 1], costs[at], costs[at + 1]
    bend = left - 2 * middle + right
    if not np.isfinite(bend) or bend <= 1e-12:
        return 0.0
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
