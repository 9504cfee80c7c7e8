"""`profile`: every unit removed and replaced on the same noise, its damage and its time.

A first round tries every unit on `profile.clips` clips and measures everything; then, up to
`profile.max_clips`, units whose paired errors cannot be told from a neighbour's meet more clips, which
needs no decoding. Each trial of a round is a file in the job's scratch, so that a killed profile continues;
with more than one worker the trials are spread over Ray actors that hold the teacher once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.progress import track

if TYPE_CHECKING:
    from vdmini_core.models.base import SamplingSettings, Unit

# Unit and variant.
Trial = tuple[str, str]
FLOOR: Trial = ("", "floor")


@dataclass(frozen=True)
class Piece:
    """One trial on the clips of one round; the first round starts at 0 and measures everything."""

    trial: Trial
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its name in the job's scratch."""
        unit, variant = self.trial
        return f"{unit or 'teacher'}-{variant}-{self.start}-{self.stop}.json"


@dataclass(frozen=True)
class Bench:
    """What a worker needs to try units: plain data, so that it can be sent.

    Attributes:
        teacher: pipeline directory.
        inputs: file of `ProfileInputs.save`; as many clips are decoded as the first round tries.
        settings: fields of `SamplingSettings`.
        batch_size: clips sampled at once.
        seed: of the profile.
        device: `cpu` or `cuda`.
        threads: torch threads; bytes depend on them.
        shared_bytes: memory for what units share.
        precision: `sampling.precision`.
    """

    teacher: str
    inputs: str
    settings: dict[str, Any]
    batch_size: int
    seed: int
    device: str
    threads: int
    shared_bytes: int
    precision: str = "fp32"


class Profiler:
    """Loads the teacher and the shared inputs once, then tries unit after unit."""

    def __init__(self, bench: Bench) -> None:
        import torch

        from tasks.models import START, put_start
        from vdmini_core.metrics import load_extractor
        from vdmini_core.models.base import SamplingSettings
        from vdmini_core.models.precision import DTYPES
        from vdmini_core.models.registry import family_of, load_pipeline
        from vdmini_core.profiling.sensitivity import COLUMNS, ProfileInputs

        torch.set_num_threads(bench.threads)
        self.pipeline = load_pipeline(Path(bench.teacher), bench.device, DTYPES[bench.precision])
        self.family = family_of(self.pipeline)
        put_start(self.pipeline, self.family, Path(bench.teacher).parent / START)
        settings = SamplingSettings(**bench.settings)
        self.inputs = ProfileInputs.load(
            Path(bench.inputs), settings, bench.batch_size, bench.seed, bench.device
        )
        self.extractors = {name: load_extractor(name, device=bench.device) for name in COLUMNS}
        self.features = {name: extract(self.inputs.clips) for name, extract in self.extractors.items()}
        self.shared_bytes = bench.shared_bytes
        self.round: tuple[int, int] | None = None

    def measure(self, piece: Piece) -> dict[str, Any]:
        """`errors` clip by clip, and the `figures` of the first round."""
        from vdmini_core.profiling.sensitivity import clip_errors, damage, noise_floor, unit_latents

        self._enter_round(piece)
        if piece.trial == FLOOR:
            floor = noise_floor(self.pipeline, self.family, self.rows, self.extractors, self.features)
            return {"figures": floor}
        unit, variant = piece.trial
        latents = unit_latents(self.pipeline, self.family, unit, variant, self.rows, self.traces)  # type: ignore[arg-type]
        errors = {"errors": clip_errors(latents, self.rows.latents)}
        if piece.start:
            return errors
        clips = self.family.decode_latents(self.pipeline, latents, self.rows.settings)
        return errors | {"figures": damage(latents, clips, self.rows, self.extractors, self.features)}

    def measure_named(self, piece: Piece) -> tuple[Piece, dict[str, Any]]:
        """As `measure`, with the piece it is of: results come back in any order."""
        return piece, self.measure(piece)

    def _enter_round(self, piece: Piece) -> None:
        """Record once a round what its units share."""
        from vdmini_core.profiling.sensitivity import record_shared

        if self.round != (piece.start, piece.stop):
            self.round = (piece.start, piece.stop)
            self.rows = self.inputs.rows(*self.round)
            self.traces: list[Any] = []  # the last round's go before new ones are held
            self.traces = record_shared(self.pipeline, self.family, self.rows, self.shared_bytes)


def run(job: StageJob) -> StageOutcome:
    """Profile the teacher on validation clips; resumes trial by trial."""
    from tasks.models import base_fingerprint, load_base, sampling_dtype
    from vdmini_core.profiling.sensitivity import assemble
    from vdmini_core.report.charts import sensitivity_chart

    params = job.params.profile
    pipeline, family, settings = load_base(job, dtype=sampling_dtype(job))
    denoiser = getattr(pipeline, family.denoiser_name)
    units = family.units(denoiser, settings, params.granularity)
    bench, clips, most = prepare_bench(job, pipeline, settings)
    wanted = trials(units, params.variants)
    with crew(bench, params.workers) as workers:
        first = measure_all(job, workers, [Piece(trial, 0, clips) for trial in wanted], "profile")
        figures = {piece.trial: found["figures"] for piece, found in first.items()}
        errors = {piece.trial: found["errors"] for piece, found in first.items() if piece.trial != FLOOR}
        refine(job, workers, errors, clips, most)
    floor = figures.pop(FLOOR)
    table = assemble(
        units, with_errors(figures, errors), floor, base_fingerprint(job, denoiser), clips, bench.seed
    )
    write_json(job.out / "sensitivity.json", table)
    charts = ("sensitivity.svg", "sensitivity.png")
    for chart in charts:
        sensitivity_chart(table, job.out / chart)
    samples = sum(len(found) for found in errors.values())
    return StageOutcome(
        metrics={
            "units": len(units),
            "clips": clips,
            "floor_fvd": floor["fvd"],
            "clips_of_full_sweep": samples / (most * len(errors)),
        },
        charts=charts,
        timing=measure_times(pipeline, units, settings, params.timing_repeats),
        table=summary(table),
        title="Sensitivity: distance to the teacher when a unit is removed",
    )


def trials(units: Sequence[Unit], variants: Sequence[str]) -> list[Trial]:
    """The noise floor, then every unit in every variant."""
    return [FLOOR, *((unit.name, variant) for unit in units for variant in variants)]


def refine(job: StageJob, workers: Crew, errors: dict[Trial, list[float]], clips: int, most: int) -> None:
    """Extend `errors` of the trials whose order is open, round by round."""
    from vdmini_core.profiling.rounds import rounds, undecided

    for start, stop in rounds(clips, most):
        pending = []
        for variant in dict.fromkeys(variant for _, variant in errors):
            rivals = {trial: found for trial, found in errors.items() if trial[1] == variant}
            pending += [trial for trial in undecided(rivals) if len(errors[trial]) == start]
        pieces = [Piece(trial, start, stop) for trial in pending]
        found = measure_all(job, workers, pieces, f"order open, {stop} clips")
        for piece in pieces:
            errors[piece.trial] = errors[piece.trial] + found[piece]["errors"]


def with_errors(
    figures: Mapping[Trial, dict[str, float]], errors: Mapping[Trial, Sequence[float]]
) -> dict[Trial, dict[str, float]]:
    """The figures with the paired error of all clips the trial met, and how many these were."""
    from vdmini_core.profiling.sensitivity import paired_interval

    return {
        trial: row | paired_interval(errors[trial]) | {"paired_clips": len(errors[trial])}
        for trial, row in figures.items()
    }


def prepare_bench(job: StageJob, pipeline: Any, settings: SamplingSettings) -> tuple[Bench, int, int]:
    """Sample the whole teacher once, where a killed run has not done it; the bench, first and most clips."""
    from tasks.models import device_of, prompts_of
    from vdmini_core.data.clips import load_clips
    from vdmini_core.models.registry import family_of
    from vdmini_core.profiling.sensitivity import prepare_inputs

    params = job.params.profile
    most = max(params.clips, params.max_clips or 0)
    clips = load_clips(job.artifact("prepare"), "validation", most)
    if len(clips) < most:
        job.monitor.note(f"profile uses the {len(clips)} validation clips there are")
    first, most = min(params.clips, len(clips)), len(clips)
    path, seed = job.work / "inputs.safetensors", job.params.base.seed
    batch_size = job.params.sampling.batch_size
    if not path.is_file():
        family = family_of(pipeline)
        prompts = prompts_of(job, family, "validation", most)
        inputs = prepare_inputs(pipeline, family, clips, settings, seed, batch_size, first, prompts)
        inputs.save(path)
    bench = Bench(
        teacher=str(job.artifact("teacher") / "pipeline"),
        inputs=str(path),
        settings=asdict(settings),
        batch_size=batch_size,
        seed=seed,
        device=device_of(job),
        threads=job.worker_threads(params.workers),
        shared_bytes=int(params.shared_gib * 2**30),
        precision=job.params.sampling.precision,
    )
    return bench, first, most


Crew = Callable[[Sequence[Piece]], Iterator[tuple[Piece, dict[str, Any]]]]


def measure_all(
    job: StageJob, workers: Crew, wanted: Sequence[Piece], title: str
) -> dict[Piece, dict[str, Any]]:
    """Every piece's figures: what a killed run left, the rest measured now, each kept as it comes."""
    folder = job.work / "units"
    folder.mkdir(parents=True, exist_ok=True)
    pending = [piece for piece in wanted if not (folder / piece.file).is_file()]
    if len(pending) < len(wanted):
        job.monitor.note(f"profile went on after {len(wanted) - len(pending)} of {len(wanted)} trials")
    if pending:
        for piece, found in track(workers(pending), title, total=len(pending), unit="trial"):
            write_json(folder / piece.file, found)
    return {piece: read_json(folder / piece.file) for piece in wanted}


@contextmanager
def crew(bench: Bench, count: int) -> Iterator[Crew]:
    """Who measures: this process, or `count` Ray actors, started when there is something to measure."""
    with ExitStack() as stack:
        hired: list[Crew] = []

        def work(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, dict[str, Any]]]:
            if not hired:
                hired.append(_here(bench) if count == 1 else _on_ray(bench, count, stack))
            return hired[0](pieces)

        yield work


def measure_times(
    pipeline: Any, units: Sequence[Unit], settings: SamplingSettings, repeats: int
) -> dict[str, Any]:
    """Milliseconds of every unit in one pass at batch 1; copy the file to `timing/` to plan by latency."""
    import torch

    from vdmini_core.models.calls import example_call
    from vdmini_core.models.precision import dtype_of
    from vdmini_core.models.registry import architecture, family_of
    from vdmini_core.profiling.timing import time_units

    denoiser = getattr(pipeline, family_of(pipeline).denoiser_name)
    device = str(next(denoiser.parameters()).device)
    call = example_call(denoiser, settings, device)
    times = time_units(denoiser, units, lambda: call(denoiser), repeats)
    # Times do not depend on weights, but unit names are the same in models of other widths.
    taken = dtype_of(denoiser)
    dtype = {} if taken == torch.float32 else {"dtype": str(taken).removeprefix("torch.")}
    return times | {"device": device, "architecture": architecture(denoiser), **dtype}


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


def _here(bench: Bench) -> Crew:
    profiler = Profiler(bench)
    return lambda pieces: (profiler.measure_named(piece) for piece in pieces)


def _on_ray(bench: Bench, count: int, stack: ExitStack) -> Crew:
    from tasks.ray_runtime import ray_session

    stack.enter_context(ray_session(num_cpus=count))
    import ray
    from ray.util import ActorPool

    options = {"num_cpus": 1, "num_gpus": 1 if bench.device == "cuda" else 0}
    remote: Any = ray.remote(**options)(Profiler)
    pool = ActorPool([remote.remote(bench) for _ in range(count)])
    return lambda pieces: pool.map_unordered(
        lambda actor, piece: actor.measure_named.remote(piece), list(pieces)
    )
