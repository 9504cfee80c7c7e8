"""The recovery's bill for a project: the check `distill` makes before it starts Ray, and `--dry-run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError
from vdmini_core.params import Params

if TYPE_CHECKING:
    from tasks.stage import StageJob
    from vdmini_core.distillation.cost.estimate import Case, Estimate
    from vdmini_core.models.base import SamplingSettings
    from vdmini_core.pruning.plan import Plan

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
    device, share = device_here(kind, None, ""), workers_per_device(kind, job.params.distill.workers)
    plan = job.artifact("prune") / "student" / "plan.json"
    try:
        case = make_case(job.params, str(job.artifact("teacher") / "pipeline"), plan)
        found = estimate(case, device, per_device=share)
    except (ModelError, RuntimeError) as error:  # a model that cannot be rehearsed may still be trained
        reason = str(error).strip().split("\n")[0]
        job.monitor.note(f"whether distill fits into memory is not known: {reason}")
        return
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
) -> Case:
    """A teacher's directory or built-in name, and a plan (None: the paper's), as a case; no weights are read.

    Raises:
        ModelError: for no such teacher, or a plan for another one.
    """
    from vdmini_core.distillation.cost.estimate import Case
    from vdmini_core.distillation.cost.rehearsal import Choices, smaller
    from vdmini_core.models.inspect import load_architecture
    from vdmini_core.models.registry import fingerprint
    from vdmini_core.params import PlanParams
    from vdmini_core.pruning.plan import Plan
    from vdmini_core.pruning.recipes import make_plan

    family, denoiser, _, settings = load_architecture(teacher)
    settings = smaller(settings, frames, size)
    if plan is not None:
        made = Plan.load(plan)
        count = sum(parameter.numel() for parameter in denoiser.parameters())
        if made.family != family.name or made.teacher_params != count:
            raise ModelError(
                f"{plan} is a plan for another teacher",
                expected=f"{family.name}, {count:,} parameters",
                found=f"{made.family}, {made.teacher_params:,}; {fingerprint(denoiser)[:24]}",
            )
    else:
        units = family.units(denoiser, settings)
        made = make_plan(
            PlanParams(recipe="paper"), family, denoiser, units, None, settings, params.base.seed
        )
    choices = Choices.from_params(params.distill)
    return Case(family, denoiser, made, params.distill, settings, choices)


def project_models(root: Path, params: Params) -> tuple[str, Path | None, str]:
    """Teacher and plan of a project: what its stages made, else what its parameters name, and a word on it.

    Raises:
        ModelError: when the teacher is neither made yet nor named.
    """
    from vdmini_core.bundled import bundled_teacher_path

    made = root / "artifacts" / "teacher" / "pipeline"
    plan = root / "artifacts" / "prune" / "student" / "plan.json"
    if made.is_dir():
        return (
            str(made),
            plan if plan.is_file() else None,
            "" if plan.is_file() else "no plan yet: the paper's",
        )
    if params.teacher.source == "bundled" and params.teacher.bundled != "nano":
        return str(bundled_teacher_path(params.teacher.bundled)), None, "no plan yet: the paper's"
    path = Path(params.teacher.path).expanduser()
    path = path if path.is_absolute() else root / path
    if params.teacher.source == "path" and path.is_dir():
        return str(path), None, "no plan yet: the paper's"
    raise ModelError(
        "the project's teacher is not there yet",
        expected="artifacts/teacher, or a bundled or local teacher",
        found=f"teacher.source: {params.teacher.source}",
        fix="run `vdmini teacher`, or name one: --teacher DIR, or --teacher stable-video-diffusion",
    )


def with_memory(case_device: Any, gib: float | None) -> Any:
    """The device with the memory given in place of its own."""
    from vdmini_core.distillation.cost.devices import GIB

    return case_device if gib is None else replace(case_device, memory=int(gib * GIB))


def rows_of(found: Estimate) -> list[dict[str, Any]]:
    """The memory of a worker as a table."""
    from vdmini_core.distillation.cost.devices import GIB

    parts = found.footprint.parts | {"process": found.process, "all": found.need}
    return [{"memory of a worker": name, "GiB": round(size / GIB, 3)} for name, size in parts.items()]


def settings_text(settings: SamplingSettings, plan: Plan) -> str:
    """One line on what is judged."""
    return (
        f"{plan.family}, {plan.recipe}: {plan.params_ratio:.1%} of the parameters, {plan.flops_ratio:.1%} "
        f"of the FLOPs; clips of {settings.frames} x {settings.height} x {settings.width}"
    )
