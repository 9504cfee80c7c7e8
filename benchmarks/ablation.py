"""Claims: what each term of the recovery does, and what each recipe is worth after the same recovery.

python benchmarks/ablation.py TABLE... [--steps 150] [--seeds 3] [--clips 64] [--arms NAME...] [--teacher DIR]

terms: the shipped teacher, cut by the paper's recipe, learns by the task loss alone, with ICD, with MCA and
with both (paper, Table 4; ICMD = both). own-task: the same where the task loss looks at real clips alone, as
a base model's own does (the default also regresses to the teacher's answer). heads: discriminator heads that
learn ten times faster. paired: own-task where fast heads judge pairs (`mca_loss`). deep: a cut to 0.4 of the
FLOPs, own task; deep-paired: that with paired heads. few: 16 training clips for 256. lambdas: as the paper's
Table 5, with the own task. recipes: `auto`, `paper`, `magnitude`, `random` and `depgraph` at the FLOPs of the
paper's cut, all with ICD and MCA. A seed is one of batches, noise and heads (of profiles and of `random`
too); steps, rates and clips are the same for all. Students are judged as in `pruning.py`, and against real
clips. Every finished run is kept in `.bench/ablation/`, and one that was stopped goes on from its last
checkpoint. Writes `benchmarks/results/ablation-TABLE-DATE.json` (with the steps in its name where they are
not 150), a chart and strips of frames. No times are claimed.

The shipped teacher leaves its noisy input alone, so that a discriminator on its encoder sees nothing
(docs/log.md). One that looks is made from it in half an hour of a core, and given as `--teacher DIR`:

python -m vdmini_core.teacher train-unet --start-from vdmini_core/bundled/mini --steps 1500 --window-steps 500
  --quiet-steps 0 --learning-rate 3e-4 --noised-share 0.5 --bf16 --out WORK
python -m vdmini_core.teacher export --out WORK --to DIR
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from pruning import COLOURS, Bench
from safetensors.torch import save_file
from torch import Tensor

from vdmini_core.artifacts import code_version, library_versions, read_json, write_json
from vdmini_core.data.clip_source import as_source
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.distillation.data import RecoveryBatches, seed_of
from vdmini_core.distillation.encoding import ClipEncoder
from vdmini_core.distillation.latents import StoredLatents, precompute
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.metrics import frechet_with_interval
from vdmini_core.metrics.speed import device_name
from vdmini_core.models.registry import fingerprint
from vdmini_core.params import DistillParams
from vdmini_core.profiling.sensitivity import COLUMNS, damage, sample_all
from vdmini_core.progress import track
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.surgery import apply_plan
from vdmini_core.report.figures import PALETTE, house_style, save

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parent.parent / ".bench" / "ablation"
TRAINING_CLIPS, FEW_CLIPS = 256, 16
STEPS = 150
BATCH = 8
CHECKPOINT_EVERY = 50
TERMS = {"none": (0.0, 0.0), "ICD": (0.1, 0.0), "MCA": (0.0, 1.0), "ICD + MCA": (0.1, 1.0)}
OWN = {"task_loss": "reconstruction"}
FAST_HEADS = {"head_learning_rate": 3e-3}
LAMBDAS = {"ICD x 0.1": (0.01, 0.0), "ICD x 10": (1.0, 0.0), "ICD x 100": (10.0, 0.0)}
HEADS = {"MCA": (0.0, 1.0), "MCA x 10": (0.0, 10.0), "ICD + MCA x 10": (0.1, 10.0)}
PAIRED = {"mca_loss": "paired"}
RECIPES = ("auto", "magnitude", "random", "depgraph")
COMPARED = ("paper", *RECIPES)
TABLES = ("terms", "own-task", "heads", "paired", "lambdas", "deep", "deep-paired", "few", "recipes")
DEEP_RATIO = 0.4  # of the teacher's FLOPs, by `magnitude`, which needs no profile
STRIP_CLIPS, STRIP_FRAMES = 2, 4


class Run(NamedTuple):
    """One student to make."""

    name: str
    plan: Plan
    lambdas: tuple[float, float]
    seed: int
    changes: dict[str, Any]
    clips: int = TRAINING_CLIPS


class Recoveries:
    """Recovers students and judges them; what was done already is read back."""

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.steps = bench, steps
        test = self._rendered("test", len(bench.judged.noise))
        self.real = {name: extract(test) for name, extract in bench.extractors.items()}

    def _rendered(self, split: Literal["train", "test"], count: int) -> Tensor:
        settings = self.bench.settings
        spec = ProceduralSpec(settings.frames, settings.height, settings.width)
        return torch.from_numpy(render_clips(spec, split_seeds(split, count, 0)))

    @functools.cache  # noqa: B019 - there is one of these a process
    def latents(self, count: int) -> StoredLatents:
        """The first training clips, encoded once."""
        folder = KEPT / f"latents-{count}-{fingerprint(self.bench.unet)[:8]}"
        encoder = ClipEncoder(self.bench.family, self.bench.pipeline, self.bench.settings, 0)
        identity = {"teacher": fingerprint(self.bench.unet), "clips": count}
        precompute(encoder, as_source(self._rendered("train", count)), folder, identity)
        return StoredLatents(folder)

    def params(self, lambdas: tuple[float, float], changes: dict[str, Any]) -> DistillParams:
        """The default recovery with these weights of ICD and MCA, and whatever else a table changes."""
        icd, mca = lambdas
        fixed = {"steps": self.steps, "batch_size": 2, "workers": 1, "lambda_icd": icd, "lambda_mca": mca}
        return DistillParams(**fixed | changes)

    def figures(self, run: Run, title: str) -> dict[str, Any]:
        """Of the recovered student."""
        plan, params = run.plan, self.params(run.lambdas, run.changes)
        what = repr((plan.teacher_fingerprint, plan.removed, plan.channels, params, run.seed))
        what += repr((run.clips, len(self.bench.judged.noise)))
        folder = KEPT / hashlib.sha256(what.encode()).hexdigest()[:16]
        if not (folder / "figures.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            rows, student = self.recover(run, params, folder, title)
            made = {"code": code_version()["digest"][:12]}  # one kept from older code says so
            write_json(folder / "figures.json", self.judge(student, folder) | last_terms(rows) | made)
        figures: dict[str, Any] = read_json(folder / "figures.json")
        return {"code": "not recorded"} | figures | {"folder": folder.name}

    def recover(
        self, run: Run, params: DistillParams, folder: Path, title: str
    ) -> tuple[list[dict[str, float]], Any]:
        """Train, from the last checkpoint on."""
        bench, plan, seed = self.bench, run.plan, run.seed
        data = self.latents(run.clips)
        batches = RecoveryBatches(data, bench.family, bench.settings, params.batch_size, seed)
        recovery = RecoveryStep(
            bench.family,
            apply_plan(bench.unet, plan, bench.family),
            bench.unet,
            plan.feature_pairs,
            params,
            batches.batch(0, 0, params.batch_size),
            one_step=bench.settings.steps == 1,
            seed=seed_of(seed, "heads") % 2**31,
        )
        path, rows = folder / "state.pt", []
        if path.is_file():
            state = torch.load(path, weights_only=True)
            recovery.load_state_dict(state["recovery"])
            rows = json.loads(state["rows"])
        for step in track(range(len(rows), params.steps), title, params.steps - len(rows), "step"):
            rows.append(recovery.step(batches.batch(step)))
            if (step + 1) % CHECKPOINT_EVERY == 0:
                state = {"recovery": recovery.state_dict(), "rows": json.dumps(rows)}
                torch.save(state, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
        path.unlink(missing_ok=True)
        return rows, recovery.recovered()

    @torch.no_grad()
    def judge(self, student: Any, folder: Path) -> dict[str, float]:
        """Distances to the teacher's samples and to real clips; the first clips are kept for the strips."""
        bench, judged = self.bench, self.bench.judged
        latents = sample_all(
            bench.pipeline, bench.family, student, judged.noise, judged.conditions, bench.settings, BATCH
        )
        clips = bench.family.decode_latents(bench.pipeline, latents, bench.settings)
        save_file({"clips": clips[:STRIP_CLIPS].contiguous()}, folder / "clips.safetensors")
        found = damage(latents, clips, judged, bench.extractors, bench.features)
        for name, extract in bench.extractors.items():
            value = frechet_with_interval(extract(clips), self.real[name], judged.seed)
            found |= {f"{COLUMNS[name]}_real": value.value}
        return found


def last_terms(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Every term averaged over the last tenth of the steps."""
    tail = rows[-max(1, len(rows) // 10) :]
    return {f"last_{name}": float(np.mean([row[name] for row in tail])) for name in tail[0]}


def paper_cut(bench: Bench) -> Plan:
    """By the paper's recipe."""
    return bench.plan("paper", 1.0, 0, None, None)


def deep_cut(bench: Bench) -> Plan:
    """To `DEEP_RATIO` of the teacher's FLOPs."""
    return bench.plan("magnitude", DEEP_RATIO, 0, None, None)


def runs(table: str, bench: Bench, seeds: int) -> list[Run]:
    """The students of a table, seed by seed."""
    paper = paper_cut(bench)
    every = range(seeds)
    if table == "recipes":
        with torch.no_grad():
            profiles = {seed: bench.profile(seed) for seed in every}
            plans = {
                (recipe, seed): bench.plan(recipe, paper.flops_ratio, seed, *profiles[seed])
                for recipe in RECIPES
                for seed in every
            } | {("paper", seed): paper for seed in every}
        both = TERMS["ICD + MCA"]
        return [Run(recipe, plans[recipe, seed], both, seed, {}) for seed in every for recipe in COMPARED]
    deep = deep_cut(bench) if table.startswith("deep") else paper
    tables: dict[str, tuple[dict[str, tuple[float, float]], Plan, dict[str, Any]]] = {
        "terms": (TERMS, paper, {}),
        "own-task": (TERMS, paper, OWN),
        "heads": (HEADS, paper, OWN | FAST_HEADS),
        "paired": (TERMS, paper, OWN | FAST_HEADS | PAIRED),
        "lambdas": (LAMBDAS, paper, OWN),
        "deep": (TERMS, deep, OWN),
        "deep-paired": (TERMS, deep, OWN | FAST_HEADS | PAIRED),
        "few": (TERMS, paper, OWN),
    }
    arms, plan, changes = tables[table]
    clips = FEW_CLIPS if table == "few" else TRAINING_CLIPS
    return [Run(name, plan, weights, s, changes, clips) for s in every for name, weights in arms.items()]


def measure(
    recoveries: Recoveries, table: str, seeds: int, arms: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Figures of every student of a table, or of some arms of it."""
    rows, wanted = [], runs(table, recoveries.bench, seeds)
    wanted = [run for run in wanted if arms is None or run.name in arms]
    for index, run in enumerate(wanted):
        title = f"{table} {index + 1}/{len(wanted)}: {run.name}, seed {run.seed}"
        found = recoveries.figures(run, title)
        changed = recoveries.params(run.lambdas, run.changes).model_dump(mode="json", exclude_defaults=True)
        about = {"name": run.name, "seed": run.seed, "removed": list(run.plan.removed)}
        about |= {"params": changed, "training_clips": run.clips}
        rows.append({**about, **found})
    return rows


def means(rows: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """Name -> the figure of every seed."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row[key])
    return found


def verdicts(table: str, rows: list[dict[str, Any]], pruned: float) -> dict[str, dict[str, Any]]:
    """The paper's order, and how far recovery gets."""
    checks: dict[str, tuple[bool, Any]] = {}
    found = {name: float(np.mean(values)) for name, values in means(rows, "fvd").items()}
    if found.keys() >= TERMS.keys():
        order = [found[name] for name in ("ICD + MCA", "ICD", "MCA", "none")]
        checks["both < ICD < MCA < none"] = (order == sorted(order), found)
        checks["every term alone better than none"] = (max(found["ICD"], found["MCA"]) < found["none"], found)
    if "ICD + MCA" in found and not table.startswith("deep"):  # `pruned` is the paper's cut
        kept = 1 - found["ICD + MCA"] / pruned
        checks["ICD + MCA keeps 90 % of the way to the teacher"] = (kept >= 0.9, kept)
    if table == "recipes":
        checks["auto is best after the same recovery"] = (found["auto"] <= min(found.values()), found)
    return {name: {"holds": bool(holds), "found": found} for name, (holds, found) in checks.items()}


def chart(rows: list[dict[str, Any]], path: Path) -> None:
    """A dot a seed with its interval over clips, a line at the mean: whole, content and motion."""
    titles = {"fvd": "whole clip", "content": "content", "motion": "motion"}
    with house_style():
        figure = Figure(figsize=(11, 2.8), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            for place, (name, values) in enumerate(means(rows, key).items()):
                colour = COLOURS.get(name, PALETTE["total"])
                mine = [row for row in rows if row["name"] == name]
                for row in mine:
                    at = place + 0.06 * (mine.index(row) - (len(mine) - 1) / 2)
                    axes.plot([at], [row[key]], "o", ms=5, color=colour, alpha=0.8)
                    axes.plot(
                        [at] * 2, [row[f"{key}_low"], row[f"{key}_high"]], color=colour, lw=1, alpha=0.6
                    )
                axes.plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color=colour, lw=2)
            names = list(means(rows, key))
            axes.set_xticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names])
            axes.set_ylim(0, 1.05 * max(row[f"{key}_high"] for row in rows))
            axes.set_title(f"{title}: distance to the teacher")
        save(figure, path)


def strips(rows: list[dict[str, Any]], bench: Bench, path: Path) -> None:
    """Frames of the first clips: teacher, then every student of seed 0."""
    from PIL import Image
    from safetensors.torch import load_file

    shown = [("teacher", bench.judged.clips[:STRIP_CLIPS])]
    for row in rows:
        if row["seed"] == 0:
            clips = load_file(KEPT / row["folder"] / "clips.safetensors")["clips"]
            shown.append((row["name"], clips))
    frames = np.linspace(0, bench.settings.frames - 1, STRIP_FRAMES).round().astype(int)
    lines = [
        np.concatenate([f for clip in clips.numpy() for f in clip[frames]], axis=1) for _, clips in shown
    ]
    picture = Image.fromarray(np.concatenate(lines, axis=0))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)
    print("rows of the strips:", ", ".join(name for name, _ in shown))


def sight_of(recoveries: Recoveries) -> list[float]:
    """What the discriminator sees on this teacher, level by level."""
    bench, params = recoveries.bench, recoveries.params(TERMS["MCA"], {})
    with torch.no_grad():
        data = recoveries.latents(TRAINING_CLIPS)
    batch = RecoveryBatches(data, bench.family, bench.settings, BATCH, 0).batch(0)
    step = RecoveryStep(bench.family, copy.deepcopy(bench.unet), bench.unet, [], params, batch)
    return [round(share, 4) for share in step.sight(batch)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=64, help="clips students are judged on")
    parser.add_argument("--arms", nargs="+", help="only these rows of the tables")
    parser.add_argument("--teacher", type=Path, help="a pipeline directory; the shipped one by default")
    arguments = parser.parse_args()
    told = arguments.teacher.name if arguments.teacher else "mini"
    with torch.no_grad():
        bench = Bench(arguments.clips, profile_clips=8, teacher=arguments.teacher)
        recoveries = Recoveries(bench, arguments.steps)
        unrecovered = functools.cache(lambda cut: bench.judge(cut(bench)))
    for table in arguments.tables:
        with torch.no_grad():
            pruned = unrecovered(deep_cut if table.startswith("deep") else paper_cut)
        rows = measure(recoveries, table, arguments.seeds, arguments.arms)
        result = {
            "rows": rows,
            "pruned": pruned,
            "verdicts": verdicts(table, rows, pruned["fvd"]),
            "settings": {
                **{name: getattr(arguments, name) for name in ("steps", "seeds", "clips")},
                **{"teacher": told, "fingerprint": fingerprint(bench.unet), "batch_size": 2},
                "sight": sight_of(recoveries),
            },
            "hardware": device_name(),
            "libraries": library_versions(),
        }
        words = ["ablation", table, *([told] if arguments.teacher else [])]
        words += [f"{arguments.steps}-steps"] if arguments.steps != STEPS else []
        words.append(datetime.date.today().isoformat())
        path = RESULTS / f"{'-'.join(words)}.json"
        write_json(path, result)
        chart(rows, path.with_suffix(".png"))
        strips(rows, bench, RESULTS / f"{path.stem}-strips.png")
        for claim, verdict in result["verdicts"].items():
            print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
        print(path)


if __name__ == "__main__":
    main()
