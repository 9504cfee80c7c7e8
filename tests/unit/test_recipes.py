"""Recipes: the solver is optimal, budgets hold, impossible ones are refused with what is possible."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import svd_toys as toys
from hypothesis import given, settings
from hypothesis import strategies as st

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Cut
from vdmini_core.models.flops import total_flops
from vdmini_core.models.registry import architecture
from vdmini_core.params import PlanParams
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.solver import Budget, best_cuts, scaled_damages

SECTIONS = {"fvd": 2.0, "content": 3.0, "motion": 5.0, "paired_mse": 1.0}


@cache
def teacher():
    unet = toys.tiny_unet()
    return unet, toys.FAMILY.units(unet, toys.SETTINGS)


def sensitivity(damages=None):
    """A profile whose deep units matter most, or given damages by unit."""
    _, units = teacher()
    rows = []
    for place, unit in enumerate(units):
        base = 1.0 + place if damages is None else damages.get(unit.name, 1e3)
        figures = {name: base * scale for name, scale in SECTIONS.items()}
        rows.append({"name": unit.name, "removed": figures})
    return {"units": rows, "clips": 4}


def plan_of(profile=None, seed=0, **params):
    unet, units = teacher()
    extra = {key: params.pop(key) for key in ("timing", "evaluate") if key in params}
    return make_plan(PlanParams(**params), toys.FAMILY, unet, units, profile, toys.SETTINGS, seed, **extra)


def brute_force(cuts, damages, budgets):
    """Every allowed set, best first."""
    names = [cut.name for cut in cuts]
    found = []
    for bits in itertools.product([0, 1], repeat=len(cuts)):
        chosen = [i for i, bit in enumerate(bits) if bit]
        taken = {names[i] for i in chosen}
        clash = any(taken & set(cuts[i].conflicts) for i in chosen)
        if not clash and all(budget.met(chosen) for budget in budgets):
            found.append((float(np.sum(damages[chosen])), chosen))
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(
    saved=st.lists(st.integers(1, 50), min_size=6, max_size=6),
    raw=st.lists(st.floats(0, 10), min_size=6, max_size=6),
    share=st.floats(0.2, 1.0),
)
def test_solver_is_as_good_as_trying_everything(saved, raw, share):
    cuts = [Cut(f"u{i}", (f"u{i}",), n, n) for i, n in enumerate(saved[:5])]
    cuts.append(Cut("inner", ("u0", "u1"), saved[0] + saved[1] + saved[5], 1, ("u0", "u1")))
    total = 2.0 * sum(saved)
    budget = Budget("params", total, share * total, tuple(float(cut.parameters) for cut in cuts))
    damages = scaled_damages(raw)
    expected = brute_force(cuts, damages, [budget])
    found = best_cuts(cuts, raw, [budget], 3)
    assert len(found) == min(3, len(expected))
    for answer, (cost, _) in zip(found, expected, strict=False):
        assert float(np.sum(damages[answer])) == pytest.approx(cost, rel=1e-6, abs=1e-6)
        assert budget.met(answer)


def test_paper_needs_no_profile():
    plan = plan_of(recipe="paper", max_flops_ratio=0.1)
    assert plan.removed == toys.PAPER
    assert any("over the budget" in note for note in plan.notes)


@pytest.mark.parametrize("recipe", ["auto", "magnitude", "random"])
def test_budgets_hold(recipe):
    plan = plan_of(sensitivity(), recipe=recipe, max_params_ratio=0.8, max_flops_ratio=0.75)
    assert plan.params_ratio <= 0.8 and plan.flops_ratio <= 0.75
    assert plan.removed


def test_auto_takes_what_does_least_damage():
    free = {"D.0.pair.0": 0.0, "U.3.pair.1": 0.0, "U.3.pair.2": 0.0}
    unet, _ = teacher()
    saved = sum(cut.flops for cut in toys.FAMILY.cuts(unet, toys.SETTINGS) if cut.name in free)
    ratio = 1 - saved / total_flops(unet, toys.SETTINGS) + 1e-6
    assert plan_of(sensitivity(free), recipe="auto", max_flops_ratio=ratio).removed == tuple(free)


def test_the_innermost_level_goes_whole_where_that_is_best():
    inner = {"D.3": 0.0, "M": 0.0, "U.0": 0.0}
    assert plan_of(sensitivity(inner), recipe="auto", max_params_ratio=0.85).removed == ("D.3", "M", "U.0")


def test_answers_are_evaluated_together():
    asked = []

    def evaluate(removed):
        asked.append(removed)
        return -len(asked)  # the last one asked is the best

    plan = plan_of(sensitivity(), recipe="auto", max_flops_ratio=0.9, evaluate=evaluate)
    assert len(asked) == 6 and asked[-1] == toys.PAPER  # the solver's five, and the paper's cut
    assert plan.removed == toys.PAPER and plan.notes[0].startswith("the paper's cut")
    asked.clear()
    tight = plan_of(sensitivity(), recipe="auto", max_flops_ratio=0.2, evaluate=evaluate)
    assert len(asked) == 5 and set(tight.removed) == set(asked[-1])  # the paper's is over this budget
    assert "evaluated together" in tight.notes[0]


@pytest.mark.parametrize("recipe", ["magnitude", "random"])
def test_baselines_remove_nothing_that_the_budget_does_not_ask_for(recipe):
    unet, _ = teacher()
    plan = plan_of(recipe=recipe, max_flops_ratio=0.7, seed=1)
    savings = {cut.name: cut.flops for cut in toys.FAMILY.cuts(unet, toys.SETTINGS)}
    room = 0.7 * plan.teacher_flops - plan.expected_flops
    whole_inner = "D.3" in plan.removed  # then `M` is no decision of its own
    alone = [name for name in plan.removed if name in savings and not (name == "M" and whole_inner)]
    assert room >= 0 and all(savings[name] > room for name in alone)


def test_random_follows_its_seed():
    first, again, other = (
        plan_of(recipe="random", max_flops_ratio=0.7, seed=seed).removed for seed in (1, 1, 2)
    )
    assert first == again != other


def test_latency_budget_reads_the_frozen_file():
    unet, rows = teacher()
    timing = {"denoiser_ms": 100.0, "unit_ms": {unit.name: 2.0 for unit in rows}}
    timing |= {"architecture": architecture(unet)}
    params = PlanParams(recipe="auto", max_latency_ratio=0.9, timing="x.json")
    plan = make_plan(params, toys.FAMILY, unet, rows, sensitivity(), toys.SETTINGS, 0, timing=timing)
    assert 2.0 * len(plan.removed) >= 10.0
    with pytest.raises(PlanError, match="measured unit times"):
        make_plan(params, toys.FAMILY, unet, rows, sensitivity(), toys.SETTINGS, 0)
    for other in ({"architecture": architecture(toys.tiny_unet((32, 32, 32, 32)))}, {"architecture": None}):
        with pytest.raises(PlanError, match="timing file is of another model"):
            make_plan(params, toys.FAMILY, unet, rows, sensitivity(), toys.SETTINGS, 0, timing=timing | other)


def test_impossible_budgets_say_what_is_possible():
    with pytest.raises(PlanError, match=r"no plan reaches a FLOPs ratio of 0.050[\s\S]*0\.\d+ or more"):
        plan_of(sensitivity(), recipe="auto", max_flops_ratio=0.05)


def test_auto_without_a_profile_or_with_gaps_is_refused():
    with pytest.raises(PlanError, match="vdmini profile"):
        plan_of(None, recipe="auto", max_flops_ratio=0.8)
    profile = sensitivity()
    profile["units"] = [row for row in profile["units"] if row["name"] != "D.1.pair.1"]
    with pytest.raises(PlanError, match=r"no row for D\.1\.pair\.1"):
        plan_of(profile, recipe="auto", max_flops_ratio=0.8)


def test_manual_takes_blocks_and_refuses_unknown_names():
    assert plan_of(recipe="manual", units=("U.1", "M")).removed == (
        "M", "U.1.pair.0", "U.1.pair.1", "U.1.pair.2"
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"did you mean `U.1.pair.2`"):
        plan_of(recipe="manual", units=("U.1.pair.22",))
