"""`vdmini distill --dry-run`: which models a project would recover, and how the bill reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError
from vdmini_core.params import Params

if TYPE_CHECKING:
    from vdmini_core.distillation.cost.devices import Device
    from vdmini_core.distillation.cost.estimate import Estimate
    from vdmini_core.models.base import SamplingSettings
    from vdmini_core.pruning.plan import Plan


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


def with_memory(device: Device, gib: float | None) -> Device:
    """The device with the memory given in place of its own."""
    from vdmini_core.distillation.cost.devices import GIB

    return device if gib is None else replace(device, memory=int(gib * GIB))


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
