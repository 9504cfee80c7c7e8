"""Stage `evaluate`: quality, motion and speed of teacher, pruned and recovered, beside reference rows.

All three models see the first frames or prompts of the same test clips and the same noise. What the measures
mean is told in `vdmini_core.metrics.comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from tasks.models import device_of, load_teacher, prompts_of, sampling_dtype
from tasks.protocol import fit_protocol, passports, protocol_extractor
from tasks.stage import StageJob, StageOutcome
from tasks.vbench import hand_over
from vdmini_core.artifacts import write_json
from vdmini_core.data.clip_source import ClipSource, joined, kept_clips, stored_clips
from vdmini_core.metrics.comparison import compare_rows, repeat_first_frame, significant
from vdmini_core.metrics.showcase import write_videos
from vdmini_core.metrics.speed import compare_latency, device_name, parameter_bytes, peak_memory
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.flops import decoder_flops, total_flops
from vdmini_core.models.generate import generate
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.precision import dtype_of
from vdmini_core.models.registry import load_pipeline
from vdmini_core.progress import track

MODELS = ("teacher", "pruned", "recovered")
SEED_STRIDE = 100_003  # clips of two base seeds never share their noise


@dataclass(frozen=True)
class Bench:
    """Three pipelines that share all but denoiser and VAE decoder, and how they sample."""

    pipelines: dict[str, Any]
    family: Family
    denoisers: dict[str, nn.Module]
    settings: SamplingSettings
    device: str
    prompts: tuple[str, ...] | None = None

    def inputs(self, real: ClipSource, part: slice) -> ClipInputs:
        """What some of the test clips are made from."""
        return ClipInputs(real[part][:, 0], None if self.prompts is None else self.prompts[part])


def run(job: StageJob) -> StageOutcome:
    """Write `metrics.json`, `videos/` and what VBench is given; latency and memory go to `timing.json`."""
    extract = protocol_extractor(job)  # first: nobody should sample for hours to learn of a missing file
    real, other = _real_clips(job)
    protocol = fit_protocol(job, extract, len(real))
    bench = _load_bench(job, len(real))
    # First, for it refuses what it cannot use, and its videos stay where a later failure leaves them.
    vbench = hand_over(job, bench.pipelines, bench.family, bench.settings)
    seeds = [job.params.base.seed * SEED_STRIDE + index for index in range(len(real))]
    rows = _generate_rows(job, bench, real, seeds)
    truth = _truth(job, len(real)) if "first_frames" in bench.family.needs else None
    seed = job.params.base.seed
    compared = compare_rows(rows, other, seed, bench.device, truth, protocol=protocol)
    metrics = _with_costs(compared["rows"], bench)
    metrics |= {
        "clips": len(real),
        "noise_floor": compared["noise_floor"],
        "passport": passports(job, real.shape, bench.settings, compared["passport"], protocol),
        **vbench,
    }
    videos = job.params.evaluate.videos
    if bench.prompts is not None:  # for the page, which has to say what the clips shown were made from
        metrics |= {"starts_from": list(bench.family.needs), "prompts": list(bench.prompts[:videos])}
    write_json(job.out / "metrics.json", metrics)
    shown = {name: rows[name][:videos] for name in ("real", *MODELS)}
    write_videos(shown, job.out / "videos", videos, job.params.prepare.fps)
    timing = _timing(job, bench, real, seeds)
    table = _table(metrics, extract.name if extract else None)
    return StageOutcome(_headline(metrics), timing=timing, table=table, title="Quality")


def _real_clips(job: StageJob) -> tuple[ClipSource, ClipSource]:
    """Test clips, and as many other real clips: validation first, training clips where those are too few."""
    prepared = job.artifact("prepare")
    wanted = job.params.evaluate.clips
    real = stored_clips(prepared, "test", wanted)
    if len(real) < wanted:
        job.monitor.note(f"evaluated on {len(real)} test clips: there are no more")
    other = stored_clips(prepared, "validation", len(real))
    if len(other) < len(real):
        other = joined(other, stored_clips(prepared, "train", len(real) - len(other)))
    if len(other) < len(real):
        job.monitor.note(f"the row `real` compares {len(other)} clips only, so its bias is larger")
    return real, other


def _truth(job: StageJob, count: int) -> dict[str, NDArray[Any]] | None:
    """What is known about the first test clips, where they were drawn; from a prompt nobody can know it."""
    path = job.artifact("prepare") / "truth-test.safetensors"
    if not path.is_file():
        return None
    return {name: values[:count] for name, values in load_file(path).items()}


def _load_bench(job: StageJob, clips: int) -> Bench:
    device = device_of(job)
    dtype = sampling_dtype(job)
    pipeline, family, settings = load_teacher(job, device, dtype)
    prompts = prompts_of(job, family, "test", clips)
    pipelines = {"teacher": pipeline}
    for name, stage in (("pruned", "prune"), ("recovered", "distill")):
        # What a student shares with its teacher is let go: one copy in memory is enough.
        student = load_pipeline(job.artifact(stage) / "student", device, dtype)
        other = (family.denoiser_name, "vae")
        same = {n: p for n, p in pipeline.components.items() if isinstance(p, nn.Module) and n not in other}
        if type(student.vae) is type(pipeline.vae):
            same["vae"] = pipeline.vae
        student.register_modules(**same)
        pipelines[name] = student
    denoisers = {name: getattr(p, family.denoiser_name) for name, p in pipelines.items()}
    return Bench(pipelines, family, denoisers, settings, device, prompts)


def _generate_rows(
    job: StageJob, bench: Bench, real: ClipSource, seeds: Sequence[int]
) -> dict[str, ClipSource]:
    """Every row of the table; what is sampled lies in the scratch folder, and a killed run goes on there."""
    batch = job.params.sampling.batch_size
    rows = {
        name: kept_clips(job.work / "rows", name, _sample(bench, name, real, seeds, batch), len(real))
        for name in MODELS
    }
    return rows | {"repeat_first_frame": real.derived(repeat_first_frame), "real": real}


def _sample(bench: Bench, name: str, real: ClipSource, seeds: Sequence[int], batch: int) -> Iterator[Tensor]:
    """Clips of one model from the first frames or prompts of the real ones, batch by batch."""
    starts = range(0, len(seeds), batch)
    for start in track(starts, f"evaluate: sampling {name}", len(starts), "batch"):
        part = slice(start, start + batch)
        yield generate(bench.pipelines[name], bench.inputs(real, part), seeds[part], bench.settings, batch)


def _with_costs(rows: dict[str, dict[str, Any]], bench: Bench) -> dict[str, Any]:
    metrics: dict[str, Any] = dict(rows)
    for name, denoiser in bench.denoisers.items():
        metrics[name]["params"] = sum(p.numel() for p in denoiser.parameters())
        metrics[name]["flops"] = total_flops(denoiser, bench.settings)
        vae = bench.pipelines[name].vae
        metrics[name]["vae_decoder_params"] = sum(p.numel() for p in vae.decoder.parameters())
        metrics[name]["vae_decoder_flops"] = decoder_flops(vae, bench.settings)[""]
    for cost in ("params", "flops"):
        metrics[f"{cost}_ratio"] = significant(metrics["recovered"][cost] / metrics["teacher"][cost])
    return metrics


def _timing(job: StageJob, bench: Bench, real: ClipSource, seeds: list[int]) -> dict[str, Any]:
    """Latency of each part, the three models in turn within every round so that drift cancels.

    `peak_memory_bytes` is what one call needs beyond everything that is loaded, weights included.
    """
    batch = min(job.params.evaluate.latency_batch, len(real))
    parts = _timed_parts(bench, bench.inputs(real, slice(batch)), seeds[:batch])
    latency: dict[str, dict[str, float]] = {name: {} for name in MODELS}
    memory: dict[str, dict[str, int]] = {name: {} for name in MODELS}
    details, speedup, speedup_range = {}, {}, {}
    evaluate = job.params.evaluate
    for part, call in track(parts.items(), "evaluate: timing", len(parts), "part"):
        functions = {name: partial(call, name) for name in MODELS}
        with torch.no_grad():
            found = compare_latency(
                functions, evaluate.latency_warmup, evaluate.latency_repeats, device=bench.device
            )
            for name in MODELS:
                memory[name][part] = peak_memory(functions[name], device=bench.device)
        details[part] = found["latency"]
        speedup[part] = found["speedup"]["recovered"]
        speedup_range[part] = found["speedup_range"]["recovered"]
        for name in MODELS:
            latency[name][part] = found["latency"][name]["median_ms"]
    return {
        "latency_ms": latency,
        "speedup": speedup,
        "speedup_range": speedup_range,
        "details": details,
        "peak_memory_bytes": memory,
        "peak_memory_kind": "CUDA allocator" if bench.device.startswith("cuda") else "resident",
        "weight_bytes": {name: parameter_bytes(bench.denoisers[name]) for name in MODELS},
        "device": device_name(bench.device),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "frames": bench.settings.frames,
        "resolution": [bench.settings.height, bench.settings.width],
        "steps": bench.settings.steps,
        "dtype": str(dtype_of(bench.denoisers["teacher"])).removeprefix("torch."),
    }


def _timed_parts(bench: Bench, inputs: ClipInputs, seeds: list[int]) -> dict[str, Callable[[str], Any]]:
    """What is timed, as functions of the model's name."""
    family, pipelines, settings = bench.family, bench.pipelines, bench.settings
    pipeline, teacher = pipelines["teacher"], bench.denoisers["teacher"]
    conditions = family.conditions(pipeline, inputs, settings, seeds[0])
    noise = family.noise(teacher, settings, seeds)
    sigma = family.training_sigmas(settings, len(seeds), torch.Generator().manual_seed(0)).to(noise.device)
    latents = family.sample(pipeline, teacher, noise, conditions, settings)
    return {
        "unet": lambda name: family.denoise(bench.denoisers[name], noise, sigma, conditions),
        "vae_decoder": lambda name: family.decode_latents(pipelines[name], latents, settings),
        "end_to_end": lambda name: generate(pipelines[name], inputs, seeds, settings, batch_size=len(seeds)),
    }


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Flat numbers for the manifest and MLflow."""
    flat: dict[str, Any] = {key: metrics[key] for key in ("params_ratio", "flops_ratio", "clips")}
    for row in (*MODELS, "repeat_first_frame", "real"):
        for key, value in metrics[row].items():
            if isinstance(value, int | float) and not key.endswith(("_low", "_high")):
                flat[f"{row}.{key}"] = value
    for model, scores in metrics.get("vbench", {}).get("scores", {}).items():
        flat |= {f"vbench.{model}.{name}": value for name, value in scores.items()}
    return flat


def _table(metrics: dict[str, Any], protocol: str | None) -> list[dict[str, Any]]:
    published = [f"{protocol}_real"] if protocol else []
    shown = ["fvd_real", "fvd_teacher", *published, "mse_teacher", "content_teacher", "motion_teacher"]
    shown += [key for key in ("trajectory_error",) if key in metrics["recovered"]]
    return [
        {"row": row, **{key: metrics[row].get(key) for key in (*shown, "params", "flops")}}
        for row in (*MODELS, "repeat_first_frame", "real")
    ]
