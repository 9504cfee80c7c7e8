"""Claim: the planner's memory is within 15 % on models and options that it was not set by.

python benchmarks/recovery_memory_unseen.py [--steps 2]

The allowance for allocator and kernels was set by the two image-to-video U-Nets of `recovery_memory.py`. Here
are others, random, cut as the paper cuts, on the CPU in float32: a text-to-video U-Net (VideoCrafter's class)
and a transformer (Wan's class), with more clips, accumulation and activation checkpointing. Measured as
there: the high-water mark of a fresh process, less what was resident before the models were made. The result
is `benchmarks/results/recovery_memory_unseen-DATE.json`. Needs 4 GB of memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from recovery_memory import RESULTS, WITHIN, begin_as_a_worker, cut, high_water, resident

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.distillation.cost.batch import meta_batch
from vdmini_core.distillation.cost.rehearsal import Choices, rehearse
from vdmini_core.distillation.data import RecoveryBatch
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.fps_unet import UNet3DFpsConditionModel
from vdmini_core.models.inspect import family_of_class
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.params import DistillParams

MODELS: dict[str, tuple[str, Any, dict[str, Any], SamplingSettings]] = {
    "text U-Net": (
        "VideoCrafterPipeline",
        UNet3DFpsConditionModel,
        {"block_out_channels": (96, 192, 320, 320), "attention_head_dim": 32, "cross_attention_dim": 256},
        SamplingSettings(frames=8, height=128, width=128, fps=8, steps=1),
    ),
    "transformer": (
        "WanPipeline",
        WanTransformer3DModel,
        {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 16}
        | {"text_dim": 512},
        SamplingSettings(frames=8, height=128, width=256, fps=8, steps=1),
    ),
}
CASES: dict[str, tuple[str, Choices]] = {
    "text U-Net": ("text U-Net", Choices()),
    "text U-Net, 4 clips in 2 parts": ("text U-Net", Choices(batch=4, accumulation=2)),
    "text U-Net, 2 clips, checkpointing": ("text U-Net", Choices(batch=2, checkpointing=True)),
    "transformer, 2 clips": ("transformer", Choices(batch=2)),
    "transformer, 4 clips, checkpointing": ("transformer", Choices(batch=4, checkpointing=True)),
}


def planned(name: str, choices: Choices) -> dict[str, Any]:
    """The planner's answer, and the parameters of the teacher."""
    pipeline, cls, config, settings = MODELS[name]
    family, teacher = family_of_class(pipeline), build_on_meta(cls, config)
    plan = cut(family, teacher, settings)
    student = family.outline(teacher, plan.removed).model
    found = rehearse(family, teacher, student, plan.feature_pairs, DistillParams(), settings, choices)
    return {"bytes": found.peak, "parts": found.parts, "phase": found.phase, "teacher": plan.teacher_params}


def measure(case: str, steps: int) -> dict[str, Any]:
    """In this process: growth of the resident memory over `steps` real steps."""
    name, choices = CASES[case]
    pipeline, cls, config, settings = MODELS[name]
    family, on_meta = family_of_class(pipeline), build_on_meta(cls, config)
    plan = cut(family, on_meta, settings)
    begin_as_a_worker()
    before, ever_before = resident(), high_water()
    torch.manual_seed(0)
    teacher: Any = cls.from_config(config).eval()
    student = family.prune(teacher, plan.removed)
    shapes = meta_batch(family, on_meta, settings, choices.batch)
    parts = {k: torch.randn(v.shape) for k, v in vars(shapes).items() if isinstance(v, torch.Tensor)}
    parts |= {k: torch.full((choices.batch,), 2.0) for k in ("sigma_B", "renoise_sigma_B")}
    given = {k: torch.rand(v.shape).to(v.dtype) for k, v in shapes.conditions.tensors.items()}
    batch = RecoveryBatch(**parts, conditions=Conditions(given))
    params = DistillParams(
        batch_size=choices.batch,
        workers=1,
        accumulation=choices.accumulation,
        activation_checkpointing=choices.checkpointing,
        learning_rate=1e-6,
    )
    step = RecoveryStep(family, student, teacher, plan.feature_pairs, params, batch)
    for _ in range(steps):
        step.step(batch)
    return {"bytes": high_water() - before, "libraries": before, "valid": high_water() > ever_before}


def fresh(case: str, steps: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", case, "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.steps)))
        return
    path = RESULTS / f"recovery_memory_unseen-{datetime.date.today().isoformat()}.json"
    found: dict[str, Any] = {}
    for case, (name, choices) in CASES.items():
        plan, run = planned(name, choices), fresh(case, arguments.steps)
        ratio = round(plan["bytes"] / run["bytes"], 4)
        found[case] = {
            "choices": asdict(choices),
            "planned": plan,
            "measured": run,
            "planned / measured": ratio,
            "holds": abs(1 - ratio) <= WITHIN and run["valid"],
        }
        print("holds" if found[case]["holds"] else "FAILS", case, ratio, flush=True)
        result = {"claim": f"within {WITHIN:.0%} of the measured peak", "cases": found}
        facts = {"hardware": device_name(), "libraries": library_versions()}
        settings = {"steps": arguments.steps, "threads": torch.get_num_threads()}
        write_json(path, {**result, "settings": settings, **facts})
    print(path)


if __name__ == "__main__":
    main()
