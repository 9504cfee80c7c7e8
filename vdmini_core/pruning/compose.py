"""Two cuts one after the other, told as one cut of the first teacher.

A student that is cut again is a teacher to its plan. What recovery and evaluation need is the student's
relation to the teacher that both came from: this is where the two plans become one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vdmini_core.models.base import Family, SamplingSettings
from vdmini_core.models.narrow import inner_widths
from vdmini_core.models.registry import fingerprint
from vdmini_core.params import PlanParams
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.surgery import apply_plan, check_teacher


def compose(
    first: Plan,
    second: Plan,
    teacher: nn.Module,
    middle: nn.Module,
    family: Family,
    settings: SamplingSettings,
) -> Plan:
    """The plan that removes from `teacher` what `first` and `second` remove one after the other.

    Args:
        first: `teacher` -> `middle`.
        second: `middle` -> the student, in the names of `middle`, which may count units anew where it is of a
            stock class.
        teacher: whole denoiser.
        middle: the student of `first`, whatever it has learned since.
        family: of all three.
        settings: size at which units are listed.

    Raises:
        PlanError: when the plans are not of these models.
    """
    check_teacher(teacher, first)
    check_teacher(middle, second)
    names = _teachers_names(first, teacher, middle, family, settings)
    removed = [*first.removed, *(names.get(name, name) for name in second.removed)]
    channels = dict(first.channels)
    for path, kept in second.channels.items():
        origin = moved(path, first.layer_map)
        earlier = channels.get(origin)
        channels[origin] = tuple(earlier[i] for i in kept) if earlier else kept
    channels = _of_what_stays(channels, removed, teacher, family)
    outline = family.outline(teacher, removed, channels)
    points = family.feature_points(outline.model)
    return replace(
        second,
        removed=outline.removed,
        teacher_fingerprint=fingerprint(teacher),
        teacher_params=first.teacher_params,
        teacher_flops=first.teacher_flops,
        layer_map=outline.layer_map,
        feature_pairs=tuple((path, outline.layer_map[path]) for path in points.values()),
        channels=channels,
        notes=(*second.notes, f"{len(first.removed)} units had gone before"),
    )


def cut_again(
    first: Plan,
    second: Plan,
    teacher: nn.Module,
    middle: nn.Module,
    family: Family,
    settings: SamplingSettings,
) -> tuple[nn.Module, Plan]:
    """The student of `second`, built as a cut of `teacher` and filled with the weights of `middle`.

    Returns:
        The student, and the plan that leads to it from `teacher` (`compose`).

    Raises:
        PlanError: when the plans are not of these models.
    """
    whole = compose(first, second, teacher, middle, family, settings)
    student = apply_plan(teacher, whole, family)
    source = apply_plan(middle, second, family)
    state, weights = {}, source.state_dict()
    came_from = {moved(moved(name, second.layer_map), first.layer_map): name for name in weights}
    for name in student.state_dict():
        state[name] = weights[came_from[moved(name, whole.layer_map)]]
    student.load_state_dict(state)
    return student, whole


def budgets_left(params: PlanParams, first: Plan) -> PlanParams:
    """The same budgets for a student of `first`: those of parameters and FLOPs are meant against the teacher.

    A latency budget stays: its timing file is of the very model that is cut.
    """
    found = {"max_params_ratio": first.params_ratio, "max_flops_ratio": first.flops_ratio}
    left = {
        name: min(1.0, limit / ratio)
        for name, ratio in found.items()
        if (limit := getattr(params, name)) is not None
    }
    return params.model_copy(update=left)


def moved(name: str, layer_map: Mapping[str, str]) -> str:
    """A module path or tensor name of the student, as its teacher calls it."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in layer_map:
            return layer_map[prefix] + name.removeprefix(prefix)
    return name


def _teachers_names(
    first: Plan, teacher: nn.Module, middle: nn.Module, family: Family, settings: SamplingSettings
) -> dict[str, str]:
    """Unit name in `middle` -> in `teacher`: the unit whose modules it came from."""
    finest = "temporal"
    theirs = {frozenset(unit.modules): unit.name for unit in family.units(teacher, settings, finest)}
    found = {}
    for unit in family.units(middle, settings, finest):
        modules = frozenset(moved(path, first.layer_map) for path in unit.modules)
        if modules in theirs:
            found[unit.name] = theirs[modules]
    return found


def _of_what_stays(
    channels: Mapping[str, Any], removed: list[str], teacher: nn.Module, family: Family
) -> dict[str, tuple[int, ...]]:
    """Inner channels of those layers alone that no removed unit takes along."""
    if not channels:
        return {}
    outline = family.outline(teacher, removed)
    left = {moved(place.path, outline.layer_map) for place in inner_widths(outline.model)}
    return {path: tuple(kept) for path, kept in channels.items() if path in left}
