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


def meet(world: int) -> None:
    """Wait until all workers are here."""
    if world > 1:
        dist.barrier()


class Ballot:
    """What any worker wants, known to all after the same step: flags that travel with what is averaged.

    Args:
        average: of `average_over`; None for one worker.
        mine: this worker's flags, always as many; asked when the tensors of a step are averaged.
    """

    def __init__(self, average: Average | None, mine: Callable[[], Sequence[bool]]) -> None:
        self._over_workers, self._mine = average, mine
        self._flags: Tensor | None = None

    @property
    def average(self) -> Average | None:
        """As the averaging it was made of, one element per flag longer; None for one worker."""
        return None if self._over_workers is None else self._average

    def _average(self, tensors: Sequence[Tensor]) -> None:
        if self._over_workers is not None:
            self._flags = tensors[-1].new_tensor([float(flag) for flag in self._mine()])
            self._over_workers([*tensors, self._flags])

    def result(self) -> tuple[bool, ...]:
        """For each flag, whether any worker had it at the last averaging."""
        if self._flags is None:
            return tuple(self._mine())
        return tuple(value > 0 for value in self._flags.tolist())
