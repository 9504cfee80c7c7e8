"""Claim: what adapters and full recovery are worth after the same steps, for a light and a deep cut.

python benchmarks/recovery_depth.py [--steps 48] [--clips 32] [--training-clips 64] [--ranks 4 16]

The shipped teacher loses one pair (light) or is cut by the paper's recipe (deep), then learns with the
default recovery, at depth `full` and at `lora` with each rank. Students are judged as in `pruning.py`.
Writes `benchmarks/results/recovery-depth-DATE.json`. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch
from pruning import BATCH, Bench

from vdmini_core.artifacts import library_versions, write_json
from vdmini_core.data.clip_source import as_source
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.distillation.data import RecoveryBatches, seed_of
from vdmini_core.distillation.depth import trained_parameters
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.latents import StoredLatents, precompute
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import fingerprint
from vdmini_core.params import DistillParams
from vdmini_core.profiling.sensitivity import damage, sample_all
from vdmini_core.progress import track
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import describe_plan
from vdmini_core.pruning.surgery import apply_plan

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parent.parent / ".bench" / "recovery_depth"
LIGHT = ("U.3.pair.1",)


def judge(bench: Bench, student: Any) -> dict[str, float]:
    """Distances to the teacher's samples on the same noise."""
    judged = bench.judged
    with torch.no_grad():
        latents = sample_all(
            bench.pipeline, bench.family, student, judged.noise, judged.conditions, bench.settings, BATCH
        )
        clips = bench.family.decode_latents(bench.pipeline, latents, bench.settings)
    return damage(latents, clips, judged, bench.extractors, bench.features)


def batches_of(bench: Bench, count: int) -> RecoveryBatches:
    """The first training clips, encoded once."""
    spec = ProceduralSpec(bench.settings.frames, bench.settings.height, bench.settings.width)
    folder = KEPT / f"latents-{count}"
    if not (folder / "complete.json").is_file():
        clips = torch.from_numpy(render_clips(spec, split_seeds("train", count, 0)))
        identity = {"teacher": fingerprint(bench.unet), "clips": count}
        encoder = ClipEncoder(bench.family, bench.pipeline, bench.settings, 0)
        precompute(encoder, as_source(clips), folder, identity)
    return RecoveryBatches(StoredLatents(folder), bench.family, bench.settings, 2, 0)


def recover(bench: Bench, plan: Plan, params: DistillParams, batches: RecoveryBatches, title: str) -> Any:
    """The recovery, done."""
    recovery = RecoveryStep(
        bench.family,
        apply_plan(bench.unet, plan, bench.family),
        bench.unet,
        plan.feature_pairs,
        params,
        batches.batch(0),
        one_step=bench.settings.steps == 1,
        seed=seed_of(0, "heads") % 2**31,
    )
    for step in track(range(params.steps), title, params.steps, "step"):
        recovery.step(batches.batch(step))
    return recovery


def tell(row: dict[str, Any]) -> None:
    """The figures that matter, as they come."""
    print({key: row.get(key) for key in ("cut", "depth", "lora_rank", "trained", "fvd", "paired_mse")})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--clips", type=int, default=32, help="clips students are judged on")
    parser.add_argument("--training-clips", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 16])
    arguments = parser.parse_args()
    with torch.no_grad():
        bench = Bench(arguments.clips, profile_clips=4)
    batches = batches_of(bench, arguments.training_clips)
    depths: list[dict[str, Any]] = [{"depth": "full"}]
    depths += [{"depth": "lora", "lora_rank": rank, "lora_alpha": rank} for rank in arguments.ranks]
    rows = []
    for name, removed in (("light", LIGHT), ("deep", bench.family.paper_cut(bench.unet))):
        plan = describe_plan("manual", bench.family, bench.unet, removed, bench.settings)
        before = judge(bench, apply_plan(bench.unet, plan, bench.family))
        cut = {"cut": name, "flops_ratio": plan.flops_ratio, "params_ratio": plan.params_ratio}
        rows.append(cut | {"depth": "none", "trained": 0} | before)
        tell(rows[-1])
        for depth in depths:
            params = DistillParams(steps=arguments.steps, batch_size=2, workers=1, **depth)
            title = f"{name}: {' '.join(map(str, depth.values()))}"
            recovery = recover(bench, plan, params, batches, title)
            figures = {"trained": trained_parameters(recovery.student), **judge(bench, recovery.recovered())}
            rows.append(cut | depth | figures)
            tell(rows[-1])
    path = RESULTS / f"recovery-depth-{datetime.date.today().isoformat()}.json"
    result = {"rows": rows, "settings": vars(arguments) | {"teacher": "mini", "batch_size": 2}}
    write_json(path, result | {"hardware": device_name(), "libraries": library_versions()})
    print(path)


if __name__ == "__main__":
    main()
