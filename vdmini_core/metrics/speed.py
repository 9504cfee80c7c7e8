"""Latency, memory and operations, measured so that two models can be compared honestly.

Machines drift: they warm up, slow down, and serve others. `compare_latency` therefore runs its functions in
turn (A B C A B C ...) and takes ratios within each round.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]


def measure_latency(fn: Call, warmup: int = 1, repeats: int = 5, *, device: str = "cpu") -> dict[str, Any]:
    """Time a function: median, spread and repeats.

    Args:
        fn: what to time; its result is dropped.
        warmup: calls before the clock counts.
        repeats: calls that count, at least 1.
        device: `cuda` times with CUDA events on the current GPU, anything else with the wall clock.

    Returns:
        `median_ms`, `iqr_ms` (75th - 25th percentile), `min_ms`, `repeats`, `warmup`.
    """
    for _ in range(warmup):
        _time_ms(fn, device)
    return _summary([_time_ms(fn, device) for _ in range(max(repeats, 1))], warmup)


def compare_latency(
    functions: Mapping[str, Call],
    warmup: int = 1,
    repeats: int = 5,
    *,
    reference: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time several functions in turn, in one run.

    Args:
        functions: name -> what to time.
        warmup: rounds before the clock counts.
        repeats: rounds that count.
        reference: the name the others are compared with; default: the first.
        device: as for `measure_latency`.

    Returns:
        `latency`: name -> summary as of `measure_latency`; `speedup`: name -> median over the rounds of
        reference time / own time (above 1 is faster than the reference); `speedup_range`: name -> lowest and
        highest of these ratios. Two figures whose ranges overlap are not told apart by so few rounds.
    """
    base = next(iter(functions)) if reference is None else reference
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + max(repeats, 1)):
        for name, fn in functions.items():
            elapsed = _time_ms(fn, device)
            if turn >= warmup:
                times[name].append(elapsed)
    ratios = {name: [r / t for r, t in zip(times[base], own, strict=True)] for name, own in times.items()}
    return {
        "latency": {name: _summary(own, warmup) for name, own in times.items()},
        "speedup": {name: round(statistics.median(own), 4) for name, own in ratios.items()},
        "speedup_range": {name: [round(min(own), 4), round(max(own), 4)] for name, own in ratios.items()},
    }


def peak_memory(fn: Call, *, device: str = "cpu") -> int:
    """Bytes that a call needs at most beyond what is in use before it.

    On a GPU: what its allocator handed out. On a CPU: growth of the process's resident memory, free memory
    given back first; by the kernel's own high-water mark, or sampled where the kernel does not reset it.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            fn()
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated() - before)
    _give_back_free_memory()
    if not _reset_high_water():
        return _sampled_growth(fn)
    before = psutil.Process().memory_info().rss
    fn()
    return max(0, _high_water() - before)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def _give_back_free_memory() -> None:
    """Return what the C library keeps for later: refilling it would not count as growth.

    Young objects alone are looked through: whatever calls leave is young, and the whole heap of a process
    that has everything imported takes longer than a small model's call.
    """
    gc.collect(1)
    with suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    """Let the kernel count peak resident memory from now on (Linux, proc(5): clear_refs 5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water() > 0
    except OSError:
        return False


def _high_water() -> int:
    """Peak resident bytes, 0 where the kernel does not say."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _sampled_growth(fn: Call, interval_s: float = 0.002) -> int:
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval_s):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        fn()
        peak = max(peak, process.memory_info().rss)
    finally:
        done.set()
        thread.join()
    return int(peak - before)


def count_flops(module: nn.Module, inputs: tuple[Tensor, ...], **kwargs: Any) -> int:
    """Floating point operations of `module(*inputs, **kwargs)`, two per multiply-add, on the meta device.

    Nothing is computed and no weight is copied, so the size of the model does not matter.
    """

    def on_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    tensors = {name: on_meta(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    arguments = tuple(on_meta(value) for value in inputs)
    named = {name: on_meta(value) for name, value in kwargs.items()}
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        functional_call(module, tensors, arguments, named)
    return int(counter.get_total_flops())


def _time_ms(fn: Call, device: str) -> float:
    on_gpu = device.startswith("cuda")
    with torch.cuda.device(device) if on_gpu else nullcontext():
        if not on_gpu:
            start = time.perf_counter()
            fn()
            return (time.perf_counter() - start) * 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def _summary(times_ms: list[float], warmup: int) -> dict[str, Any]:
    quarter, three_quarters = np.percentile(times_ms, (25, 75))
    return {
        "median_ms": round(statistics.median(times_ms), 4),
        "iqr_ms": round(float(three_quarters - quarter), 4),
        "min_ms": round(min(times_ms), 4),
        "repeats": len(times_ms),
        "warmup": warmup,
    }


def device_name(device: str = "cpu") -> str:
    """Model of the GPU or CPU, with the number of cores this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
