"""Features of a transformer's layers as frames on a grid: tokens (B, N, C) -> (B*F, C, h, w)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vdmini_core.models.dit.arguments import patch_of
from vdmini_core.models.dit.stacks import Architecture
from vdmini_core.models.dit.table import ARCHITECTURES

# Layout of the clip that a class is given -> places of batch, frames, height and width in it.
PLACES = {"BCFHW": (0, 2, 3, 4), "BFCHW": (0, 1, 3, 4), "BFHWC": (0, 1, 2, 3)}


@dataclass
class Grid:
    """Batch, and frames, height and width in tokens, of the call that is running; None where unknown."""

    size: tuple[int, int, int, int] | None = None


def frames_on_grid(feature: Tensor, grid: Grid) -> Tensor:
    """A layer's output as (B*F, C, h, w), frames and rows in their order.

    (B, N, C): the last F*h*w tokens, which come after a history where there is one. (B*h*w, F, C) and
    (B*F, h*w, C): temporal and spatial layers. Anything else, such as one sequence of text, video and sound,
    is one frame for each clip, (B, C, N, 1).
    """
    if feature.ndim == 2:
        feature = feature[None]
    count, tokens, channels = feature.shape
    if grid.size is not None:
        batch, frames, height, width = grid.size
        area = height * width
        if count == batch and tokens >= frames * area:
            places = feature[:, tokens - frames * area :].reshape(batch * frames, height, width, channels)
            return places.permute(0, 3, 1, 2)
        if (count, tokens) == (batch * area, frames):
            lines = feature.reshape(batch, height, width, frames, channels)
            return lines.permute(0, 3, 4, 1, 2).flatten(0, 1)
        if (count, tokens) == (batch * frames, area):
            return feature.transpose(1, 2).unflatten(2, (height, width))
    return feature.transpose(1, 2).unsqueeze(-1)


@contextmanager
def feature_shaper(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the context: what turns a module's output into (B*F, C, h, w), at the size of each call.

    A model whose modules answer in that shape already, a U-Net, is left alone.
    """
    architecture = ARCHITECTURES.get(type(model).__name__)
    if architecture is None:
        yield lambda feature: feature
        return
    grid, signature = Grid(), inspect.signature(model.forward)

    def measure(_module: nn.Module, args: Any, kwargs: Any) -> None:
        grid.size = _size(model, architecture, signature.bind_partial(*args, **kwargs).arguments)

    handle = model.register_forward_pre_hook(measure, with_kwargs=True)
    try:
        # Contiguous as a U-Net's: group norm's backward crashes on permuted ones (torch 2.13, CPU).
        yield lambda feature: frames_on_grid(feature, grid).contiguous()
    finally:
        handle.remove()


def _size(model: Any, architecture: Architecture, given: Any) -> tuple[int, int, int, int] | None:
    clip = given.get("hidden_states")
    if architecture.layout == "tokens" and given.get("num_frames") is not None:
        return clip.shape[0], given["num_frames"], given["height"], given["width"]
    if architecture.layout not in PLACES:
        return None
    batch, *sizes = (clip.shape[place] for place in PLACES[architecture.layout])
    frames, height, width = (size // cell for size, cell in zip(sizes, patch_of(model.config), strict=True))
    return (batch, frames, 1, height * width) if architecture.shuffled else (batch, frames, height, width)
