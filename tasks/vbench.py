"""VBench within stage `evaluate`: write the folders it scores, read back what it found.

Videos are made once: they lie in `.vdmini/vbench`, keyed by everything they depend on, and are linked into
the artifact, so that a run that only reads new results generates none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdmini_core
from tasks.models import device_of
from tasks.s3_folders import local_path
from tasks.stage import StageJob
from vdmini_core.artifacts import digest_of, library_versions, sha256_file, tree_digest, write_json
from vdmini_core.errors import ModelError, ParamsError, VDMiniError
from vdmini_core.metrics.vbench import Kind, Video, check_folder, plan_videos, write_suite
from vdmini_core.metrics.vbench_results import read_results
from vdmini_core.metrics.vbench_suite import read_first_frame
from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.generate import generate
from vdmini_core.models.inputs import ClipInputs

# Model -> stage and folder its weights lie in.
MODELS = {"teacher": ("teacher", "pipeline"), "recovered": ("distill", "student")}
# What, of our own code, a video's pixels depend on.
_SOURCES = ("models/*.py", "metrics/vbench*.py", "data/video.py")


def hand_over(
    job: StageJob,
    pipelines: Mapping[str, Any],
    family: Family,
    settings: SamplingSettings,
) -> dict[str, Any]:
    """Write `vbench/<model>/` where a suite is set; read what VBench found where it has run.

    Returns:
        `{"vbench": {"kind", "suite", "scores"}}`: `suite` says what the videos were made from (None without
        a suite), `scores` maps models to flat metrics. Empty where there is neither.

    Raises:
        VDMiniError: for a suite, a folder of images or a result file that cannot be used.
    """
    wanted = job.params.evaluate.vbench
    scores = _scores(job)
    suite = None
    if wanted.suite is not None:
        _check_kind(wanted.kind, family)
        suite = _write(job, pipelines, family, settings, scores)
    return {"vbench": {"kind": wanted.kind, "suite": suite, "scores": scores}} if suite or scores else {}


def _check_kind(kind: Kind, family: Family) -> None:
    images = "first_frames" in family.needs
    if kind == "t2v" and images:
        raise ModelError(
            f"models of family `{family.name}` start from an image, they do not take prompts alone",
            expected="a text-to-video model for VBench-T2V",
            fix="set evaluate.vbench.kind=i2v with VBench-I2V's suite and images",
        )
    if kind == "i2v" and not images:
        raise ModelError(
            f"models of family `{family.name}` start from prompts, they do not take images",
            expected="an image-to-video model for VBench-I2V",
            fix="set evaluate.vbench.kind=t2v with VBench's suite",
        )


def _scores(job: StageJob) -> dict[str, dict[str, float]]:
    folder = local_path(job.root, job.params.evaluate.vbench.results)
    there = [model for model in MODELS if (folder / model).is_dir()]
    found = {model: read_results(folder / model, job.params.evaluate.vbench.kind) for model in there}
    return {model: scores for model, scores in found.items() if scores}


def _write(
    job: StageJob,
    pipelines: Mapping[str, Any],
    family: Family,
    settings: SamplingSettings,
    scored: Collection[str],
) -> dict[str, Any]:
    videos = _plan(job, settings)
    seeds = {video.name: video.seed for video in videos}
    facts = _facts(job, videos, settings)
    out = job.out / "vbench"
    for model in MODELS:
        store = _store(job, model, {**facts, "seeds": seeds})

        def make(batch: Sequence[Video], pipeline: Any = pipelines[model]) -> Tensor:
            inputs = _inputs(batch, family, settings)
            return generate(pipeline, inputs, [v.seed for v in batch], settings, len(batch))

        made = write_suite(videos, make, store, fps=settings.fps, batch_size=job.params.sampling.batch_size)
        if made < len(videos):
            job.monitor.note(f"VBench, {model}: {len(videos) - made} of {len(videos)} videos were there")
        if made and model in scored:
            job.monitor.note(
                f"VBench, {model}: {made} videos are newer than its results: "
                "if the model or the suite changed, run VBench again"
            )
        _link(store, out / model, videos)
    write_json(out / "seeds.json", seeds)
    return {key: facts[key] for key in ("name", "sha256", "image_folder", "size", "frames", "fps", "videos")}


def _plan(job: StageJob, settings: SamplingSettings) -> list[Video]:
    wanted = job.params.evaluate.vbench
    if wanted.suite is None or (wanted.kind == "i2v" and wanted.images is None):
        raise ParamsError(
            "VBench-I2V needs `evaluate.vbench.suite` and `evaluate.vbench.images`", fix="set both"
        )
    return plan_videos(
        wanted.kind,
        local_path(job.root, wanted.suite),
        images=None if wanted.images is None else local_path(job.root, wanted.images),
        size=(settings.height, settings.width),
        seeds=wanted.seeds,
        base_seed=job.params.base.seed,
    )


def _inputs(videos: Sequence[Video], family: Family, settings: SamplingSettings) -> ClipInputs:
    """What some videos are made from: their images, their prompts, or both, as the family needs."""
    images = [video.image for video in videos if video.image is not None]
    pixels = None
    if "first_frames" in family.needs:
        frames = [read_first_frame(image, settings.height, settings.width) for image in images]
        pixels = torch.stack([torch.from_numpy(frame) for frame in frames])
    prompts = tuple(video.prompt for video in videos) if "prompts" in family.needs else None
    return ClipInputs(pixels, prompts)


def _facts(job: StageJob, videos: Sequence[Video], settings: SamplingSettings) -> dict[str, Any]:
    """What the videos of every model depend on alike."""
    suite = local_path(job.root, str(job.params.evaluate.vbench.suite))
    core = Path(vdmini_core.__file__).parent
    sources = sorted(path for pattern in _SOURCES for path in core.glob(pattern))
    images = sorted({video.image for video in videos if video.image is not None})
    return {
        "name": suite.name,
        "sha256": sha256_file(suite),
        "image_folder": images[0].parent.name if images else None,
        "images": {path.name: sha256_file(path) for path in images},
        "size": [settings.height, settings.width],
        "frames": settings.frames,
        "fps": settings.fps,
        "videos": len(videos),
        "sampling": {
            **asdict(settings),
            "batch_size": job.params.sampling.batch_size,
            "precision": job.params.sampling.precision,
        },
        "machine": [device_of(job), torch.get_num_threads()],
        "code": {path.relative_to(core).as_posix(): sha256_file(path) for path in sources},
        "libraries": library_versions(),
        "teacher": tree_digest(job.artifact("teacher") / "pipeline"),
    }


def _store(job: StageJob, model: str, facts: Mapping[str, Any]) -> Path:
    """Where a model's videos are kept; those of other weights or settings are removed."""
    stage, folder = MODELS[model]
    key = digest_of({**facts, "weights": tree_digest(job.artifact(stage) / folder)})[:16]
    home = job.root / ".vdmini" / "vbench"
    for old in home.glob(f"{model}-*"):
        if old.name != f"{model}-{key}":
            shutil.rmtree(old)
    return home / f"{model}-{key}"


def _link(store: Path, out: Path, videos: Sequence[Video]) -> None:
    """The folder VBench is given: links, for two copies of a large suite would fill a disk."""
    out.mkdir(parents=True)
    for video in videos:
        try:
            os.link(store / video.name, out / video.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(store / video.name, out / video.name)
    found = check_folder(out, videos)
    if not found.complete:
        raise VDMiniError(
            "the folder for VBench is not whole",
            found=f"missing {found.missing[:3]}, not of the suite {found.extra[:3]}",
            fix="run it again: videos that are there are kept; take what is not of the suite away",
        )
