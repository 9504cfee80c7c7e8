"""Claims: what a recovery step of Stable Video Diffusion costs, and that a GPU learns as a CPU does.

python benchmarks/gpu/recovery.py [--model stable-video-diffusion] [--steps 5] [--device cuda]

Steps of `RecoveryStep` with the paper's plan, random weights and latents of noise (neither changes what a
step costs), bfloat16, one clip at a time, without and with activation checkpointing: time of a step, peak of
what the allocator handed out against the planner's figure (wanted: within 15 %), and utilisation: operations
of the models over what the device could have done. Then 20 steps of a small random model from one seed on
the device and on the CPU in float32: every loss within 1e-3. Needs a GPU with 139 GB for the first, torch,
diffusers and this package's core. `benchmarks/results/gpu_recovery-DATE.json` is written after every part.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vdmini_core.artifacts import write_json
from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.cost.rehearsal import Choices, rehearse
from vdmini_core.distillation.data import RecoveryBatches, RecoveryData
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.utilisation import peak_flops, step_flops
from vdmini_core.errors import VDMiniError
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.base import Conditions, Family, SamplingSettings
from vdmini_core.models.inspect import load_architecture
from vdmini_core.models.registry import default_settings, family_of
from vdmini_core.params import DistillParams, PlanParams
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan
from vdmini_core.teacher.architecture import build_pipeline

RESULTS = Path(__file__).parents[1] / "results"
SAME_STEPS, SAME_WITHIN, MEMORY_WITHIN = 20, 1e-3, 0.15


def random_batches(family: Family, denoiser: Any, settings: SamplingSettings, clips: int) -> RecoveryBatches:
    """Latents and conditions of noise, the same on every device."""
    shapes = meta_batch(family, denoiser, settings, 2 * clips)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.rand(like.shape, generator=generator) for name, like in shapes.conditions.tensors.items()
    }
    clean = torch.randn(shapes.clean_BFChw.shape, generator=generator)
    return RecoveryBatches(RecoveryData(clean, Conditions(drawn)), family, settings, clips, seed=0)


def cut(family: Family, denoiser: Any, settings: SamplingSettings) -> Plan:
    """The paper's plan."""
    units = family.units(denoiser, settings)
    return make_plan(PlanParams(recipe="paper"), family, denoiser, units, None, settings, 0)


def step_of(teacher: Any, plan: Plan, batches: RecoveryBatches, params: DistillParams, device: str) -> Any:
    """The recovery's step, as a worker makes it."""
    family, settings = batches.family, batches.settings
    student = apply_plan(teacher, plan, family)
    example = batches.batch(0).to(torch.device(device))
    return RecoveryStep(
        family,
        student,
        teacher,
        plan.feature_pairs,
        params,
        example,
        one_step=settings.steps == 1,
        settings=settings,
    )


def full_size(name: str, steps: int, device: str, checkpointing: bool) -> dict[str, Any]:
    """Time, memory and utilisation of steps of a random model of that architecture."""
    family, on_meta, _, settings = load_architecture(name)
    plan = cut(family, on_meta, settings)
    params = DistillParams(
        batch_size=1, workers=1, precision="bf16", activation_checkpointing=checkpointing, learning_rate=1e-6
    )
    kind: Any = device.partition(":")[0]
    outline = family.outline(on_meta, plan.removed).model
    choices = Choices.from_params(params)
    planned = rehearse(
        family, copy.deepcopy(on_meta), outline, plan.feature_pairs, params, settings, choices, kind
    )
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = type(on_meta)
        teacher = made.from_config(on_meta.config)
    batches = random_batches(family, on_meta, settings, 1)
    step = step_of(teacher, plan, batches, params, device)
    flops = step_flops(step.student, teacher, step.points, settings)
    milliseconds = []
    for index in range(steps + 2):  # two warm up: the optimiser's state, the kernels
        batch = batches.batch(index).to(torch.device(device))
        if index == 2 and kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(kind)
        began = time.perf_counter()
        step.step(batch)
        _wait(kind)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    took = median(milliseconds[2:])
    peak = peak_flops(device_name(device), "bf16")
    found = {
        "model": name,
        "activation_checkpointing": checkpointing,
        "frames x height x width": [settings.frames, settings.height, settings.width],
        "ms a step": round(took, 1),
        "model operations a step": flops,
        "utilisation": round(flops / (took / 1e3) / peak, 4) if peak else None,
        "planned bytes": planned.peak,
    }
    if kind == "cuda":
        measured = torch.cuda.max_memory_allocated()
        found |= {"measured bytes": measured, "planned / measured": round(planned.peak / measured, 4)}
    del step, teacher, batches
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    return found


def _wait(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def losses(device: str) -> list[float]:
    """Total losses of a small random model in float32, from one seed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pipeline = build_pipeline("nano", 0)
    family = family_of(pipeline)
    own = default_settings(pipeline.unet.config, pipeline.vae.config)
    settings = replace(own, steps=1, guidance=1.0)
    plan = cut(family, pipeline.unet, settings)
    batches = random_batches(family, pipeline.unet, settings, 2)
    params = DistillParams(batch_size=2, workers=1, learning_rate=5e-5, head_learning_rate=5e-5)
    step = step_of(pipeline.unet.to(device), plan, batches, params, device)
    place = torch.device(device)
    return [step.step(batches.batch(index).to(place))["total"] for index in range(SAME_STEPS)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="stable-video-diffusion", help="built-in name or pipeline directory"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu tries the script itself on a small pipeline directory")
    path = RESULTS / f"gpu_recovery-{datetime.date.today().isoformat()}.json"
    result: dict[str, Any] = {
        "hardware": device_name(arguments.device),
        "libraries": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "settings": vars(arguments),
        "steps": [],
    }
    pairs = [losses(device) for device in (arguments.device, "cpu")]
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(*pairs, strict=True))
    result["losses"] = {"device": pairs[0], "cpu": pairs[1], "apart": apart, "holds": apart <= SAME_WITHIN}
    print(
        "holds" if apart <= SAME_WITHIN else "FAILS", f"{SAME_STEPS} losses as on the CPU: {apart:.2e} apart"
    )
    write_json(path, result)
    for checkpointing in (True, False):
        try:
            found = full_size(arguments.model, arguments.steps, arguments.device, checkpointing)
        except (torch.OutOfMemoryError, VDMiniError) as error:
            found = {"activation_checkpointing": checkpointing, "failed": str(error).split("\n")[0]}
        if ratio := found.get("planned / measured"):
            found["holds"] = abs(ratio - 1) <= MEMORY_WITHIN
        result["steps"].append(found)
        print(found)
        write_json(path, result)
    print(path)


if __name__ == "__main__":
    main()
