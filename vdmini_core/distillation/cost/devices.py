"""How fast a device computes and how much memory a worker has there: known, given, or measured here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


class Sheet(NamedTuple):
    """A GPU's data sheet: dense operations a second without sparsity, bytes, bytes a second.

    Attributes:
        bf16: with sums in fp32.
        fp32: without TF32.
        memory: as drivers report it, a little below the name's.
        bandwidth: of the memory.
        words: of the name that drivers give the device.
    """

    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    words: str


# The first whose words are all in a device's name is it.
KNOWN: dict[str, Sheet] = {
    "b200": Sheet(2250e12, 75e12, 178 * GIB, 8.0e12, "B200"),
    "h200": Sheet(989e12, 67e12, 139 * GIB, 4.8e12, "H200"),
    "h100-pcie": Sheet(756e12, 51e12, 79 * GIB, 2.0e12, "H100 PCIe"),
    "h100": Sheet(989e12, 67e12, 79 * GIB, 3.35e12, "H100"),
    "a100-40gb": Sheet(312e12, 19.5e12, 39 * GIB, 1.555e12, "A100 40GB"),
    "a100-80gb": Sheet(312e12, 19.5e12, 79 * GIB, 2.04e12, "A100"),
    "l40s": Sheet(362e12, 91.6e12, 44 * GIB, 0.864e12, "L40S"),
    "l4": Sheet(121e12, 30.3e12, 22 * GIB, 0.3e12, "L4"),
    "a10": Sheet(125e12, 31.2e12, 22 * GIB, 0.6e12, "A10"),
    "rtx4090": Sheet(165.2e12, 82.6e12, 23.5 * GIB, 1.008e12, "RTX 4090"),
    "rtx3090": Sheet(71e12, 35.6e12, 23.5 * GIB, 0.936e12, "RTX 3090"),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations a second of a GPU by the name its driver gives; None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    for sheet in KNOWN.values():
        if all(word in words for word in sheet.words.split()):
            return sheet.bf16 if precision == "bf16" else sheet.fp32
    return None


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
    sheet = KNOWN[name.lower()]
    peak = sheet.bf16 if bf16 else sheet.fp32
    source = f"{utilisation:.0%} of the dense {'bf16' if bf16 else 'fp32'} peak, {peak / 1e12:g} TFLOP/s"
    return Device(name.lower(), "cuda", peak * utilisation, int(sheet.memory), sheet.bandwidth, source)


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
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no limit
        return free
    return max(0, min(free, limit - used + _given_back(group / "memory.stat")))


def _given_back(stat: Path) -> int:
    """Bytes of a container's page cache that it loses before anything of it is killed."""
    try:
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def measure_speed(denoiser: Any, settings: SamplingSettings, kind: str, repeats: int = 3) -> float | None:
    """Operations a second of one pass of a denoiser like this one, fresh weights; None where it is too large.

    Args:
        denoiser: on any device, even meta; its config is what counts.
        settings: frames and size.
        kind: `cpu` or `cuda`.
        repeats: the fastest of so many passes after one warm-up; other work on the machine only slows them.
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
    return count / min(times[1:])
