"""How fast a device computes and how much memory a worker has there: known, given, or measured here."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdmini_core.errors import DataError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.flops import denoiser_flops, unet_inputs

GIB = 2**30
# Share of the dense bf16 peak that Stable Video Diffusion's U-Net reaches, eager, at full size: 0.21 forward
# on an H100 (benchmarks/results/gpu_latency-2026-11-26.json).
UTILISATION = 0.2
MEASURED_FLOPS = 5e11  # the most that is computed to measure a speed: some seconds of a CPU core
MEASURED_BYTES = 4 * GIB


@dataclass(frozen=True)
class Device:
    """Speed and memory of one device.

    Attributes:
        name: for people.
        kind: `cuda` or `cpu`.
        flops_per_s: what a recovery reaches there, utilisation included.
        memory: bytes of one device; None where it is not known.
        bytes_per_s: of its memory; 0 where it is not known, and the optimiser's time is left out then.
        source: where the speed comes from.
    """

    name: str
    kind: Any
    flops_per_s: float
    memory: int | None
    bytes_per_s: float
    source: str


# Dense peaks without sparsity, bf16 and fp32 (no TF32); memory as drivers report it; bandwidth. Data sheets.
KNOWN: dict[str, tuple[float, float, float, float]] = {
    "h100": (989e12, 67e12, 79 * GIB, 3.35e12),
    "h200": (989e12, 67e12, 139 * GIB, 4.8e12),
    "a100-80gb": (312e12, 19.5e12, 79 * GIB, 2.04e12),
}


def known_device(name: str, bf16: bool, utilisation: float = UTILISATION) -> Device:
    """A device of the data sheets at a stated share of its peak.

    Raises:
        DataError: for a name that is not known, or a utilisation outside (0, 1].
    """
    if name.lower() not in KNOWN:
        raise DataError(
            f"there is no known device {name!r}",
            expected=", ".join(KNOWN),
            fix="give --device-tflops and --memory-gib",
        )
    if not 0 < utilisation <= 1:
        raise DataError("a utilisation is a share", expected="above 0, at most 1", found=str(utilisation))
    half, single, memory, bandwidth = KNOWN[name.lower()]
    peak = half if bf16 else single
    source = f"{utilisation:.0%} of the dense {'bf16' if bf16 else 'fp32'} peak, {peak / 1e12:g} TFLOP/s"
    return Device(name.lower(), "cuda", peak * utilisation, int(memory), bandwidth, source)


def device_here(kind: str, speed: float | None, source: str) -> Device:
    """The device of this machine, with the memory that is free on it now."""
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return Device(torch.cuda.get_device_name(0), "cuda", speed or 0.0, free, 0.0, source)
    return Device("this machine's CPU", "cpu", speed or 0.0, free_memory(), 0.0, source)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that a run can have now: what the kernel or the container's limit leaves."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():  # the page cache can be had too
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free // 1024} kB").split()[0]) * 1024
    limit, used = (root / f"sys/fs/cgroup/memory.{name}" for name in ("max", "current"))
    try:
        return max(0, min(free, int(limit.read_text()) - int(used.read_text())))
    except (OSError, ValueError):  # no limit
        return free


def measure_speed(denoiser: Any, settings: SamplingSettings, kind: str, repeats: int = 3) -> float | None:
    """Operations a second of one pass of a denoiser like this one, fresh weights; None where it is too large.

    Args:
        denoiser: on any device, even meta; its config is what counts.
        settings: frames and size.
        kind: `cpu` or `cuda`.
        repeats: the median of so many passes after one warm-up.
    """
    count = denoiser_flops(denoiser, settings)[""]
    parameters = sum(p.numel() for p in denoiser.parameters())
    if (kind == "cpu" and count > MEASURED_FLOPS) or 4 * parameters > MEASURED_BYTES:
        return None
    cls: Any = type(denoiser)
    with torch.random.fork_rng(), torch.device(kind):
        model = cls.from_config(denoiser.config).eval()
    inputs = unet_inputs(model, settings.frames, *settings.latent_size, device=kind)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            model(*inputs)
            if kind == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return count / statistics.median(times[1:])
