"""`vdmini distill --dry-run`: which models a project would recover, and how the bill reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.recovery_case import Architecture, case_of
from vdmini_core.errors import ModelError
from vdmini_core.params import FIXED_RECIPES, Params

if TYPE_CHECKING:
    from vdmini_core.distillation.cost.devices import Device
    from vdmini_core.distillation.cost.estimate import Case, Estimate
    from vdmini_core.models.base import SamplingSettings
    from vdmini_core.pruning.plan import Plan


@dataclass(frozen=True)
class Wanted:
    """What the command names; what it does not name is the project's."""

    teacher: str | None = None
    plan: Path | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    profile: str | None = None
    assignments: tuple[str, ...] = ()

    def sets(self, section: str) -> bool:
        """Whether anything of a section is named: a profile names everything."""
        return self.profile is not None or any(a.startswith(f"{section}.") for a in self.assignments)


def wanted_case(root: Path, params: Params, wanted: Wanted) -> tuple[Case, str, str]:
    """The recovery to be judged, its teacher's name, and a word on what is assumed.

    The teacher is the one named, else what the project's stages made, else what its parameters (with the
    profile) name; so is the plan. Clips are those of `prepare`, but a teacher that is named without a profile
    has its own. `--plan`, `--frames` and `--size` go before all.

    Raises:
        ModelError: where the architecture is not known before the weights are here, or cannot take the clips.
    """
    plan, clip = wanted.plan, (wanted.frames, wanted.size)
    pipeline = root / "artifacts" / "teacher" / "pipeline"
    if wanted.teacher is not None:
        fitted = wanted.profile is not None
        case, name = make_case(params, wanted.teacher, plan, *clip, fitted=fitted), wanted.teacher
    elif pipeline.is_dir() and not wanted.sets("teacher"):
        own = root / "artifacts" / "prune" / "student" / "plan.json"
        if plan is None and own.is_file() and not wanted.sets("plan"):
            plan = own
        fitted = wanted.sets("prepare") or wanted.sets("sampling")
        case, name = make_case(params, str(pipeline), plan, *clip, fitted=fitted), str(pipeline)
    else:
        case, name = case_of(params, _named(root, params), plan, *clip), _name(params)
    assumed = plan is None and params.plan.recipe not in FIXED_RECIPES
    return case, name, "no plan yet: the paper's" if assumed else ""


def _named(root: Path, params: Params) -> Architecture:
    """The teacher that the parameters name, at the size of the prepared clips."""
    from tasks.dry_run_teacher import examine_teacher

    step, known = examine_teacher(root, params)
    if known is None:
        raise ModelError(
            "what would be recovered is not known yet",
            expected="a teacher whose architecture is known and which takes the clips of `prepare`",
            found=step.todo or step.does,
            fix="set teacher.architecture, or name a teacher: --teacher stable-video-diffusion",
        )
    return known


def _name(params: Params) -> str:
    teacher = params.teacher
    if teacher.source == "bundled":
        return teacher.bundled
    return str(teacher.architecture or (teacher.hub_id if teacher.source == "hub" else teacher.path))


def with_memory(device: Device, gib: float | None) -> Device:
    """The device with the memory given in place of its own."""
    from vdmini_core.distillation.cost.devices import GIB

    return device if gib is None else replace(device, memory=int(gib * GIB))


def rows_of(found: Estimate) -> list[dict[str, Any]]:
    """The memory of a worker as a table."""
    from vdmini_core.distillation.cost.devices import GIB

    parts = found.footprint.parts | {"process": found.process, "all": found.need}
    return [{"memory of a worker": name, "GiB": f"{size / GIB:,.2f}"} for name, size in parts.items()]


def work_rows(found: Estimate) -> list[dict[str, Any]]:
    """The operations of a worker's step as a table."""
    flops = found.footprint.flops
    phases = flops | {"step": sum(flops.values())}
    return [{"a worker's step": k, "TFLOP": f"{v / 1e12:,.4g}"} for k, v in phases.items()]


def bill(found: Estimate) -> dict[str, Any]:
    """Time and price, one row; units in the headers."""
    time = found.to_dict()["time"]
    row = {
        "seconds a step": time["step_s"],
        "steps": time["steps"],
        "hours": time["hours"],
        "devices": time["devices"],
        "device-hours": time["device_hours"],
        "price": time["price"],
    }
    return {
        k: f"{v:,.3g}" if isinstance(v, float) and v < 1000 else v for k, v in row.items() if v is not None
    }


def settings_text(settings: SamplingSettings, plan: Plan) -> str:
    """One line on what is judged."""
    return (
        f"{plan.family}, {plan.recipe}: {plan.params_ratio:.1%} of the parameters, {plan.flops_ratio:.1%} "
        f"of the FLOPs; clips of {settings.frames} x {settings.height} x {settings.width}"
    )


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
    from tasks.teacher import fitted_settings
    from vdmini_core.models.inspect import load_architecture

    family, denoiser, vae, own = load_architecture(teacher)
    settings = fitted_settings(params, own) if fitted else own
    return case_of(params, Architecture(family, denoiser, vae, settings), plan, frames, size)
