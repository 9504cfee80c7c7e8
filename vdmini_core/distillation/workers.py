"""The workers of a recovery, as torch sees them: averaging over them, and the mesh that parts lie on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

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


def mesh_over(world: int, device: torch.device) -> DeviceMesh:
    """All workers in one dimension; the process group must be there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else the mesh would choose one by the worker's rank
    return init_device_mesh(device.type, (world,))
