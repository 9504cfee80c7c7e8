"""`teacher`: the pretrained pipeline, from the package, a directory, the hub, or trained here.

Whatever the source, the result is one plain pipeline directory with `vdmini.json`, checked to load, to
run at the size of the prepared clips, and to have units to remove.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.clip_size import check_fit
from tasks.monitor import Monitor
from tasks.s3_folders import local_path
from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import write_json
from vdmini_core.errors import ModelError
from vdmini_core.params import Params, is_number
from vdmini_core.progress import progress_bar

if TYPE_CHECKING:
    from vdmini_core.models.base import Family, SamplingSettings
    from vdmini_core.teacher.recipe import TrainingData

SHOWN_CLIPS = 12  # in the strips of a training


def run(job: StageJob) -> StageOutcome:
    """Fetch or make the teacher, fit it to the prepared clips and check it."""
    from tasks.start import keep_start
    from vdmini_core.models.registry import (
        family_of,
        fingerprint,
        load_pipeline,
        load_settings,
        save_settings,
    )

    out = job.out / "pipeline"
    SOURCES[job.params.teacher.source](job, out)
    pipeline = load_pipeline(out)
    settings = fitted_settings(job.params, load_settings(out, pipeline))
    check_fit(pipeline, settings)
    save_settings(out, settings)
    family = family_of(pipeline)
    check_prompts(job, family)
    denoiser = getattr(pipeline, family.denoiser_name)
    check_runs(denoiser, settings)
    units = family.units(denoiser, settings, "pair")
    return StageOutcome(
        metrics={
            "source": job.params.teacher.source,
            "family": family.name,
            "fingerprint": fingerprint(denoiser),
            "params": sum(parameter.numel() for parameter in denoiser.parameters()),
            "units": len(units),
            "steps": settings.steps,
            **keep_start(job, denoiser),
        },
        table=[
            {
                "teacher": type(pipeline).__name__,
                "params": sum(parameter.numel() for parameter in denoiser.parameters()),
                "clips": f"{settings.frames} x {settings.height} x {settings.width}",
                "steps": settings.steps,
                "guidance": settings.guidance,
            }
        ],
        title="Teacher",
    )


def fetch_bundled(job: StageJob, out: Path) -> None:
    """A teacher of the package; those called `nano` are made on the spot, with random weights."""
    from vdmini_core.bundled import bundled_teacher_path

    name = job.params.teacher.bundled
    if name not in ("nano", "nano-t2v", "nano-dit"):
        copy_pipeline(bundled_teacher_path(name), out)
        return
    from vdmini_core.models.registry import merge_settings, pipeline_settings, save_pipeline

    pipeline: Any
    if name == "nano":
        from vdmini_core.teacher.architecture import build_pipeline, call_arguments

        pipeline, arguments = build_pipeline("nano", job.params.base.seed), call_arguments("nano")
    elif name == "nano-dit":
        from vdmini_core.teacher.dit_architecture import NANO_DIT_CALL, build_dit_pipeline

        pipeline, arguments = build_dit_pipeline(job.params.base.seed), NANO_DIT_CALL
    else:
        from vdmini_core.teacher.text_architecture import NANO_T2V_CALL, build_text_pipeline

        pipeline, arguments = build_text_pipeline(job.params.base.seed), NANO_T2V_CALL
    save_pipeline(pipeline, out, merge_settings(pipeline_settings(pipeline), arguments))


def fetch_path(job: StageJob, out: Path) -> None:
    """The user's own pipeline directory."""
    source = local_path(job.root, job.params.teacher.path or "")
    if not source.is_dir():
        raise ModelError(
            "teacher.path is not a directory",
            expected="a diffusers pipeline directory",
            found=job.params.teacher.path or "nothing",
            fix="set teacher.path to the directory that `save_pretrained` wrote",
        )
    copy_pipeline(source, out)


TOKENIZER_FILES = ("tokenizer*/*.txt", "tokenizer*/*.model")


def fetch_hub(job: StageJob, out: Path) -> None:
    """A pipeline of the Hugging Face hub at a pinned revision: configs, safetensors and vocabularies only.

    Raises:
        ModelError: without a pinned revision, offline, or where access is refused.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    params = job.params.teacher
    if not params.revision:
        raise ModelError(
            "source: hub needs a pinned revision",
            expected="teacher.revision, the commit of the repository",
            fix="take it from the repository's history page, so that a rerun gives the same bytes",
        )
    try:
        folder = snapshot_download(
            params.hub_id or "",
            revision=params.revision,
            allow_patterns=["model_index.json", "*/*.json", "*/*.safetensors", *TOKENIZER_FILES],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{params.hub_id} cannot be downloaded",
            expected="network access, and HF_TOKEN where the model is gated",
            found=str(error).strip().split("\n")[0],
            fix="download it elsewhere and use teacher.source: path",
        ) from error
    copy_pipeline(Path(folder), out)


def train_here(job: StageJob, out: Path) -> None:
    """A teacher of our own, of the size of the prepared clips; resumes where it was killed.

    Procedural clips are drawn anew for every step, so that `prepare.clips` does not bound the training;
    from a folder of videos it learns what was prepared. Curves are live in MLflow, with strips of held-out
    clips (real above sampled); `strips.png` and `training.json` stay with the stage's outputs.
    """
    import numpy as np

    from vdmini_core.models.registry import default_settings, merge_settings, save_pipeline
    from vdmini_core.teacher.architecture import ARCHITECTURES, build_from, call_arguments
    from vdmini_core.teacher.measure import interleaved, measure, sample_clips, write_strips
    from vdmini_core.teacher.recipe import train_autoencoder, train_generator
    from vdmini_core.teacher.training import TrainConfig
    from vdmini_core.teacher.vae_training import VaeTrainConfig

    params, prepare, seed = job.params.teacher.train, job.params.prepare, job.params.base.seed
    data = training_data(job)
    architecture = ARCHITECTURES[params.size]
    architecture = replace(architecture, frames=prepare.frames, height=prepare.height, width=prepare.width)
    pipeline: Any = build_from(architecture, seed)
    with Progress(job.monitor, "autoencoder", params.vae_steps) as show:
        vae_config = VaeTrainConfig(
            steps=params.vae_steps, checkpoint_every=params.checkpoint_every, seed=seed
        )
        train_autoencoder(pipeline, data, vae_config, job.work, show)
    config = TrainConfig(
        steps=params.steps,
        window_steps=round(params.window_share * params.steps),
        quiet_steps=round(params.quiet_share * params.steps),
        batch_size=params.batch_size,
        window_batch_size=params.window_batch_size,
        learning_rate=params.learning_rate,
        probe_every=params.probe_every,
        checkpoint_every=params.checkpoint_every,
        seed=seed,
    )

    def pictures(step: int, real: Any, made: Any) -> None:
        path = job.work / f"strips-{step:06d}.png"
        write_strips(path, interleaved(real, made))
        job.monitor.picture(path)

    with Progress(job.monitor, "unet", params.steps) as show:
        train_generator(pipeline, data, config, job.work, show, pictures)
    settings = default_settings(dict(pipeline.unet.config), dict(pipeline.vae.config))
    arguments = {
        **call_arguments(params.size),
        "num_frames": prepare.frames,
        "height": prepare.height,
        "width": prepare.width,
    }
    save_pipeline(pipeline, out, merge_settings(settings, arguments))
    clips = data.held_out(SHOWN_CLIPS)
    write_strips(
        job.out / "strips.png",
        interleaved((clips / 255).astype(np.float32), sample_clips(pipeline, clips, arguments)),
    )
    reached = measure(pipeline, clips, arguments)
    reached.pop("seconds_per_clip")  # varies from run to run
    write_json(job.out / "training.json", reached)
    job.monitor.metrics(
        {f"teacher/{k}": float(v) for k, v in reached.items() if is_number(v)}, step=params.steps
    )


def training_data(job: StageJob) -> TrainingData:
    """What a teacher is trained on: procedural clips without end, or the prepared ones."""
    from vdmini_core.data.clips import load_clips
    from vdmini_core.data.procedural import ProceduralSpec
    from vdmini_core.teacher.recipe import ProceduralData, StoredData

    prepare = job.params.prepare
    if prepare.source == "procedural":
        spec = ProceduralSpec(
            prepare.frames, prepare.height, prepare.width, max(1, round(prepare.fps)), prepare.level
        )
        return ProceduralData(spec, job.params.base.seed)
    train, validation = (load_clips(job.artifact("prepare"), split) for split in ("train", "validation"))
    return StoredData(train.numpy(), validation.numpy())


class Progress:
    """A bar for a training, and its numbers for the monitor; called with the rows of its curve."""

    def __init__(self, monitor: Monitor, name: str, steps: int) -> None:
        self.monitor, self.name, self.steps = monitor, name, steps

    def __enter__(self) -> Progress:
        self.bar = progress_bar(f"training the {self.name}", self.steps, "step")
        return self

    def __call__(self, row: dict[str, Any]) -> None:
        """Take one row of the curve."""
        numbers = {f"{self.name}/{k}": float(v) for k, v in row.items() if k != "step" and is_number(v)}
        self.monitor.metrics(numbers, step=row["step"])
        if "loss" in row:
            self.bar.set_postfix(loss=row["loss"], refresh=False)
        self.bar.update(row["step"] - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()


SOURCES = {"bundled": fetch_bundled, "path": fetch_path, "hub": fetch_hub, "train": train_here}


def copy_pipeline(source: Path, out: Path) -> None:
    """Plain copies of the files that loading needs, and of `vdmini.json`; nothing else comes along.

    Raises:
        ModelError: when the directory is incomplete or unsafe.
    """
    from vdmini_core.foreign import demand_inside
    from vdmini_core.models.pipeline_dir import needed_files
    from vdmini_core.models.registry import SETTINGS

    files = needed_files(source)
    if (source / SETTINGS).is_file():
        files.append(Path(SETTINGS))
    demand_inside(source, files)
    for relative in files:
        target = out / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target)


def fitted_settings(params: Params, own: SamplingSettings) -> SamplingSettings:
    """A teacher's own settings at the size of the prepared clips, with `sampling` laid over them.

    Later stages read them from `vdmini.json`.
    """
    prepare, sampling = params.prepare, params.sampling
    return replace(
        own,
        frames=prepare.frames,
        height=prepare.height,
        width=prepare.width,
        fps=prepare.fps,
        decode_chunk_size=min(own.decode_chunk_size, prepare.frames),
        steps=sampling.steps or own.steps,
        guidance=sampling.guidance or own.guidance,
    )


def check_runs(denoiser: Any, settings: SamplingSettings) -> None:
    """One pass at the real size on the meta device (shapes) and one tiny real pass (finite numbers).

    Raises:
        ModelError: when either fails.
    """
    import torch

    from vdmini_core.models.calls import example_call, smallest
    from vdmini_core.models.flops import total_flops

    try:
        total_flops(denoiser, settings)
        with torch.no_grad():
            sample = example_call(denoiser, smallest(denoiser, settings))(denoiser)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            "the teacher does not run at the size of the prepared clips",
            found=str(error).split("\n")[0],
            fix="choose prepare.height and prepare.width as the teacher was trained",
        ) from error
    if not torch.isfinite(sample).all():
        raise ModelError(
            "the teacher answers with NaN or infinite values",
            found="non-finite output",
            fix="look at its weights and `vdmini generate`; sampling.precision=fp32 where it was bf16",
        )


def check_prompts(job: StageJob, family: Family) -> None:
    """Refuse clips without captions where this teacher starts from prompts: later stages would, later.

    Raises:
        DataError: naming the videos that have none.
    """
    from tasks.models import prompts_of
    from vdmini_core.data.clips import SPLITS

    for split in SPLITS:
        prompts_of(job, family, split)
