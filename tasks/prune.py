"""`prune`: the plan carried out; a student pipeline that stock `diffusers` loads where it can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob, StageOutcome
from vdmini_core.errors import ModelError
from vdmini_core.pruning.plan import VAE_DECODER_PLAN, Plan

if TYPE_CHECKING:
    from torch import nn

    from vdmini_core.models.base import SamplingSettings


def run(job: StageJob) -> StageOutcome:
    """Cut the student out of the teacher, write it, and see that it loads as it was."""
    from tasks.models import START, load_teacher
    from vdmini_core.models.denoiser import load_denoiser
    from vdmini_core.models.registry import save_pipeline
    from vdmini_core.pruning.compose import cut_again
    from vdmini_core.pruning.surgery import apply_plan

    out = job.out / "student"
    pipeline, family, settings = load_teacher(job)
    plan = Plan.load(job.artifact("plan") / "plan.json")
    teacher, start = getattr(pipeline, family.denoiser_name), job.artifact("teacher") / START
    if start.is_dir():
        middle = load_denoiser(start, next(teacher.parameters()).device)
        first = Plan.load(start / "plan.json")
        student, plan = cut_again(first, plan, teacher, middle, family, settings)
    else:
        student = apply_plan(teacher, plan, family)
    pipeline.register_modules(**{family.denoiser_name: student})
    cut_vae_decoder(job, pipeline)
    save_pipeline(pipeline, out, settings)
    plan.save(out / "plan.json")
    if job.params.prune.verify:
        verify_reload(student, pipeline.vae, out, family.denoiser_name, settings)
    return StageOutcome(
        metrics={
            "params": plan.expected_params,
            "flops": plan.expected_flops,
            "params_ratio": round(plan.params_ratio, 6),
            "flops_ratio": round(plan.flops_ratio, 6),
            "class": type(student).__name__,
        },
        table=[
            {"student": type(student).__name__, "params": plan.expected_params, "of": plan.teacher_params}
        ],
        title="Student after surgery, not yet recovered",
    )


def cut_vae_decoder(job: StageJob, pipeline: Any) -> None:
    """Put the decoder that the plan leaves into the pipeline, where there is a plan for it."""
    from vdmini_core.pruning.vae_decoder import DecoderPlan, prune_decoder

    path = job.artifact("plan") / VAE_DECODER_PLAN
    if path.is_file():
        pipeline.register_modules(vae=prune_decoder(pipeline.vae, DecoderPlan.load(path)))


def verify_reload(
    student: nn.Module, vae: Any, directory: Path, name: str, settings: SamplingSettings
) -> None:
    """Load what was written; one pass of the denoiser and one small decoding must be the same bit by bit.

    Raises:
        ModelError: when the loaded student answers differently.
    """
    import torch

    from vdmini_core.models.calls import example_call, example_decoding
    from vdmini_core.models.registry import load_pipeline

    device = next(student.parameters()).device
    pipeline = load_pipeline(directory, device=device)
    loaded: Any = getattr(pipeline, name)
    call, decode = example_call(student, settings, device, seed=0), example_decoding(vae, device)
    with torch.no_grad():
        before, after = (call(model) for model in (student, loaded))
        painted = [decode(model) for model in (vae, pipeline.vae)]
    outputs = zip((before, after), painted, strict=True)
    before, after = (torch.cat([made.flatten(), frames.flatten()]) for made, frames in outputs)
    if not torch.equal(before, after):
        raise ModelError(
            "the student changed when it was written and read again",
            expected="equal outputs",
            found=f"differences up to {float((before - after).abs().max()):.3g}",
            fix="report this: it should not be possible",
        )
