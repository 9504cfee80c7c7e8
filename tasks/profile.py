"""`profile`: every unit removed and replaced on the same noise, its damage and its time.

Each finished unit is a file in the job's scratch, so that a killed profile continues; with more than one
worker the units are spread over Ray actors that hold the teacher once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.progress import track

if TYPE_CHECKING:
    from vdmini_core.models.base import SamplingSettings, Unit

Trial = tuple[str, str]
FLOOR: Trial = ("", "floor")


@dataclass(frozen=True)
class Bench:
    """What a worker needs to try units: plain data, so that it can be sent.

    Attributes:
        teacher: pipeline directory.
        inputs: file of `ProfileInputs.save`.
        settings: fields of `SamplingSettings`.
        batch_size: clips sampled at once.
        seed: of the profile.
        device: `cpu` or `cuda`.
        threads: torch threads; bytes depend on them.
        shared_bytes: memory for what units share.
    """

    teacher: str
    inputs: str
    settings: dict[str, Any]
    batch_size: int
    seed: int
    device: str
    threads: int
    shared_bytes: int


class Profiler:
    """Loads the teacher and the shared inputs once, then tries unit after unit."""

    def __init__(self, bench: Bench) -> None:
        import torch

        from vdmini_core.metrics import load_extractor
        from vdmini_core.models.base import SamplingSettings
        from vdmini_core.models.registry import family_of, load_pipeline
        from vdmini_core.profiling.sensitivity import COLUMNS, ProfileInputs, record_shared

        torch.set_num_threads(bench.threads)
        self.pipeline = load_pipeline(Path(bench.teacher), device=bench.device)
        self.family = family_of(self.pipeline)
        settings = SamplingSettings(**bench.settings)
        self.inputs = ProfileInputs.load(
            Path(bench.inputs), settings, bench.batch_size, bench.seed, bench.device
        )
        self.extractors = {name: load_extractor(name, device=bench.device) for name in COLUMNS}
        self.features = {name: extract(self.inputs.clips) for name, extract in self.extractors.items()}
        self.traces = record_shared(self.pipeline, self.family, self.inputs, bench.shared_bytes)

    def measure(self, trial: Trial) -> dict[str, float]:
        """The figures of one trial: (unit, variant), or `FLOOR`."""
        from vdmini_core.profiling.sensitivity import noise_floor, profile_unit

        if trial == FLOOR:
            return noise_floor(self.pipeline, self.family, self.inputs, self.extractors, self.features)
        unit, variant = trial
        return profile_unit(
            self.pipeline,
            self.family,
            unit,
            variant,  # type: ignore[arg-type]
            self.inputs,
            self.extractors,
            self.features,
            self.traces,
        )

    def measure_named(self, trial: Trial) -> tuple[Trial, dict[str, float]]:
        """As `measure`, with the trial it is of: results come back in any order."""
        return trial, self.measure(trial)


def run(job: StageJob) -> StageOutcome:
    """Profile the teacher on validation clips; resumes unit by unit."""
    from tasks.models import load_teacher
    from vdmini_core.models.registry import fingerprint
    from vdmini_core.profiling.sensitivity import assemble
    from vdmini_core.report.charts import sensitivity_chart

    params = job.params.profile
    pipeline, family, settings = load_teacher(job)
    denoiser = getattr(pipeline, family.denoiser_name)
    units = family.units(denoiser, settings, params.granularity)
    bench, clips = prepare_bench(job, pipeline, settings)
    results = measure_all(job, bench, trials(units, params.variants))
    floor = results.pop(FLOOR)
    table = assemble(units, results, floor, fingerprint(denoiser), clips, job.params.base.seed)
    write_json(job.out / "sensitivity.json", table)
    charts = ("sensitivity.svg", "sensitivity.png")
    for chart in charts:
        sensitivity_chart(table, job.out / chart)
    return StageOutcome(
        metrics={"units": len(units), "clips": clips, "floor_fvd": floor["fvd"]},
        charts=charts,
        timing=measure_times(pipeline, units, settings, params.timing_repeats),
        table=summary(table),
        title="Sensitivity: distance to the teacher when a unit is removed",
    )


def trials(units: Sequence[Unit], variants: Sequence[str]) -> list[Trial]:
    """The noise floor, then every unit in every variant."""
    return [FLOOR, *((unit.name, variant) for unit in units for variant in variants)]


def prepare_bench(job: StageJob, pipeline: Any, settings: SamplingSettings) -> tuple[Bench, int]:
    """Sample the whole teacher once, where a killed run has not done it; the bench and its clips."""
    from tasks.models import device_of
    from vdmini_core.data.clips import load_clips
    from vdmini_core.models.registry import family_of
    from vdmini_core.profiling.sensitivity import prepare_inputs

    clips = load_clips(job.artifact("prepare"), "validation", job.params.profile.clips)
    if len(clips) < job.params.profile.clips:
        job.monitor.note(f"profile uses the {len(clips)} validation clips there are")
    path, seed = job.work / "inputs.safetensors", job.params.base.seed
    batch_size = job.params.sampling.batch_size
    if not path.is_file():
        prepare_inputs(pipeline, family_of(pipeline), clips, settings, seed, batch_size).save(path)
    bench = Bench(
        teacher=str(job.artifact("teacher") / "pipeline"),
        inputs=str(path),
        settings=asdict(settings),
        batch_size=batch_size,
        seed=seed,
        device=device_of(job),
        threads=job.worker_threads(job.params.profile.workers),
        shared_bytes=int(job.params.profile.shared_gib * 2**30),
    )
    return bench, len(clips)


def measure_all(job: StageJob, bench: Bench, wanted: Sequence[Trial]) -> dict[Trial, dict[str, float]]:
    """Every trial's figures: what a killed run left, the rest measured now, each kept as it comes."""
    folder = job.work / "units"
    folder.mkdir(parents=True, exist_ok=True)
    pending = [trial for trial in wanted if not _file(folder, trial).is_file()]
    if len(pending) < len(wanted):
        job.monitor.note(f"profile went on after {len(wanted) - len(pending)} of {len(wanted)} trials")
    workers = min(job.params.profile.workers, len(pending))
    measured = _on_ray(bench, pending, workers) if workers > 1 else _here(bench, pending)
    for trial, figures in track(measured, "profile", total=len(pending), unit="trial"):
        write_json(_file(folder, trial), figures)
    return {trial: read_json(_file(folder, trial)) for trial in wanted}


def measure_times(
    pipeline: Any, units: Sequence[Unit], settings: SamplingSettings, repeats: int
) -> dict[str, Any]:
    """Milliseconds of every unit in one pass at batch 1; copy the file to `timing/` to plan by latency."""
    from vdmini_core.models.flops import unet_inputs
    from vdmini_core.models.registry import architecture
    from vdmini_core.profiling.timing import time_units

    denoiser = pipeline.unet
    device = str(next(denoiser.parameters()).device)
    inputs = unet_inputs(denoiser, settings.frames, *settings.latent_size, device=device)
    times = time_units(denoiser, units, lambda: denoiser(*inputs), repeats)
    # Times do not depend on weights, but unit names are the same in models of other widths.
    return times | {"device": device, "architecture": architecture(denoiser)}


def summary(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for people: the damage of removal beside the cost."""
    rows = []
    for unit in table["units"]:
        figures = unit.get("removed") or unit.get("replaced")
        rows.append(
            {
                "unit": unit["name"],
                "params": unit["parameters"],
                "GFLOP": round(unit["flops"] / 1e9, 3),
                **{name: figures[name] for name in ("fvd", "content", "motion", "paired_mse")},
                "removable": "yes" if unit["removable"] else unit["reason"],
            }
        )
    return rows


def _file(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial[0] or 'teacher'}-{trial[1]}.json"


def _here(bench: Bench, pending: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, float]]]:
    if not pending:
        return
    profiler = Profiler(bench)
    for trial in pending:
        yield trial, profiler.measure(trial)


def _on_ray(bench: Bench, pending: Sequence[Trial], workers: int) -> Iterator[tuple[Trial, dict[str, float]]]:
    from tasks.ray_runtime import ray_session

    with ray_session(num_cpus=workers):
        import ray
        from ray.util import ActorPool

        options = {"num_cpus": 1, "num_gpus": 1 if bench.device == "cuda" else 0}
        remote: Any = ray.remote(**options)(Profiler)
        pool = ActorPool([remote.remote(bench) for _ in range(workers)])
        yield from pool.map_unordered(lambda actor, trial: actor.measure_named.remote(trial), list(pending))
