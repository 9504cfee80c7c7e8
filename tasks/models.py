"""The teacher as every later stage sees it: one device rule, one set of sampling settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob
from vdmini_core.errors import VDMiniError

if TYPE_CHECKING:
    import torch

    from vdmini_core.models.base import Family, SamplingSettings

START = "start"  # beside the teacher's pipeline, where an earlier student is cut further


def device_of(job: StageJob) -> str:
    """The device that `base.device` means here.

    Raises:
        VDMiniError: for a GPU that is not there.
    """
    import torch

    chosen = job.params.base.device
    if chosen == "cuda" and not torch.cuda.is_available():
        raise VDMiniError(
            "there is no GPU here", expected="base.device: auto or cpu", found="base.device: cuda"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if chosen == "auto" else chosen


def sampling_dtype(job: StageJob) -> torch.dtype:
    """`sampling.precision`: of models that are sampled or encode, never of what is learned or saved."""
    from vdmini_core.models.precision import DTYPES

    return DTYPES[job.params.sampling.precision]


def in_half(job: StageJob) -> bool:
    """Whether models are sampled with other numbers than they are cut, learned and saved in."""
    return job.params.sampling.precision != "fp32"


def load_teacher(
    job: StageJob, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Any, Family, SamplingSettings]:
    """The teacher's pipeline, its family and how it samples.

    In float32 unless a `dtype` is given. The `teacher` stage wrote the prepared clips' size and the
    `sampling` overrides into `vdmini.json`, so every stage after it reads the very same settings.
    """
    from vdmini_core.models.registry import family_of, load_pipeline, load_settings

    directory = job.artifact("teacher") / "pipeline"
    import torch

    pipeline = load_pipeline(directory, device or device_of(job), dtype or torch.float32)
    return pipeline, family_of(pipeline), load_settings(directory, pipeline)


def prompts_of(job: StageJob, family: Family, split: str, limit: int | None = None) -> tuple[str, ...] | None:
    """The prompts of a split's clips, or of the first ones; None where the family starts from other things.

    Raises:
        DataError: naming the videos without a caption.
    """
    from vdmini_core.data.prompts import load_prompts

    return load_prompts(job.artifact("prepare"), split, limit) if "prompts" in family.needs else None


def load_base(
    job: StageJob, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Any, Family, SamplingSettings]:
    """What is profiled and cut: the teacher, or the student of `teacher.start` in its place."""
    pipeline, family, settings = load_teacher(job, device, dtype)
    put_start(pipeline, family, job.artifact("teacher") / START)
    return pipeline, family, settings


def base_fingerprint(job: StageJob, denoiser: Any) -> str:
    """The fingerprint of what is profiled, by its weights in float32 whatever they are sampled in.

    Args:
        job: the job.
        denoiser: the one that is loaded for sampling.
    """
    from vdmini_core.models.denoiser import load_denoiser
    from vdmini_core.models.registry import fingerprint

    if not in_half(job):
        return fingerprint(denoiser)
    start = job.artifact("teacher") / START
    return fingerprint(load_denoiser(start if start.is_dir() else job.artifact("teacher") / "pipeline"))


def put_start(pipeline: Any, family: Family, folder: Path) -> None:
    """Exchange the teacher's denoiser for the student's in `folder`, where there is one."""
    from vdmini_core.models.denoiser import load_denoiser
    from vdmini_core.models.precision import dtype_of

    if folder.is_dir():
        whole = getattr(pipeline, family.denoiser_name)
        student = load_denoiser(folder, next(whole.parameters()).device, dtype_of(whole))
        pipeline.register_modules(**{family.denoiser_name: student})
