"""Claim: the roofline model foretells a student's share of the teacher's time within 15 %.

python benchmarks/latency_model.py [--rounds 9]

A Stable Video Diffusion U-Net of 103 M parameters with random weights, on the CPU with one thread. The
device's two numbers are measured in the same run, and every student's time in turns with the teacher's.
Writes `benchmarks/results/latency_model-DATE.json`. Ratios only: no times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.flops import unet_inputs
from vdmini_core.models.inspect import family_of_class
from vdmini_core.models.pruned_unet import build_on_meta
from vdmini_core.models.roofline import Charge, Roofline, foretell, measure_device
from vdmini_core.progress import track

RESULTS = Path(__file__).parent / "results"
CONFIG: dict[str, Any] = {
    "block_out_channels": (96, 192, 320, 320),
    "num_attention_heads": (3, 6, 10, 10),
    "addition_time_embed_dim": 96,
    "projection_class_embeddings_input_dim": 288,
    "cross_attention_dim": 256,
}
FRAMES, SIDE = 8, 24
LIMIT = 0.15


def cuts(family: Any, unet: Any) -> dict[str, tuple[str, ...]]:
    """The paper's cut, its shallow half, and its deep half."""
    whole = family.paper_cut(unet)
    deep = tuple(unit for unit in whole if unit.split(".")[0] == "M" or unit.startswith(("D.3", "U.0")))
    return {
        "paper": whole,
        "paper, deep part": deep,
        "paper, shallow part": tuple(u for u in whole if u not in deep),
    }


def expected(unet: Any, device: Roofline) -> Charge:
    """The model's own foretelling, on the meta device."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    shape: Any = build_on_meta(type(unet), config)
    inputs = unet_inputs(shape, FRAMES, SIDE, SIDE)
    return foretell(lambda: shape(*inputs), device)


@torch.no_grad()
def measured(models: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median over rounds of each model's time over the teacher's in the same round."""
    inputs = {name: unet_inputs(model, FRAMES, SIDE, SIDE, "cpu") for name, model in models.items()}
    ratios: dict[str, list[float]] = {name: [] for name in models}
    for number in track(range(rounds + 1), "rounds", rounds + 1, "round"):
        spent = {}
        for name, model in models.items():
            began = time.perf_counter()
            model(*inputs[name])
            spent[name] = time.perf_counter() - began
        if number:  # the first round warms up
            for name in models:
                ratios[name].append(spent[name] / spent["teacher"])
    return {name: median(values) for name, values in ratios.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher: Any = UNetSpatioTemporalConditionModel(**CONFIG).eval()
    family = family_of_class("StableVideoDiffusionPipeline")
    models = {"teacher": teacher} | {
        n: family.prune(teacher, cut) for n, cut in cuts(family, teacher).items()
    }
    device = measure_device()
    charges = {name: expected(model, device) for name, model in models.items()}
    ratios = measured(models, rounds)
    rows = []
    for name, model in models.items():
        share = charges[name].seconds / charges["teacher"].seconds
        rows.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "flops_ratio": charges[name].flops / charges["teacher"].flops,
                "bytes_ratio": charges[name].bytes / charges["teacher"].bytes,
                "foretold_ratio": share,
                "measured_ratio": ratios[name],
                "error": share / ratios[name] - 1,
            }
        )
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in rows[-1].values()))
    worst = max(abs(row["error"]) for row in rows)
    result = {
        "rows": rows,
        "verdict": {"holds": worst <= LIMIT, "worst_error": worst, "limit": LIMIT},
        "roofline": asdict(device),
        "settings": {"frames": FRAMES, "latent": SIDE, "threads": 1, "rounds": rounds, "config": CONFIG},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"latency_model-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    print("holds" if worst <= LIMIT else "FAILS", f"worst error {worst:.1%}", path)


if __name__ == "__main__":
    main()
