"""How a plan is chosen: the paper's cut, the solver under a budget, by hand, and three baselines."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Cut, Family, SamplingSettings, Unit
from vdmini_core.models.flops import total_flops
from vdmini_core.models.registry import architecture, fingerprint
from vdmini_core.params import FIXED_RECIPES, PlanParams
from vdmini_core.pruning.larger import larger_cut
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.solver import Budget, best_cuts

DAMAGE_COLUMN = {"total": "fvd", "content": "content", "motion": "motion", "paired": "paired_mse"}
RUNNERS_UP = 5

Evaluate = Callable[[tuple[str, ...]], float]


@dataclass(frozen=True)
class Narrowed:
    """Inner channels that stay (module path -> indices), and the operations saved by the rest."""

    channels: dict[str, tuple[int, ...]]
    flops: int


def make_plan(
    params: PlanParams,
    family: Family,
    denoiser: nn.Module,
    units: Sequence[Unit],
    sensitivity: Mapping[str, Any] | None,
    settings: SamplingSettings,
    seed: int,
    *,
    timing: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
) -> Plan:
    """Choose what to remove.

    Args:
        params: recipe and budgets.
        family: of the denoiser.
        denoiser: the teacher; on the meta device the plan binds to its architecture alone.
        units: `family.units(...)`, for names and fallbacks.
        sensitivity: the profile (`artifacts/profile/sensitivity.json`), for `auto`.
        settings: size at which FLOPs are counted.
        seed: of the `random` recipe.
        timing: `{"denoiser_ms": .., "unit_ms": {unit: ..}, "architecture": ..}`, for `max_latency_ratio`.
        evaluate: real damage of a removal; re-ranks the solver's best answers, since single-unit damages
            do not add up.

    Raises:
        PlanError: impossible budget (with the smallest ratio within reach), unknown unit, missing profile.
    """
    if params.recipe == "depgraph":
        return _depgraph(params, family, denoiser, settings)
    cuts = _on_offer(family.cuts(denoiser, settings), params, sensitivity)
    budgets = _budgets(params, denoiser, settings, cuts, timing, units)
    notes: list[str] = []
    if params.recipe == "paper":
        removed: Sequence[str] = family.paper_cut(denoiser)
    elif params.recipe == "larger":
        removed = larger_cut(family, denoiser)
    elif params.recipe == "manual":
        removed = params.units
    else:
        _refuse_impossible(cuts, budgets)
        if params.recipe == "auto":
            paper = _paper_candidate(family, denoiser, cuts, budgets)
            removed = _auto(params, cuts, budgets, units, sensitivity, evaluate, notes, paper)
        else:
            order = _magnitude_order(denoiser, cuts, units) if params.recipe == "magnitude" else None
            removed = _in_order(cuts, _random_order(cuts, seed) if order is None else order, budgets)
    return describe_plan(params.recipe, family, denoiser, removed, settings, notes, budgets, cuts)


def describe_plan(
    recipe: str,
    family: Family,
    denoiser: nn.Module,
    removed: Sequence[str],
    settings: SamplingSettings,
    notes: Sequence[str] = (),
    budgets: Sequence[Budget] = (),
    cuts: Sequence[Cut] = (),
    narrowed: Narrowed | None = None,
) -> Plan:
    """The plan that removes `removed`, and the channels of `narrowed`.

    Parameters are counted on the student's real shape (meta device); operations are the teacher's less
    those of the cuts, which add up exactly.
    """
    narrowed = narrowed or Narrowed({}, 0)
    # refuses what is impossible before anything is counted
    outline = family.outline(denoiser, removed, narrowed.channels)
    cuts = cuts or family.cuts(denoiser, settings)
    flops = total_flops(denoiser, settings)
    student, points = outline.model, family.feature_points(outline.model)
    chosen = _cuts_of(outline.removed, cuts)
    fixed = recipe in FIXED_RECIPES
    unmet = [
        f"{budget.name} is {budget.left(chosen) / budget.total:.3f}, over the budget of"
        f" {budget.limit / budget.total:.3f}" + (": this recipe follows no budget" if fixed else "")
        for budget in budgets
        if not budget.met(chosen)
    ]
    return Plan(
        recipe=recipe,
        removed=outline.removed,
        teacher_fingerprint=fingerprint(denoiser),
        family=family.name,
        teacher_params=_size(denoiser),
        teacher_flops=flops,
        expected_params=_size(student),
        expected_flops=flops - sum(cuts[i].flops for i in chosen) - narrowed.flops,
        layer_map=outline.layer_map,
        feature_pairs=tuple((path, outline.layer_map[path]) for path in points.values()),
        channels=narrowed.channels,
        notes=(*notes, *unmet),
    )


def damage_of(cut: Cut, sensitivity: Mapping[str, Any], metric: str, units: Sequence[Unit]) -> float:
    """Damage of one decision by the profile: the sum over its units (a block without a row: over its pairs).

    Raises:
        PlanError: when the profile lacks a unit.
    """
    rows = {row["name"]: row for row in sensitivity["units"]}
    total = 0.0
    for name in cut.units:
        parts = _rows_of(name, rows, units)
        if not parts:
            raise PlanError(
                f"the profile has no row for {name}",
                fix="run the profile again with `profile.granularity: both`",
            )
        for part in parts:
            figures = rows[part].get("removed") or rows[part].get("replaced")
            total += float(figures[DAMAGE_COLUMN[metric]])
    return total


def _on_offer(cuts: Sequence[Cut], params: PlanParams, sensitivity: Mapping[str, Any] | None) -> list[Cut]:
    """All cuts but the optional ones that nobody asks for: a row of the profile, for `auto`, or a hand."""
    asked: set[str] = set(params.units) if params.recipe == "manual" else set()
    if params.recipe == "auto" and sensitivity is not None:
        asked = {row["name"] for row in sensitivity["units"]}
    return on_offer(cuts, asked)


def on_offer(cuts: Sequence[Cut], asked: Collection[str]) -> list[Cut]:
    """All cuts but the optional ones whose units are not all asked for."""
    return [cut for cut in cuts if not cut.optional or set(cut.units) <= set(asked)]


def _auto(
    params: PlanParams,
    cuts: Sequence[Cut],
    budgets: Sequence[Budget],
    units: Sequence[Unit],
    sensitivity: Mapping[str, Any] | None,
    evaluate: Evaluate | None,
    notes: list[str],
    paper: tuple[str, ...] | None,
) -> tuple[str, ...]:
    """The best of the solver's answers, tried together, and of the paper's cut where the budgets allow it."""
    if sensitivity is None:
        raise PlanError(
            "recipe: auto needs the sensitivity profile of the model",
            fix="run `vdmini profile` first, or use recipe: paper",
        )
    damages = [damage_of(cut, sensitivity, params.metric, units) for cut in cuts]
    answers = best_cuts(cuts, damages, budgets, RUNNERS_UP if evaluate else 1)
    removals = [tuple(unit for i in answer for unit in cuts[i].units) for answer in answers]
    sums = [sum(damages[i] for i in answer) for answer in answers]
    if evaluate is not None and paper is not None and set(paper) not in [set(r) for r in removals]:
        removals.append(paper)
    if evaluate is None or len(removals) == 1:
        notes.append(f"{params.metric} damage by the profile, summed: {sums[0]:.4g}")
        return removals[0]
    measured = [evaluate(removal) for removal in removals]
    best = min(range(len(removals)), key=lambda i: (measured[i], i))
    if best < len(answers):
        which = f"answer {best + 1} of the solver's {len(answers)} best"
        alone = f" (by the profile, summed: {sums[best]:.4g})"
    else:
        which, alone = f"the paper's cut, better than the solver's {len(answers)} best answers", ""
    notes.append(f"{which}, evaluated together: damage {measured[best]:.4g}{alone}")
    return removals[best]


def _paper_candidate(
    family: Family, denoiser: nn.Module, cuts: Sequence[Cut], budgets: Sequence[Budget]
) -> tuple[str, ...] | None:
    """The paper's cut where the model has one and the budgets allow it."""
    try:
        removed = family.paper_cut(denoiser)
    except PlanError:
        return None
    chosen = _cuts_of(removed, cuts)
    return removed if all(budget.met(chosen) for budget in budgets) else None


def _cuts_of(removed: Sequence[str], cuts: Sequence[Cut]) -> list[int]:
    """The decisions a removal consists of."""
    inside = [i for i, cut in enumerate(cuts) if set(cut.units) <= set(removed)]
    return [i for i in inside if not any(cuts[i].name in cuts[j].conflicts for j in inside)]


def _budgets(
    params: PlanParams,
    denoiser: nn.Module,
    settings: SamplingSettings,
    cuts: Sequence[Cut],
    timing: Mapping[str, Any] | None,
    units: Sequence[Unit],
) -> list[Budget]:
    budgets = []
    if params.max_params_ratio is not None:
        total = _size(denoiser)
        savings: Sequence[float] = [cut.parameters for cut in cuts]
        budgets.append(Budget("params ratio", total, total * params.max_params_ratio, tuple(savings)))
    if params.max_flops_ratio is not None:
        total = total_flops(denoiser, settings)
        savings = [cut.flops for cut in cuts]
        budgets.append(Budget("FLOPs ratio", total, total * params.max_flops_ratio, tuple(savings)))
    if params.max_latency_ratio is not None:
        if timing is None or not {"denoiser_ms", "unit_ms"} <= set(timing):
            raise PlanError(
                "max_latency_ratio needs measured unit times",
                expected="a JSON file with `denoiser_ms` and `unit_ms`, as artifacts/profile/timing.json",
                fix="freeze one: copy artifacts/profile/timing.json to timing/NAME.json",
            )
        if timing.get("architecture") != architecture(denoiser):
            raise PlanError(
                "the timing file is of another model",
                expected=architecture(denoiser),
                found=str(timing.get("architecture")),
                fix="profile this model and freeze its timing.json",
            )
        total_ms = float(timing["denoiser_ms"])
        savings = [_milliseconds(cut, timing["unit_ms"], units) for cut in cuts]
        limit = total_ms * params.max_latency_ratio
        budgets.append(Budget("latency ratio", total_ms, limit, tuple(savings)))
    return budgets


def _depgraph(params: PlanParams, family: Family, denoiser: nn.Module, settings: SamplingSettings) -> Plan:
    """Channels of least group norm, over the whole model, until every budget is met."""
    from vdmini_core.pruning.depgraph import channel_steps, kept_channels, step_scores

    if params.max_latency_ratio is not None:
        raise PlanError("recipe: depgraph knows no times of channels", fix="give max_flops_ratio instead")
    steps = channel_steps(denoiser, settings)
    budgets = _budgets(params, denoiser, settings, steps, None, ())
    _refuse_impossible(steps, budgets)
    scores = step_scores(denoiser)
    order = sorted(range(len(steps)), key=lambda i: (scores[steps[i].name], i))
    chosen: list[int] = []
    for index in order:
        if all(budget.met(chosen) for budget in budgets):
            break
        chosen.append(index)
    channels = kept_channels(denoiser, [steps[i].name for i in chosen])
    saved = sum(steps[i].flops for i in chosen)
    return describe_plan("depgraph", family, denoiser, (), settings, narrowed=Narrowed(channels, saved))


def _rows_of(name: str, known: Mapping[str, Any], units: Sequence[Unit]) -> list[str]:
    """The unit where it has a row, else its pairs where all have one, else nothing."""
    parts = (
        [name]
        if name in known
        else [u.name for u in units if u.kind == "pair" and u.name.startswith(name + ".pair.")]
    )
    return parts if all(part in known for part in parts) else []


def _milliseconds(cut: Cut, unit_ms: Mapping[str, float], units: Sequence[Unit]) -> float:
    total = 0.0
    for name in cut.units:
        parts = _rows_of(name, unit_ms, units)
        if not parts:
            raise PlanError(f"the timing file has no time for {name}", fix="profile again and freeze it anew")
        total += sum(float(unit_ms[part]) for part in parts)
    return total


def _refuse_impossible(cuts: Sequence[Cut], budgets: Sequence[Budget]) -> None:
    swallowed = {name for cut in cuts for name in cut.conflicts}
    everything = [i for i, cut in enumerate(cuts) if cut.name not in swallowed]
    for budget in budgets:
        if not budget.met(everything):
            raise PlanError(
                f"no plan reaches a {budget.name} of {budget.limit / budget.total:.3f}",
                expected=f"{budget.left(everything) / budget.total:.4f} or more (all removable units gone)",
                found=f"{budget.limit / budget.total:.4f}",
                fix="raise the budget",
            )


def _in_order(cuts: Sequence[Cut], order: Sequence[int], budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Remove in the given order until every budget is met; a cut that contains others takes their place.

    Then what later cuts have made needless comes back, the last that went first, so that the plan is no
    smaller than the order asks for.
    """
    chosen: list[int] = []
    for index in order:
        if all(budget.met(chosen) for budget in budgets):
            break
        if any(cuts[index].name in cuts[i].conflicts for i in chosen):
            continue
        chosen = [i for i in chosen if cuts[i].name not in cuts[index].conflicts] + [index]
    for index in reversed(chosen.copy()):
        fewer = [i for i in chosen if i != index]
        if all(budget.met(fewer) for budget in budgets):
            chosen = fewer
    return tuple(unit for i in chosen for unit in cuts[i].units)


def _random_order(cuts: Sequence[Cut], seed: int) -> list[int]:
    order = list(range(len(cuts)))
    random.Random(seed).shuffle(order)
    return order


def _magnitude_order(denoiser: nn.Module, cuts: Sequence[Cut], units: Sequence[Unit]) -> list[int]:
    """Smallest root mean square weight first (L2 criterion per parameter, paper Table 3)."""
    if next(denoiser.parameters()).is_meta:
        raise PlanError(
            "recipe: magnitude needs weights",
            found="a config alone",
            fix="give a teacher with weights, or recipe: paper",
        )
    paths = {unit.name: unit.modules for unit in units}
    known = [cut for cut in cuts if all(name in paths for name in cut.units)]
    scores = {}
    for cut in known:
        modules = [denoiser.get_submodule(path) for name in cut.units for path in paths[name]]
        weights = [p.detach().float() for module in modules for p in module.parameters()]
        squares = sum(float(w.square().sum()) for w in weights)
        scores[cut.name] = (squares / sum(w.numel() for w in weights)) ** 0.5
    return sorted(
        (i for i, cut in enumerate(cuts) if cut.name in scores), key=lambda i: (scores[cuts[i].name], i)
    )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
