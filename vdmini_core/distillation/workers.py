"""Averaging over the workers of a recovery that holds everything whole on each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Average = Callable[[Sequence[Tensor]], None]


def average_over(world: int) -> Average | None:
    """Averaging of tensors over workers: one all-reduce of everything flattened, once per step."""
    if world == 1:
        return None

    def average(tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= world
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    return average
