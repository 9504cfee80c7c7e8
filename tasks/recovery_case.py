"""What is to be judged of a recovery before it runs: a teacher as far as it is known, its cut, the depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tasks.clip_size import check_fit
from vdmini_core.errors import ModelError
from vdmini_core.params import FIXED_RECIPES, Params

if TYPE_CHECKING:
    from torch import nn

    from vdmini_core.distillation.cost.estimate import Case
    from vdmini_core.models.base import Family, SamplingSettings
    from vdmini_core.pruning.plan import Plan


@dataclass(frozen=True)
class Architecture:
    """A teacher as far as it is known without its weights."""

    family: Family
    denoiser: nn.Module
    vae: nn.Module
    settings: SamplingSettings


def case_of(
    params: Params,
    known: Architecture,
    plan: Path | None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> Case:
    """As `make_case`, for an architecture that is known already."""
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


def recovery_case(params: Params, known: Architecture, made: Plan | None = None) -> Case:
    """The recovery to be judged, at the depth that `distill.depth` means for its cut.

    Args:
        params: whose.
        known: the teacher at the size of the clips.
        made: the plan; None: by `params.plan`; of a cut that only a profile knows the paper's stands in.
    """
    from vdmini_core.distillation.cost.estimate import Case
    from vdmini_core.distillation.cost.rehearsal import Choices
    from vdmini_core.distillation.depth import depth_for
    from vdmini_core.params import PlanParams
    from vdmini_core.pruning.recipes import make_plan

    if made is None:
        plan = params.plan if params.plan.recipe in FIXED_RECIPES else PlanParams(recipe="paper")
        units = known.family.units(known.denoiser, known.settings)
        seed = params.base.seed
        made = make_plan(plan, known.family, known.denoiser, units, None, known.settings, seed)
    distill = params.distill.model_copy(update={"depth": depth_for(params.distill, made)})
    choices = Choices.from_params(distill)
    return Case(known.family, known.denoiser, made, distill, known.settings, choices)
