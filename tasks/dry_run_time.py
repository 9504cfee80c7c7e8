"""Hours of the stages of `vdmini run --dry-run` that sample or encode, on the GPU that `base.hardware` names.

Operations over what the recovery's estimate takes for reached: the peak of the precision times the same
utilisation. Decoding and encoding reach less, and text encoders are left out: an order of magnitude.
"""

from __future__ import annotations

from dataclasses import replace

from tasks.dry_run_step import MISSING, Step, count_of
from tasks.encoding import crew_size
from vdmini_core.params import Params


def also(step: Step, todo: str) -> Step:
    """The line with one more thing to do."""
    if not todo:
        return step
    return replace(step, state=MISSING, todo="; ".join(filter(None, (step.todo, todo))))


def time_of(params: Params, flops: float, gpus: int = 1) -> str:
    """`, on 8 h100 about 3 hours (estimated)`: of so many operations in `sampling.precision`.

    Empty where `base.hardware` names no GPU.
    """
    from vdmini_core.distillation.cost.devices import known_device

    name, precision = params.base.hardware, params.sampling.precision
    if name is None:
        return ""
    speed = known_device(name, bf16=precision != "fp32").flops_per_s  # float16 has bfloat16's peak
    return f", on {gpus} {name} about {flops / speed / gpus / 3600:,.3g} hours in {precision} (estimated)"


def encoding_and_validation(params: Params, step: Step, decoding: float | None, sampling: float) -> Step:
    """The recovery's line with the time of what comes before it and between its steps.

    Args:
        params: of the run.
        step: the line.
        decoding: operations of decoding one clip, which bound those of encoding it; None where not counted.
        sampling: operations of sampling one clip.
    """
    from vdmini_core.distillation.latents import shard_clips

    distill, prepare = params.distill, params.prepare
    if params.base.hardware is None or distill.depth == "none":
        return step
    does, clips = step.does, prepare.clips.train
    if distill.inputs == "latents" and decoding is None:
        does += f"; encoding {clips:,} clips before it, which is not counted for this autoencoder"
    elif distill.inputs == "latents" and decoding is not None:
        per_shard = shard_clips((clips, prepare.frames, prepare.height, prepare.width, 3))
        gpus = max(1, crew_size(distill.encode_workers, -(-clips // per_shard)))
        does += f"; encoding {clips:,} clips before it{time_of(params, clips * decoding, gpus)}"
    if distill.validate_every:
        times = -(-distill.steps // distill.validate_every)
        flops = times * distill.validate_clips * (sampling + (decoding or 0))
        does += f"; {count_of(times, 'validation')}, the others waiting{time_of(params, flops)}"
    return replace(step, does=does)
