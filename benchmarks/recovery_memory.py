"""Claim: the planner knows the memory of a recovery within 15 % before it is started.

python benchmarks/recovery_memory.py [--steps 3]

For the shipped teacher and for a random U-Net of about 100 million parameters, both cut as the paper cuts:
the planner's peak, which is counted on the meta device, against what a fresh process needs beyond its
libraries for some real steps of `RecoveryStep` on the CPU: the kernel's high-water mark of resident memory,
less what was resident before the models were made. Further runs say where the rest comes from: with an
allocator that gives every large block back at once, and for the shipped teacher without oneDNN too. The
result is `benchmarks/results/recovery_memory-DATE.json`. Needs 3 GB of memory.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.cost.rehearsal import Choices, rehearse
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.memory_in_use import large_pieces_apart
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.base import Conditions, Family, SamplingSettings
from vdmini_core.models.inspect import family_of_class, load_architecture
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.params import DistillParams, PlanParams
from vdmini_core.pruning.recipes import make_plan

RESULTS = Path(__file__).parent / "results"
WITHIN = 0.15
MIDDLE: dict[str, Any] = {
    "block_out_channels": (96, 192, 320, 320),
    "num_attention_heads": (3, 6, 10, 10),
    "cross_attention_dim": 256,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 192,
    "num_frames": 8,
}
MIDDLE_SIZE = SamplingSettings(frames=8, height=64, width=128, fps=8, steps=1)
# how a fresh process is asked for its memory: environment, and whether oneDNN may be used
WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "blocks of 64 KiB and more given back at once": {"MALLOC_MMAP_THRESHOLD_": "65536"},
    "without oneDNN": {"MALLOC_MMAP_THRESHOLD_": "65536", "VDMINI_BENCH_ONEDNN": "0"},
}


def model(name: str) -> tuple[Family, Any, SamplingSettings, Any]:
    """Family, U-Net on meta, settings, and its directory where it has weights."""
    if name == "mini":
        folder = bundled_teacher_path("mini")
        family, unet, _, settings = load_architecture(folder)
        return family, unet, settings, folder
    unet = build_on_meta(UNetSpatioTemporalConditionModel, MIDDLE)
    return family_of_class("StableVideoDiffusionPipeline"), unet, MIDDLE_SIZE, None


def cut(family: Family, unet: Any, settings: SamplingSettings) -> Any:
    """The paper's plan."""
    return make_plan(
        PlanParams(recipe="paper"), family, unet, family.units(unet, settings), None, settings, 0
    )


@functools.cache
def drawn(name: str) -> Any:
    """All that has no weights: family, U-Net on meta, settings, directory, plan."""
    family, unet, settings, folder = model(name)
    return family, unet, settings, folder, cut(family, unet, settings)


def planned(name: str, clips: int) -> dict[str, Any]:
    """The planner's answer."""
    family, unet, settings, _, plan = drawn(name)
    student = family.outline(unet, plan.removed).model
    found = rehearse(
        family, unet, student, plan.feature_pairs, DistillParams(), settings, Choices(batch=clips)
    )
    tensors = found.peak - found.parts["allocator and kernels"]
    return {"bytes": found.peak, "tensors": tensors, "parts": found.parts, "phase": found.phase}


def real_step(name: str, clips: int) -> tuple[RecoveryStep, RecoveryBatch]:
    """Models with memory and a batch of noise."""
    family, on_meta, settings, folder, plan = drawn(name)
    if folder is None:
        torch.manual_seed(0)
        teacher: Any = UNetSpatioTemporalConditionModel(**MIDDLE)
    else:
        teacher = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
    student = family.prune(teacher, plan.removed)
    shapes = meta_batch(family, on_meta, settings, clips)
    parts = {k: torch.randn(v.shape) for k, v in vars(shapes).items() if isinstance(v, torch.Tensor)}
    parts |= {k: torch.full((clips,), 2.0) for k in ("sigma_B", "renoise_sigma_B")}
    given = {k: torch.rand(v.shape) for k, v in shapes.conditions.tensors.items()}
    batch = RecoveryBatch(**parts, conditions=Conditions(given))
    params = DistillParams(batch_size=clips, workers=1, learning_rate=1e-6)
    return RecoveryStep(family, student, teacher, plan.feature_pairs, params, batch), batch


def resident() -> int:
    """Resident bytes now, free memory given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def high_water() -> int:
    """Most bytes that were ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def begin_as_a_worker() -> None:
    """Its bound for large pieces, unless another is set; what libraries load at their first use is theirs."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        large_pieces_apart()
    small = torch.nn.Conv2d(4, 4, 3)
    optimizer = torch.optim.AdamW(small.parameters(), fused=True)
    small(torch.randn(1, 4, 8, 8)).sum().backward()
    torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
    optimizer.step()


def measure(name: str, clips: int, steps: int) -> dict[str, Any]:
    """In this process: growth of the resident memory over `steps` real steps."""
    if os.environ.get("VDMINI_BENCH_ONEDNN") == "0":
        torch.backends.mkldnn.enabled = False
    drawn(name)
    begin_as_a_worker()
    before, ever_before = resident(), high_water()
    step, batch = real_step(name, clips)
    loaded = resident() - before
    peaks = []
    for _ in range(steps):
        step.step(batch)
        peaks.append(high_water() - before)
    return {
        "bytes": peaks[-1],
        "after_each_step": peaks,
        "models": loaded,
        "libraries": before,
        "valid": high_water() > ever_before,
    }


def fresh(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """This script's answer in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(name: str, clips: int, steps: int) -> dict[str, Any]:
    """Planned and measured memory of one model."""
    plan = planned(name, clips)
    runs = {
        way: fresh(["--measure", name, "--clips", str(clips), "--steps", str(steps)], environment)
        for way, environment in list(WAYS.items())[: None if name == "mini" else 2]
    }
    ratio = plan["bytes"] / runs["as it is"]["bytes"]
    return {
        "clips": clips,
        "planned": plan,
        "measured": runs,
        "planned / measured": round(ratio, 4),
        "planned / measured, by way": {w: round(plan["bytes"] / run["bytes"], 4) for w, run in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--clips", type=int, default=1, help="per worker; of the cases when none is named")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.clips, arguments.steps)))
        return
    cases = {f"{name}, {clips} a worker": (name, clips) for name, clips in (("mini", 1), ("middle", 1))}
    found = {title: compare(name, clips, arguments.steps) for title, (name, clips) in cases.items()}
    verdicts = {
        f"{title}: within {WITHIN:.0%} of the measured peak": {
            "holds": abs(1 - case["planned / measured"]) <= WITHIN
            and all(run["valid"] for run in case["measured"].values()),
            "found": case["planned / measured"],
        }
        for title, case in found.items()
    }
    result = {
        "cases": found,
        "verdicts": verdicts,
        "settings": {"steps": arguments.steps, "threads": torch.get_num_threads(), "middle": MIDDLE},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"recovery_memory-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    for claim, verdict in verdicts.items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
    print(path)


if __name__ == "__main__":
    main()
