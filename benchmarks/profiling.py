"""Claim: sharing what lies before a unit saves U-Net FLOPs of a profile and changes none of its figures.

python benchmarks/profiling.py [--clips 8]

Every unit of the shipped teacher is removed once the naive way (whole passes) and once with the teacher's
outputs replayed. FLOPs are counted while the U-Net runs, not predicted; the recording pass is part of the
bill. The result is `benchmarks/results/profiling-DATE.json`. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import family_of, load_pipeline, load_settings
from vdmini_core.profiling.sensitivity import prepare_inputs, profile_unit, record_shared
from vdmini_core.progress import track

RESULTS = Path(__file__).parent / "results"
MOST_BYTES = 2 * 2**30
LIMIT = 0.5  # of the naive sweep: what sharing and early stopping together are to reach


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


def sweeps(count: int) -> dict[str, Any]:
    """Both sweeps over all units: what they cost and whether they agree."""
    folder = bundled_teacher_path("mini")
    pipeline = load_pipeline(folder)
    family, settings = family_of(pipeline), load_settings(folder, pipeline)
    spec = ProceduralSpec(settings.frames, settings.height, settings.width)
    clips = torch.from_numpy(render_clips(spec, split_seeds("validation", count, 0)))
    inputs = prepare_inputs(pipeline, family, clips, settings, seed=0, batch_size=8)
    units = [unit.name for unit in family.units(pipeline.unet, settings)]
    bill: dict[str, int] = {}
    tables: dict[str, dict[str, dict[str, float]]] = {"naive": {}, "shared": {}}
    with torch.no_grad():
        with counted(pipeline.unet, bill, "recording"):
            traces = record_shared(pipeline, family, inputs, MOST_BYTES)
        for unit in track(units, "units", len(units), "unit"):
            for what, known in (("naive", []), ("shared", traces)):
                with counted(pipeline.unet, bill, what):
                    tables[what][unit] = profile_unit(
                        pipeline, family, unit, "removed", inputs, {}, {}, known
                    )
    return {
        "units": len(units),
        "flops": bill,
        "of_naive": (bill["shared"] + bill["recording"]) / bill["naive"],
        "same_figures": tables["naive"] == tables["shared"],
        "trace_bytes_a_clip": sum(trace.size for trace in traces) // count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    arguments = parser.parse_args()
    found = sweeps(arguments.clips)
    verdicts = {
        "same figures, bit by bit": {"holds": found["same_figures"], "found": found["same_figures"]},
        f"at most {LIMIT} of the naive U-Net FLOPs": {
            "holds": found["of_naive"] <= LIMIT,
            "found": found["of_naive"],
        },
    }
    result = found | {
        "verdicts": verdicts,
        "settings": {"clips": arguments.clips, "teacher": "mini", "variant": "removed", "steps": 1},
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
