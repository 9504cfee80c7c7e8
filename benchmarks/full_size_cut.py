"""Claim: the paper's plan cuts Stable Video Diffusion's U-Net at full size exactly as predicted.

python benchmarks/full_size_cut.py

A full-size U-Net with random weights (bfloat16, CPU, 3 GB) is cut by the plan made from its config alone; the
student runs once on a small latent, is saved, loaded again, and must repeat its output bit by bit. Needs
9 GB of memory and some minutes. The result is `benchmarks/results/full_size_cut-DATE.json`.
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel

import vdmini_core
from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.flops import unet_inputs
from vdmini_core.models.inspect import BUILT_IN, load_architecture
from vdmini_core.pruning.planning import plan_model
from vdmini_core.pruning.surgery import apply_plan

RESULTS = Path(__file__).parent / "results"
NAME = "stable-video-diffusion"
FRAMES, LATENT = 2, 8
PARAMETERS = 939_884_186  # counted on the real architecture


def random_unet() -> Any:
    """The full-size U-Net, initialised at random in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = UNetSpatioTemporalConditionModel(**BUILT_IN[NAME]["unet"])
    finally:
        torch.set_default_dtype(torch.float32)
    return unet.to(torch.bfloat16).eval().requires_grad_(False)


def output(unet: Any) -> torch.Tensor:
    """One pass on a small random latent."""
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(part.shape, generator=generator).to(torch.bfloat16)
        for part in unet_inputs(unet, FRAMES, LATENT, LATENT)
    ]
    with torch.no_grad():
        made: torch.Tensor = unet(*inputs, return_dict=False)[0]
    return made


def cut() -> dict[str, Any]:
    """Plan, cut, run, save, load, run."""
    plan = plan_model(NAME, {"recipe": "paper"})
    family = load_architecture(NAME)[0]
    teacher = random_unet()
    student: Any = apply_plan(teacher, plan, family)
    whole = sum(p.numel() for p in teacher.parameters())
    del teacher
    first = output(student)
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        del student
        cls = vdmini_core.UNetSpatioTemporalPrunedModel
        again = cls.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
        # Loaded weights lie unaligned in the mapped file, where CPU kernels round otherwise.
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
        second = output(again)
    return {
        "teacher_params": whole,
        "params": sum(p.numel() for p in again.parameters()),
        "expected_params": plan.expected_params,
        "expected_flops": plan.expected_flops,
        "output_shape": list(first.shape),
        "finite": bool(first.isfinite().all()),
        "repeated": torch.equal(first, second),
        "removed": list(plan.removed),
    }


def main() -> None:
    found = cut()
    verdicts = {
        "939,884,186 parameters, as predicted": found["params"] == found["expected_params"] == PARAMETERS,
        "30.97 TFLOP at 14 x 576 x 1024, within 1 %": abs(found["expected_flops"] / 30.97e12 - 1) < 0.01,
        "a finite output of the right shape": found["finite"]
        and found["output_shape"] == [1, FRAMES, 4, LATENT, LATENT],
        "saved, loaded, the same output bit by bit": found["repeated"],
    }
    result = found | {
        "verdicts": verdicts,
        "settings": {"dtype": "bfloat16", "frames": FRAMES, "latent": LATENT, "seed": 0},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"full_size_cut-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    for claim, holds in verdicts.items():
        print("holds" if holds else "FAILS", claim)
    print(path)


if __name__ == "__main__":
    main()
