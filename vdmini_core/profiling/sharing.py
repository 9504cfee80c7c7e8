"""Work shared by all units: what lies before a unit is computed once, by the whole teacher.

Noise and conditions are the same for every unit, so in the first call of the denoiser all modules before
the unit see exactly what they saw in the teacher. The teacher's outputs are recorded there once, and with
a unit removed they are replayed: the same bits for the modules' cost. Later sampling steps start from
another sample and run whole; a one-step teacher gains most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.models.base import TracePoint
from vdmini_core.models.pruned_unet import swap_modules


@dataclass
class Trace:
    """Outputs of the first call on one batch, by path; `whole` when every point has its own."""

    outputs: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(t.untyped_storage().nbytes() for output in self.outputs.values() for t in _tensors(output))


@dataclass
class _Calls:
    """Which call of the denoiser runs: -1 before the first."""

    current: int = -1

    def count(self, *_: Any) -> None:
        self.current += 1


class _Replay(nn.Module):
    """In place of a module: its recorded output at the first call, the module itself afterwards."""

    def __init__(self, module: nn.Module, output: Any, calls: _Calls) -> None:
        super().__init__()
        self.module, self.output, self.calls = module, output, calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output if self.calls.current == 0 else self.module(*args, **kwargs)


def start_of(points: Sequence[TracePoint], modules: Sequence[str]) -> int:
    """Index of the first point inside a unit's modules, or around one of them: those before it see what
    they saw in the teacher.
    """

    def met(point: str) -> bool:
        return any(f"{path}.".startswith(f"{point}.") or point.startswith(f"{path}.") for path in modules)

    return next((i for i, point in enumerate(points) if met(point.path)), 0)


class Recorded(Exception):
    """Ends a sampling whose first call is recorded: later steps would cost and tell nothing."""


@contextmanager
def recorded(denoiser: nn.Module, points: Sequence[TracePoint], most_bytes: int) -> Iterator[Trace]:
    """Record the first call of the denoiser, which ends the block's sampling there and then.

    Args:
        most_bytes: more than that is not kept: the trace is `whole` or empty.
    """
    trace, calls = Trace(), _Calls()

    def keep(point: TracePoint) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            trace.outputs[point.path] = output if point.kept else _shape_of(output)
            if trace.size > most_bytes:
                raise Recorded

        return hook

    def end(*_: Any) -> None:
        trace.whole = True
        raise Recorded

    handles = [denoiser.register_forward_pre_hook(calls.count), denoiser.register_forward_hook(end)]
    try:
        handles += [denoiser.get_submodule(p.path).register_forward_hook(keep(p)) for p in points]
        with suppress(Recorded):
            yield trace
    finally:
        for handle in handles:
            handle.remove()
        if not trace.whole:
            trace.outputs.clear()


@contextmanager
def replayed(denoiser: nn.Module, points: Sequence[TracePoint], start: int, trace: Trace) -> Iterator[None]:
    """Within the context the modules before point `start` are not computed in the denoiser's first call.

    The sample and conditions must be those of the recording.
    """
    calls = _Calls()
    replays: dict[str, nn.Module | None] = {
        p.path: _Replay(denoiser.get_submodule(p.path), trace.outputs[p.path], calls) for p in points[:start]
    }
    handle = denoiser.register_forward_pre_hook(calls.count)
    before = swap_modules(denoiser, replays)
    try:
        yield
    finally:
        swap_modules(denoiser, before)
        handle.remove()


def _shape_of(output: Any) -> Any:
    """The output's shape without its memory: one zero, expanded."""
    if isinstance(output, Tensor):
        return torch.zeros((), dtype=output.dtype, device=output.device).expand(output.shape)
    return type(output)(_shape_of(part) for part in output)


def _tensors(output: Any) -> list[Tensor]:
    if output is None or isinstance(output, Tensor):
        return [] if output is None else [output]
    return [tensor for part in output for tensor in _tensors(part)]
