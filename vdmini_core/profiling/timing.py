"""Measured time of every unit: hooks around its modules while the whole denoiser runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vdmini_core.models.base import Unit


def time_units(
    denoiser: nn.Module, units: Sequence[Unit], call: Callable[[], Any], repeats: int
) -> dict[str, Any]:
    """Median milliseconds of every unit and of the whole denoiser over `repeats` calls after one warm-up.

    Returns:
        `denoiser_ms`, `unit_ms` (unit name -> ms) and `repeats`: what a latency budget reads.
    """
    paths = sorted({path for unit in units for path in unit.modules})
    totals: list[float] = []
    spent: dict[str, list[float]] = {path: [] for path in paths}
    with torch.no_grad():
        call()
        for _ in range(repeats):
            with _clocks(denoiser, paths) as elapsed:
                started = _now()
                call()
                totals.append(_now() - started)
            for path in paths:
                spent[path].append(elapsed.get(path, 0.0))
    medians = {path: statistics.median(values) for path, values in spent.items()}
    return {
        "denoiser_ms": 1e3 * statistics.median(totals),
        "unit_ms": {unit.name: 1e3 * sum(medians[path] for path in unit.modules) for unit in units},
        "repeats": repeats,
    }


@contextmanager
def _clocks(denoiser: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, float]]:
    started: dict[str, float] = {}
    elapsed: dict[str, float] = {}

    def start(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            started[path] = _now()

        return hook

    def stop(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            elapsed[path] = elapsed.get(path, 0.0) + _now() - started[path]

        return hook

    handles = []
    try:
        for path in paths:
            module = denoiser.get_submodule(path)
            handles += [
                module.register_forward_pre_hook(start(path)),
                module.register_forward_hook(stop(path)),
            ]
        yield elapsed
    finally:
        for handle in handles:
            handle.remove()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
