"""Claims: without recovery, `auto` is no worse than the paper's cut and better than the baselines.

python benchmarks/pruning.py [--clips 64] [--seeds 3] [--profile-clips 8]

The shipped teacher is cut to the FLOPs of the paper's recipe and to 0.8, 0.65 and 0.5 of its own by every
recipe. `auto` is planned from as many profiles as there are seeds, each on validation clips and noise of
its own; `auto, temporal` may take temporal sub-layers too; `random` draws a cut a seed. Students are judged
on other clips: the Fréchet distance of their samples to the teacher's for the same noise and first frames,
whole and by content and motion, with intervals, and the squared error of the latents. Better or worse is
the difference of two distances on the same clips, with an interval of its own. Finished students are kept
in `.bench/pruning/`, so a run that was stopped goes on. Writes `benchmarks/results/pruning-DATE.json` and a
chart. No times are claimed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vdmini_core.artifacts import library_versions, read_json, write_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.metrics import FrechetResult, frechet_difference, load_extractor
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import family_of, fingerprint, load_pipeline, load_settings
from vdmini_core.params import PlanParams
from vdmini_core.profiling.sensitivity import (
    COLUMNS,
    ProfileInputs,
    clip_errors,
    damage,
    paired_damage,
    paired_interval,
    prepare_inputs,
    record_shared,
    sample_all,
    unit_latents,
)
from vdmini_core.progress import track
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan
from vdmini_core.report.figures import PALETTE, house_style, plain_numbers, save

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parent.parent / ".bench" / "pruning"
POINTS = (0.8, 0.65, 0.5)  # and the paper's own
AUTO, TEMPORAL = "auto", "auto, temporal"
RECIPES = ("paper", AUTO, TEMPORAL, "magnitude", "random", "depgraph")
SEEDED = (AUTO, TEMPORAL, "random")
MOST_BYTES = 2 * 2**30
JUDGED_SEED = 1000  # of noise; profiles draw theirs from 0 on
BATCH = 8


class Bench:
    """The teacher, what students are judged on, and what was found already."""

    def __init__(self, clips: int, profile_clips: int, teacher: Path | None = None) -> None:
        folder = teacher or bundled_teacher_path("mini")
        self.pipeline = load_pipeline(folder)
        self.family, self.settings = family_of(self.pipeline), load_settings(folder, self.pipeline)
        self.unet, self.profile_clips = self.pipeline.unet, profile_clips
        self.units = self.family.units(self.unet, self.settings, "temporal")
        self.extractors = {name: load_extractor(name) for name in COLUMNS}
        self.judged = self._inputs("test", clips, 0, JUDGED_SEED, decoded=clips)
        self.features = {name: extract(self.judged.clips) for name, extract in self.extractors.items()}

    def _inputs(self, split: str, count: int, first: int, seed: int, decoded: int) -> ProfileInputs:
        spec = ProceduralSpec(self.settings.frames, self.settings.height, self.settings.width)
        seeds = split_seeds(split, first + count, 0)[first:]
        clips = torch.from_numpy(render_clips(spec, seeds))
        return prepare_inputs(self.pipeline, self.family, clips, self.settings, seed, BATCH, decoded)

    def profile(self, seed: int) -> tuple[dict[str, Any], ProfileInputs]:
        """Paired damage of every unit removed, on clips and noise of this seed alone, and the inputs."""
        count = self.profile_clips
        inputs = self._inputs("validation", count, seed * count, seed * 10_000, decoded=0)
        traces = record_shared(self.pipeline, self.family, inputs, MOST_BYTES)
        rows = []
        for unit in track(self.units, f"profile {seed}", len(self.units), "unit"):
            latents = unit_latents(self.pipeline, self.family, unit.name, "removed", inputs, traces)
            figures = paired_interval(clip_errors(latents, inputs.latents))
            rows.append({"name": unit.name, "removed": figures})
        return {"units": rows, "clips": count, "seed": seed}, inputs

    def plan(self, recipe: str, ratio: float, seed: int, profile: Any, inputs: Any) -> Plan:
        """The plan of a recipe at a FLOPs ratio."""
        if recipe == AUTO:  # a sub-layer without a row is none of its choices
            finer = {unit.name for unit in self.units if unit.kind == "temporal"}
            profile = profile | {"units": [row for row in profile["units"] if row["name"] not in finer]}

        def together(removed: tuple[str, ...]) -> float:
            student = self.family.prune(self.unet, removed)
            return paired_damage(self._sample(student, inputs), inputs.latents)["paired_mse"]

        budget = {} if recipe == "paper" else {"max_flops_ratio": ratio}
        params = PlanParams(recipe=AUTO if recipe == TEMPORAL else recipe, **budget)
        return make_plan(
            params, self.family, self.unet, self.units, profile, self.settings, seed, evaluate=together
        )

    def _sample(self, unet: Any, inputs: ProfileInputs) -> torch.Tensor:
        return sample_all(
            self.pipeline, self.family, unet, inputs.noise, inputs.conditions, self.settings, BATCH
        )

    def judge(self, plan: Plan) -> dict[str, Any]:
        """Figures of a plan's student, and the name of its features; kept by what is cut."""
        what = repr((fingerprint(self.unet), plan.removed, plan.channels, len(self.judged.noise)))
        name = hashlib.sha256(what.encode()).hexdigest()[:16]
        path = KEPT / f"{name}.json"
        if not path.is_file():
            latents = self._sample(apply_plan(self.unet, plan, self.family), self.judged)
            clips = self.family.decode_latents(self.pipeline, latents, self.settings)
            features = {key: extract(clips) for key, extract in self.extractors.items()}
            KEPT.mkdir(parents=True, exist_ok=True)
            save_file(features, KEPT / f"{name}.safetensors")
            known = {key: partial(_return, found) for key, found in features.items()}
            write_json(path, damage(latents, clips, self.judged, known, self.features))
        figures: dict[str, Any] = read_json(path)
        return figures | {"features": name}

    def difference(self, one: dict[str, Any], other: dict[str, Any]) -> FrechetResult:
        """How much further one row's clips are from the teacher's than another's, as whole clips."""
        mine, theirs = (
            load_file(KEPT / f"{row['features']}.safetensors")["embedded"] for row in (one, other)
        )
        return frechet_difference(mine, theirs, self.features["embedded"])


def _return(features: NDArray[np.float32], _: torch.Tensor) -> NDArray[np.float32]:
    return features


def measure(
    bench: Bench, seeds: int, recipes: Sequence[str] = RECIPES
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every recipe at every point: rows, and the points by name."""
    paper = bench.plan("paper", 1.0, 0, None, None)
    points = {"paper's": paper.flops_ratio} | {str(point): point for point in POINTS}
    profiled = {AUTO, TEMPORAL} & set(recipes)
    profiles = {seed: bench.profile(seed) if profiled else (None, None) for seed in range(seeds)}
    wanted = [
        (recipe, point, seed)
        for point in points
        for recipe in recipes
        for seed in (range(seeds) if recipe in SEEDED else (0,))
        if recipe != "paper" or point == "paper's"
    ]
    rows = []
    for recipe, point, seed in track(wanted, "students", len(wanted), "student"):
        plan = bench.plan(recipe, points[point], seed, *profiles[seed])
        rows.append(
            {
                "recipe": recipe,
                "point": point,
                "seed": seed,
                "removed": list(plan.removed),
                "narrowed": len(plan.channels),
                "flops_ratio": plan.flops_ratio,
                "params_ratio": plan.params_ratio,
                "notes": list(plan.notes),
                **bench.judge(plan),
            }
        )
    return rows, points


def mean_of(rows: list[dict[str, Any]], recipe: str, point: str, name: str) -> float:
    """Mean over seeds."""
    return float(np.mean([r[name] for r in rows if (r["recipe"], r["point"]) == (recipe, point)]))


def verdicts(bench: Bench, rows: list[dict[str, Any]], points: dict[str, float]) -> dict[str, dict[str, Any]]:
    """`auto` against the paper's cut at its point, and against every baseline at every point.

    Clearly better: the interval of the difference lies below nought for every seed of both.
    """

    def of(recipe: str, point: str) -> list[dict[str, Any]]:
        return [row for row in rows if (row["recipe"], row["point"]) == (recipe, point)]

    found = {}
    for ours in (AUTO, TEMPORAL):
        means = [mean_of(rows, recipe, "paper's", "fvd") for recipe in (ours, "paper")]
        found[f"{ours} at least as good as paper"] = {"holds": means[0] <= means[1], "found": means}
        for point in points:
            for baseline in ("magnitude", "random", "depgraph"):
                pairs = [(one, other) for one in of(ours, point) for other in of(baseline, point)]
                differences = [bench.difference(one, other) for one, other in pairs]
                found[f"{ours} clearly better than {baseline} at {point}"] = {
                    "holds": all(difference.high < 0 for difference in differences),
                    "found": [mean_of(rows, r, point, "fvd") for r in (ours, baseline)],
                    "differences": [[d.low, d.value, d.high] for d in differences],
                }
    return found


COLOURS = {
    "paper": PALETTE["ink"], AUTO: PALETTE["content"], TEMPORAL: PALETTE["content-light"],
    "magnitude": PALETTE["motion"],
    "random": PALETTE["muted"], "depgraph": PALETTE["total"],
}  # fmt: skip


def chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance to the teacher against FLOPs left, whole, content and motion."""
    titles = {"fvd": "whole clip", "content": "content", "motion": "motion"}
    with house_style():
        figure = Figure(figsize=(11.5, 4.4), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            for place, recipe in enumerate(RECIPES):
                mine = sorted((r for r in rows if r["recipe"] == recipe), key=lambda r: r["flops_ratio"])
                aside = 0.004 * (place - len(RECIPES) / 2)  # so that intervals do not hide each other
                places, heights = [r["flops_ratio"] + aside for r in mine], [r[name] for r in mine]
                bars = [
                    [max(r[name] - r[f"{name}_low"], 0) for r in mine],
                    [max(r[f"{name}_high"] - r[name], 0) for r in mine],
                ]
                look = {"fmt": "o", "ms": 4.5, "lw": 1.1, "color": COLOURS[recipe], "label": recipe}
                axes.errorbar(places, heights, bars, **look)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(plain_numbers())
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(title)
            axes.set_xlabel("FLOPs left")
        figure.axes[0].set_ylabel("Fréchet distance to the teacher, before recovery")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(RECIPES), frameon=False)
        save(figure, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64, help="clips students are judged on")
    parser.add_argument("--profile-clips", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=RECIPES, help="the others as in today's result")
    arguments = parser.parse_args()
    recipes = arguments.only or RECIPES
    path = RESULTS / f"pruning-{datetime.date.today().isoformat()}.json"
    others = (
        [row for row in read_json(path)["rows"] if row["recipe"] not in recipes] if arguments.only else []
    )
    with torch.no_grad():
        bench = Bench(arguments.clips, arguments.profile_clips)
        rows, points = measure(bench, arguments.seeds, recipes)
    rows = sorted(
        others + rows, key=lambda row: (list(points).index(row["point"]), RECIPES.index(row["recipe"]))
    )
    result = {
        "rows": rows,
        "points": points,
        "verdicts": verdicts(bench, rows, points),
        "settings": vars(arguments) | {"teacher": "mini", "extractor": "embedded", "metric": "paired"},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    write_json(path, result)
    chart(rows, path.with_suffix(".png"))
    for point in points:
        for recipe in RECIPES:
            if any((r["recipe"], r["point"]) == (recipe, point) for r in rows):
                told = ", ".join(
                    f"{n} {mean_of(rows, recipe, point, n):.4g}" for n in (*COLUMNS.values(), "paired_mse")
                )
                print(f"{point:8} {recipe:10} {told}")
    for claim, verdict in result["verdicts"].items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
    print(path)


if __name__ == "__main__":
    main()
