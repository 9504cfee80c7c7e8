"""Whether the recovery fits: the check that `distill` makes before it starts Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.recovery_case import Architecture, case_of
from vdmini_core.errors import ModelError

if TYPE_CHECKING:
    from tasks.stage import StageJob

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
    from vdmini_core.models.inspect import load_architecture

    kind = device_of(job)
    params = job.params.distill
    device, share = device_here(kind, None, ""), workers_per_device(kind, params.workers)
    plan = job.artifact("prune") / "student" / "plan.json"
    try:
        teacher = Architecture(*load_architecture(str(job.artifact("teacher") / "pipeline")))
        case = case_of(job.params, teacher, plan)
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
