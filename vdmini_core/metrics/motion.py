"""Motion statistics without training: block-matching flow on locally normalised brightness, as histograms.

Like FVMD (Liu et al. 2024), velocities and accelerations are binned and colour and texture are forgotten.
A frame difference reacts hugely to pixel noise; here frames are smoothed and normalised by their local
mean and contrast first, so that a colour shift, a blur or static noise changes little.

Shape letters: B clips, F frames, P = F - 1 pairs of frames, h w matching cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.metrics.filters import gaussian_filter

SIDE = 64  # pixels of the frames that come in
REACH = 5  # search radius in half-resolution pixels, so 10 pixels of a 64-pixel frame
PATCH = 7
STRIDE = 2
BINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)  # speeds, pixels per frame at 64 pixels
DIRECTIONS = 8
TIME_BINS = 4
DIM = 2 * len(BINS) + DIRECTIONS + 2 * TIME_BINS + 6
_GREY = (0.299, 0.587, 0.114)
_SMOOTH, _LOCAL, _CONTRAST_FLOOR = 1.5, 4.0, 0.02


def motion_features(clips_BCFHW: Tensor) -> Tensor:
    """Clips (B, 3, F, 64, 64) in [0, 1], F >= 2 -> (B, DIM): how things move, whatever they look like."""
    flow, weight = flow_field(clips_BCFHW)
    speed = flow.norm(dim=2)
    change = flow.diff(dim=1)
    acceleration = change.norm(dim=2)
    pair_weight = torch.minimum(weight[:, 1:], weight[:, :-1])
    parts = [
        _histogram(speed, weight),
        _histogram(acceleration, pair_weight),
        _directions(flow, speed, weight),
        *_time_profile(speed, weight),
        _global_motion(flow, speed, weight),
    ]
    return torch.cat(parts, dim=1)


def flow_field(clips_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
    """Flow (B, P, 2, h, w) as (x, y) in pixels per frame, and its weight (B, P, h, w): local contrast."""
    B, _, frames = clips_BCFHW.shape[:3]
    grey = (clips_BCFHW * torch.tensor(_GREY).to(clips_BCFHW).view(1, 3, 1, 1, 1)).sum(dim=1)
    normal, contrast = _normalise(grey.reshape(B * frames, 1, *grey.shape[2:]))
    normal = normal.reshape(B, frames, *normal.shape[2:])
    contrast = contrast.reshape(B, frames, *contrast.shape[2:])
    before, after = normal[:, :-1].flatten(0, 1), normal[:, 1:].flatten(0, 1)
    # A patch beside an edge matches one side better than the other even when nothing moves; what it does
    # against its own frame is taken off, so that a still clip has no motion at all.
    cost, own = _matching_cost(before, after, REACH), _matching_cost(before, before, 1)
    flow = _best_shift(cost, own).reshape(B, frames - 1, 2, *cost.shape[-2:]) * 2.0
    weight = F.avg_pool2d(contrast[:, :-1], PATCH, STRIDE, PATCH // 2)
    return flow, weight


def _normalise(grey_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    smooth = F.avg_pool2d(gaussian_filter(grey_N1HW, _SMOOTH), 2)
    centred = smooth - gaussian_filter(smooth, _LOCAL)
    deviation = gaussian_filter(centred**2, _LOCAL).clamp(min=0).sqrt()
    return centred / (deviation + _CONTRAST_FLOOR), deviation / (deviation + _CONTRAST_FLOOR)


def _matching_cost(before_NHW: Tensor, after_NHW: Tensor, reach: int) -> Tensor:
    """Mean squared difference of patches for every shift (N, S, S, h, w), S = 2 reach + 1.

    A little is added for the length of the shift, so that ties fall to the smaller one.
    """
    height, width = before_NHW.shape[-2:]
    padded = F.pad(after_NHW[:, None], (reach,) * 4, mode="replicate")[:, 0]
    rows = []
    for dy in range(2 * reach + 1):
        band = padded[:, dy : dy + height]
        shifts = torch.stack([band[:, :, dx : dx + width] for dx in range(2 * reach + 1)], dim=1)
        error = (shifts - before_NHW[:, None]) ** 2
        rows.append(F.avg_pool2d(error, PATCH, STRIDE, PATCH // 2, count_include_pad=False))
    axis = torch.arange(-reach, reach + 1).to(before_NHW)
    length = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    return torch.stack(rows, dim=1) + 0.01 * length[:, :, None, None]


def _best_shift(cost_NSShw: Tensor, own_N33hw: Tensor) -> Tensor:
    """Shift of least cost (N, 2, h, w) as (x, y), refined by a parabola less the one of the frame itself."""
    side = cost_NSShw.shape[1]
    cost, own = cost_NSShw.flatten(1, 2), own_N33hw.flatten(1, 2)
    best = cost.argmin(dim=1)
    y, x = best // side, best % side
    at_rest = torch.full_like(best, 4)
    shifts = []
    for position, step, own_step in ((x, 1, 1), (y, side, 3)):
        inside = (position > 0) & (position < side - 1)
        safe = torch.where(inside, best, cost.shape[1] // 2)
        refined = _parabola(cost, safe, step) - _parabola(own, at_rest, own_step)
        shifts.append(position - side // 2 + torch.where(inside, refined.clamp(-0.5, 0.5), 0.0))
    return torch.stack(shifts, dim=1)


def _parabola(cost_NShw: Tensor, best_Nhw: Tensor, step: int) -> Tensor:
    """Where the parabola through a cost and its two neighbours has its lowest point, in steps."""
    left, middle, right = (cost_NShw.gather(1, best_Nhw[:, None] + d)[:, 0] for d in (-step, 0, step))
    return 0.5 * (left - right) / (left - 2 * middle + right).clamp(min=1e-4)


def _weighted(values: Tensor, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (values * weight).sum(dim=dims) / weight.sum(dim=dims).clamp(min=1e-6)


def _histogram(speed_BPhw: Tensor, weight: Tensor) -> Tensor:
    """Square root of the share of motion near each bin (linear between bins): (B, bins)."""
    centres = torch.tensor(BINS).to(speed_BPhw)
    if speed_BPhw.shape[1] == 0:
        return speed_BPhw.new_zeros(len(speed_BPhw), len(BINS))
    clipped = speed_BPhw.clamp(max=BINS[-1])
    upper = torch.searchsorted(centres, clipped.contiguous()).clamp(1, len(BINS) - 1)
    low, high = centres[upper - 1], centres[upper]
    share = (clipped - low) / (high - low)
    total = speed_BPhw.new_zeros(len(speed_BPhw), len(BINS))
    for index, part in ((upper - 1, 1 - share), (upper, share)):
        total.scatter_add_(1, index.flatten(1), (part * weight).flatten(1))
    return (total / weight.flatten(1).sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt()


def _directions(flow: Tensor, speed: Tensor, weight: Tensor) -> Tensor:
    """Mean speed towards each of eight directions, pixels per frame / 4: (B, 8)."""
    angle = torch.arange(DIRECTIONS).to(flow) * (2 * torch.pi / DIRECTIONS)
    along = flow[:, :, 0, None] * angle.cos().view(-1, 1, 1) + flow[:, :, 1, None] * angle.sin().view(
        -1, 1, 1
    )
    return _weighted(along.clamp(min=0), weight[:, :, None], (1, 3, 4)) / 4


def _time_profile(speed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Course of mean speed / 4 and of the share of still cells over the clip: (B, TIME_BINS) each."""
    mean = _weighted(speed, weight, (2, 3)) / 4
    still = _weighted((1 - 2 * speed).clamp(min=0), weight, (2, 3))
    return tuple(F.adaptive_avg_pool1d(course[:, None], TIME_BINS)[:, 0] for course in (mean, still))  # type: ignore[return-value]


def _global_motion(flow: Tensor, speed: Tensor, weight: Tensor) -> Tensor:
    """Pan: size, spread over time, and unsteadiness of the mean flow; spread of speeds in space: (B, 6)."""
    pan = _weighted(flow, weight[:, :, None], (3, 4))  # (B, P, 2)
    size = pan.norm(dim=2)
    steps = pan.diff(dim=1).norm(dim=2) if pan.shape[1] > 1 else torch.zeros_like(size)
    mean_speed = _weighted(speed, weight, (2, 3))
    spread = (_weighted(speed**2, weight, (2, 3)) - mean_speed**2).clamp(min=0).sqrt()
    columns = [
        size.mean(dim=1),
        size.std(dim=1, unbiased=False),
        steps.mean(dim=1),
        steps.amax(dim=1),
        mean_speed.std(dim=1, unbiased=False),
        spread.mean(dim=1),
    ]
    return torch.stack(columns, dim=1) / 4
