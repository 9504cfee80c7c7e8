"""Surgery: the only code that turns a plan into a student."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Family
from vdmini_core.models.narrow import groups_of, inner_widths
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
    _check_channels(denoiser, plan)
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


def _check_channels(denoiser: nn.Module, plan: Plan) -> None:
    """Refuse inner channels that an edited plan may name and the classes cannot build.

    Raises:
        PlanError: an unknown place, or channels that are none, out of order or uneven over the groups.
    """
    places = {place.path: place for place in inner_widths(denoiser)}
    for path, kept in plan.channels.items():
        place = places.get(path)
        shares = [len(set(kept) & set(group)) for group in groups_of(place)] if place else []
        ascending = all(a < b for a, b in pairwise(kept))
        if not (ascending and shares and min(shares) == max(shares) > 0 and sum(shares) == len(kept)):
            raise PlanError(
                f"the plan's inner channels do not fit {path}",
                expected=f"ascending channels below {place.width}, as many in each of {place.groups} groups"
                if place
                else "a resnet or feed-forward network of this model",
                found=f"{len(kept)} channels",
                fix="the file was edited or is of another version: make the plan again",
            )
