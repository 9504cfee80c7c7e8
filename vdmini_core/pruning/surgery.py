"""Surgery: the only code that turns a plan into a student."""

from __future__ import annotations

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Family
from vdmini_core.models.registry import architecture, fingerprint
from vdmini_core.pruning.plan import Plan


def apply_plan(denoiser: nn.Module, plan: Plan, family: Family) -> nn.Module:
    """The student of `plan`: a new model with its own copies of the kept weights; `denoiser` is unchanged.

    Skip connections (paper Sec. 3.2): a removed down pair's skip slot holds the pair's input; a removed up
    pair pops its slot and drops it. Removing as many pairs of a down block as of the up block that takes
    its skips therefore gives a stock config with fewer layers, and the student is the stock class; every
    other cut is a `UNetSpatioTemporalPrunedModel`. See `vdmini_core.models.pruned_unet` for the figure.

    Raises:
        PlanError: another family, another teacher, or a result that is not what the plan expects.
    """
    if plan.family != family.name:
        raise PlanError("the plan is for another family", expected=plan.family, found=family.name)
    check_teacher(denoiser, plan)
    outline = family.outline(denoiser, plan.removed, plan.channels)
    if outline.layer_map != plan.layer_map or outline.removed != plan.removed:
        raise PlanError(
            "the plan's name map is not the one its units give",
            fix="the file was edited or is of another version: make the plan again",
        )
    student = family.prune(denoiser, plan.removed, plan.channels)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    if parameters != plan.expected_params:
        raise PlanError(
            "the student is not what the plan expects",
            expected=f"{plan.expected_params} parameters",
            found=f"{parameters}",
            fix="the file was edited or is of another version: make the plan again",
        )
    return student


def check_teacher(denoiser: nn.Module, plan: Plan) -> None:
    """Refuse a teacher the plan was not made for.

    A plan made from a config alone binds to the architecture and fits any weights.

    Raises:
        PlanError: when the fingerprints differ.
    """
    bound_to_weights = not plan.teacher_fingerprint.startswith("architecture:")
    found = fingerprint(denoiser) if bound_to_weights else architecture(denoiser)
    if found != plan.teacher_fingerprint:
        raise PlanError(
            "the plan was made for another teacher",
            expected=f"fingerprint {plan.teacher_fingerprint}",
            found=found,
            fix="use the teacher it was made for, or make a plan for this one",
        )
