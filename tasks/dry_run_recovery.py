"""The recovery of `vdmini run --dry-run`: steps, memory and time on the GPU that `base.hardware` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.dry_run_step import LATER, Step, count_of, step
from tasks.recovery_case import recovery_case
from vdmini_core.errors import ModelError
from vdmini_core.params import Params

if TYPE_CHECKING:
    from tasks.recovery_case import Architecture
    from vdmini_core.distillation.cost.estimate import Case, Estimate


def examine_recovery(params: Params, known: Architecture) -> Step:
    """Steps, and where `base.hardware` names a GPU, memory and time on so many of them (an estimate)."""
    from vdmini_core.distillation.cost.devices import GIB, known_device
    from vdmini_core.distillation.cost.estimate import estimate

    hardware, depth = params.base.hardware, params.distill.depth
    if depth == "none" or (hardware is None and depth != "auto"):
        return Step("distill", _steps(params, depth))
    case = recovery_case(params, known)
    does = _steps(params, case.params.depth)
    if hardware is None or case.params.depth == "none":
        return Step("distill", does)
    try:
        found = estimate(case, known_device(hardware, case.choices.bf16), per_device=1)
    except (ModelError, RuntimeError):  # a step that cannot be rehearsed on the meta device
        unknown = f"; whether it fits {hardware}, and its time, cannot be counted for this model"
        return Step("distill", does + unknown, LATER)
    hours = (found.step_s or 0.0) * found.steps / 3600
    does += (
        f"; on {params.distill.workers} {hardware} about {found.need / GIB:.0f} GiB each and "
        f"{hours:,.3g} hours (estimated)"
    )
    return step("distill", does, "" if found.fits else _way_out(case, found))


def _steps(params: Params, depth: str) -> str:
    distill, parts = params.distill, []
    if params.plan.vae_decoder != "none":
        decoder = distill.decoder
        parts.append(
            f"the cut VAE decoder, alone: {count_of(decoder.steps, 'step')} of "
            f"{count_of(decoder.batch_size, 'crop')}"
        )
    if depth == "none":
        return "; ".join([*parts, "the denoiser stays as pruned"])
    seen = distill.steps * distill.batch_size / params.prepare.clips.train
    parts.append(
        f"{distill.steps:,} steps of {distill.batch_size} clips on {distill.workers} workers "
        f"({seen:.3g} times through the training clips), {distill.precision}"
    )
    return "; ".join(parts)


def _way_out(case: Case, found: Estimate) -> str:
    """What to add to the command so that a worker fits."""
    from vdmini_core.distillation.cost.devices import GIB
    from vdmini_core.distillation.cost.estimate import ways_to_fit

    try:
        ways = ways_to_fit(case, found, most=2)
    except RuntimeError:
        ways = []
    if not ways:
        return "a worker does not fit: cut more, use smaller clips, or set base.hardware to a larger GPU"
    listed = "; or ".join(
        " ".join(f"--set {word.rstrip(',')}" for word in text.split() if "=" in word)
        + f" ({need / GIB:.1f} GiB)"
        for text, need in ways
    )
    return f"a worker does not fit: add to the command {listed}"
