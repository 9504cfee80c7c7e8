"""Whether the recovery fits: the check `distill` makes before it starts Ray; a case from teacher and plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from vdmini_core.errors import ModelError
from vdmini_core.params import Params

if TYPE_CHECKING:
    from tasks.dry_run_teacher import Architecture
    from tasks.stage import StageJob
    from vdmini_core.distillation.cost.estimate import Case

NOTHING_LEARNS = "the denoiser learns nothing, so there is nothing to count"
TIGHT = 0.85  # of the memory there: worth a word, as the estimate may be off by as much


def check_memory(job: StageJob) -> None:
    """Refuse a recovery that cannot fit, before anything is launched; about a second for small models.

    Raises:
        TrainingError: when a worker needs more memory than there is, saying what would make it fit.
    """
    from tasks.models import device_of
    from vdmini_core.distillation.cost.devices import GIB, device_here
    from vdmini_core.distillation.cost.estimate import estimate, refuse_unless_fits

    kind = device_of(job)
    params = job.params.distill
    device, share = device_here(kind, None, ""), workers_per_device(kind, params.workers)
    plan = job.artifact("prune") / "student" / "plan.json"
    try:
        case = make_case(job.params, str(job.artifact("teacher") / "pipeline"), plan)
        if case.params.depth == "none":
            job.monitor.note(f"distill.depth {params.depth}: {NOTHING_LEARNS}")
            return
        found = estimate(case, device, per_device=share)
    except (ModelError, RuntimeError) as error:  # a model that cannot be rehearsed may still be trained
        reason = str(error).strip().split("\n")[0]
        job.monitor.note(f"whether distill fits into memory is not known: {reason}")
        return
    refuse_unless_fits(case, found, share)
    if params.min_workers and params.min_workers < params.workers:  # each has more of the batch then
        share = workers_per_device(kind, params.min_workers)
        case = replace(case, choices=replace(case.choices, workers=params.min_workers))
        found = estimate(case, device, per_device=share)
        refuse_unless_fits(case, found, share)
    if found.there is not None and found.need > TIGHT * found.there:
        job.monitor.note(
            f"distill needs about {found.need / GIB:.1f} GiB a worker of {found.there / GIB:.1f} GiB: "
            "it may not fit"
        )


def workers_per_device(kind: str, workers: int, devices: int | None = None) -> int:
    """How many workers share a GPU, or the main memory."""
    if kind == "cpu":
        return workers
    from tasks.ray_runtime import gpus_for

    return -(-workers // max(1, min(workers, devices or gpus_for(workers))))


def make_case(
    params: Params,
    teacher: str,
    plan: Path | None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    fitted: bool = False,
) -> Case:
    """A teacher's directory or built-in name, and a plan, as a case; no weights are read.

    Args:
        params: what is to be recovered, and by which recipe where there is no plan.
        teacher: directory or built-in name.
        plan: plan.json; None: by `params.plan`, or the paper's where only a profile would decide.
        frames: of a clip; before all else.
        size: (height, width) of a clip; before all else.
        fitted: clips as `params.prepare` says, not as the model's own settings say.

    Raises:
        ModelError: for no such teacher, a size that it cannot take, or a plan for another one.
    """
    from tasks.dry_run_teacher import Architecture
    from tasks.teacher import fitted_settings
    from vdmini_core.models.inspect import load_architecture

    family, denoiser, vae, own = load_architecture(teacher)
    settings = fitted_settings(params, own) if fitted else own
    return case_of(params, Architecture(family, denoiser, vae, settings), plan, frames, size)


def case_of(
    params: Params,
    known: Architecture,
    plan: Path | None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> Case:
    """As `make_case`, for an architecture that is known already."""
    from tasks.clip_size import check_fit
    from tasks.dry_run_recovery import recovery_case
    from vdmini_core.distillation.cost.rehearsal import smaller
    from vdmini_core.models.registry import fingerprint
    from vdmini_core.pruning.plan import Plan

    settings = smaller(known.settings, frames, size)
    check_fit(SimpleNamespace(**{known.family.denoiser_name: known.denoiser}), settings)
    if plan is None:
        return recovery_case(params, replace(known, settings=settings))
    made, family = Plan.load(plan), known.family
    count = sum(parameter.numel() for parameter in known.denoiser.parameters())
    if made.family != family.name or made.teacher_params != count:
        raise ModelError(
            f"{plan} is a plan for another teacher",
            expected=f"{family.name}, {count:,} parameters",
            found=f"{made.family}, {made.teacher_params:,}; {fingerprint(known.denoiser)[:24]}",
        )
    return recovery_case(params, replace(known, settings=settings), made)
