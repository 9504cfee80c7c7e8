"""Claim: sharing and stopping by confidence halve the U-Net FLOPs of a profile and keep its order.

python benchmarks/profiling.py [--clips 8] [--max-clips 32]

Every unit of the shipped teacher is removed once the naive way (whole passes on all clips) and once as the
stage does it: what lies before the unit is replayed, and after the first `--clips` only units whose paired
error cannot be told from a neighbour's meet more. FLOPs are counted while the U-Net runs, not predicted;
the recording passes are part of the bill. Ranked is the paired error, which the planner reads; no clip is
decoded. The result is `benchmarks/results/profiling-DATE.json`. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import family_of, load_pipeline, load_settings
from vdmini_core.profiling.rounds import rounds, undecided
from vdmini_core.profiling.sensitivity import (
    ProfileInputs,
    clip_errors,
    prepare_inputs,
    record_shared,
    unit_latents,
)
from vdmini_core.profiling.sharing import Trace
from vdmini_core.progress import track

RESULTS = Path(__file__).parent / "results"
MOST_BYTES = 2 * 2**30
LIMIT = 0.5  # of the naive sweep
RANKS = 0.95


@contextmanager
def counted(unet: Any, bill: dict[str, int], what: str) -> Iterator[None]:
    """Add the operations of the U-Net's calls within the context to `bill[what]`."""
    forward = unet.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = forward(*args, **kwargs)
        bill[what] = bill.get(what, 0) + counter.get_total_flops()
        return output

    unet.forward = counting
    try:
        yield
    finally:
        del unet.forward


def sweeps(first: int, most: int) -> dict[str, Any]:
    """Both sweeps over all units: what they cost and whether they agree."""
    folder = bundled_teacher_path("mini")
    pipeline = load_pipeline(folder)
    family, settings = family_of(pipeline), load_settings(folder, pipeline)
    spec = ProceduralSpec(settings.frames, settings.height, settings.width)
    clips = torch.from_numpy(render_clips(spec, split_seeds("validation", most, 0)))
    inputs = prepare_inputs(pipeline, family, clips, settings, seed=0, batch_size=8, decoded=0)
    units = [unit.name for unit in family.units(pipeline.unet, settings)]
    bill: dict[str, int] = {}

    def errors_of(unit: str, what: str, rows: ProfileInputs, traces: Sequence[Trace] = ()) -> list[float]:
        with counted(pipeline.unet, bill, what):
            latents = unit_latents(pipeline, family, unit, "removed", rows, traces)
        return clip_errors(latents, rows.latents)

    naive = {
        unit: errors_of(unit, "naive", inputs) for unit in track(units, "naive sweep", len(units), "unit")
    }
    ours: dict[str, list[float]] = {unit: [] for unit in units}
    tried = []
    for start, stop in [(0, first), *rounds(first, most)]:
        pending = [u for u in undecided(ours) if len(ours[u]) == start] if start else units
        rows = inputs.rows(start, stop)
        with counted(pipeline.unet, bill, "recording"):
            traces = record_shared(pipeline, family, rows, MOST_BYTES)
        for unit in track(pending, f"clips {start} to {stop}", len(pending), "unit"):
            ours[unit] += errors_of(unit, "shared", rows, traces)
        tried.append({"clips": stop, "units": len(pending)})
    same = all(found == naive[unit][: len(found)] for unit, found in ours.items())
    means = [[float(np.mean(errors[unit])) for unit in units] for errors in (naive, ours)]
    return {
        "units": len(units),
        "rounds": tried,
        "flops": bill,
        "of_naive": (bill["shared"] + bill["recording"]) / bill["naive"],
        "same_errors": same,
        "spearman": float(stats.spearmanr(*means).statistic),
        "paired_mse": {
            unit: {"naive": naive_mean, "ours": our_mean, "clips": len(ours[unit])}
            for unit, naive_mean, our_mean in zip(units, *means, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--max-clips", type=int, default=32)
    arguments = parser.parse_args()
    with torch.no_grad():
        found = sweeps(arguments.clips, arguments.max_clips)
    verdicts = {
        "same errors of the same clips, bit by bit": {
            "holds": found["same_errors"],
            "found": found["same_errors"],
        },
        f"Spearman with the naive sweep at least {RANKS}": {
            "holds": found["spearman"] >= RANKS,
            "found": found["spearman"],
        },
        f"at most {LIMIT} of the naive U-Net FLOPs": {
            "holds": found["of_naive"] <= LIMIT,
            "found": found["of_naive"],
        },
    }
    result = found | {
        "verdicts": verdicts,
        "settings": vars(arguments) | {"teacher": "mini", "variant": "removed", "steps": 1},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"profiling-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    for claim, verdict in verdicts.items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
    print(path)


if __name__ == "__main__":
    main()
