"""Temporal sub-layers as units: their cost, what is left without them, and who may decide on them."""

from __future__ import annotations

import json
import math

import pytest
import svd_toys as toys
import torch
from typer.testing import CliRunner

from vdmini_core.cli import inspect as inspect_command
from vdmini_core.cli import new_app
from vdmini_core.errors import ModelError, PlanError
from vdmini_core.models.flops import total_flops, unet_inputs
from vdmini_core.models.inspect import inspect_model
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel
from vdmini_core.models.registry import architecture, fingerprint
from vdmini_core.params import PlanParams
from vdmini_core.profiling.sensitivity import prepare_inputs, profile_unit, record_shared
from vdmini_core.profiling.sharing import start_of
from vdmini_core.profiling.timing import time_units
from vdmini_core.pruning.recipes import make_plan

# With attention, without, of a pair that changes channels, and of the mid block.
KINDS = ("D.0.pair.0.temporal", "U.0.pair.1.temporal", "D.1.pair.0.temporal", "M.temporal")


@pytest.fixture(scope="module")
def unet():
    return toys.tiny_unet((32, 64, 64), layers_per_block=1)


@pytest.fixture(scope="module")
def units(unet):
    return {unit.name: unit for unit in toys.FAMILY.units(unet, toys.SETTINGS, "temporal")}


@pytest.fixture(scope="module")
def cuts(unet):
    return {cut.name: cut for cut in toys.FAMILY.cuts(unet, toys.SETTINGS)}


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_they_are_listed_where_asked_for_and_nowhere_else(unet, units):
    default = toys.FAMILY.units(unet, toys.SETTINGS)
    assert [unit for unit in units.values() if unit.kind != "temporal"] == default
    assert not any(unit.kind == "temporal" for unit in toys.FAMILY.units(unet, toys.SETTINGS, "pair"))
    owners = [unit.name for unit in default if unit.kind == "pair" or unit.name == "M"]
    finer = [unit.name for unit in units.values() if unit.kind == "temporal"]
    assert finer == [f"{name}.temporal" for name in owners]
    names = list(units)
    assert all(names[names.index(name) - 1] == name.removesuffix(".temporal") for name in finer)


def test_costs_are_those_of_the_whole_and_add_up(unet, units, cuts):
    whole = toys.FAMILY.prune(unet, KINDS)
    assert isinstance(whole, UNetSpatioTemporalPrunedModel)
    assert tuple(whole.config.removed_units) == toys.FAMILY.outline(unet, KINDS).removed
    assert size(unet) - size(whole) == sum(cuts[name].parameters for name in KINDS)
    before, after = (total_flops(model, toys.SETTINGS) for model in (unet, whole))
    assert before - after == sum(cuts[name].flops for name in KINDS) > 0
    for name in KINDS:
        assert (cuts[name].parameters, cuts[name].flops) == (units[name].parameters, units[name].flops)
        owner = units[name.removesuffix(".temporal")]
        assert 0 < units[name].parameters < owner.parameters and 0 < units[name].flops < owner.flops
    left = {unit.name for unit in toys.FAMILY.units(whole, toys.SETTINGS, "temporal")}
    assert left == set(units) - set(KINDS), "what is gone is no unit any more"


def test_a_cut_conflicts_with_all_that_is_part_of_it(cuts):
    inside = ("D.2.pair.0", "M", "U.0.pair.0", "U.0.pair.1")
    assert set(cuts["inner"].conflicts) == {*inside, *(f"{name}.temporal" for name in inside)}
    assert cuts["U.1.pair.1"].conflicts == ("U.1.pair.1.temporal",)
    assert cuts["M"].conflicts == ("M.temporal",)
    assert all(cut.optional == name.endswith(".temporal") for name, cut in cuts.items())
    assert "D.1.pair.0" not in cuts and "D.1.pair.0.temporal" in cuts


@pytest.mark.parametrize(
    ("names", "spelled"),
    [
        (("U.2.pair.1.temporal", "U.2.pair.1"), ("U.2.pair.1",)),
        (("D.0", "D.0.pair.0.temporal"), ("D.0.pair.0",)),
        (("M.temporal", "M"), ("M",)),
        (
            ("U.0.pair.1.temporal", "M.temporal", "U.0", "D.2.pair.0.temporal", "D.2", "M", *KINDS[2:3]),
            ("D.1.pair.0.temporal", "D.2", "M", "U.0"),
        ),
        (("U.0.pair.0", "M.temporal", "D.0.pair.0.temporal"), KINDS[:1] + KINDS[3:] + ("U.0.pair.0",)),
    ],
)
def test_the_canonical_spelling_says_nothing_twice(unet, names, spelled):
    assert toys.FAMILY.outline(unet, names).removed == spelled
    assert toys.FAMILY.outline(unet, spelled).removed == spelled


def test_unknown_names_are_refused_with_the_nearest(unet):
    for wrong, right in (
        ("D.0.pair.0.temporl", "D.0.pair.0.temporal"),
        ("M.temporary", "M.temporal"),
        ("D.0.pair.3.temporal", r"\w\.\d\.pair\.\d\.temporal"),
    ):
        with pytest.raises(PlanError, match=f"did you mean `{right}`"):
            toys.FAMILY.prune(unet, [wrong])
    student = toys.FAMILY.prune(unet, ["D.0.pair.0"])
    with pytest.raises(PlanError, match=r"no unit `D\.0\.pair\.0\.temporal`"):
        toys.FAMILY.prune(student, ["D.0.pair.0.temporal"])
    student = toys.FAMILY.prune(unet, ["M.temporal"])
    with pytest.raises(PlanError, match="did you mean"), toys.FAMILY.bypass(student, "M.temporal", "removed"):
        pass


@pytest.mark.parametrize("name", KINDS)
def test_bypass_is_what_surgery_makes_and_is_undone(unet, name):
    before, state = toys.forward(unet, toys.inputs()), fingerprint(unet)
    with toys.FAMILY.bypass(unet, name, "removed"):
        bypassed = toys.forward(unet, toys.inputs())
    student = toys.FAMILY.prune(unet, [name])
    assert torch.equal(toys.forward(student, toys.inputs()), bypassed)
    assert not torch.equal(bypassed, before)
    assert fingerprint(unet) == state and torch.equal(toys.forward(unet, toys.inputs()), before)
    points, theirs = toys.FAMILY.feature_points(student), toys.FAMILY.feature_points(unet)
    assert points == theirs, "its pair still has a feature"


def test_without_any_a_frame_knows_nothing_of_the_others(unet, units):
    student = toys.FAMILY.prune(unet, [name for name in units if name.endswith(".temporal")])
    sample, *rest = toys.inputs()
    forwards = toys.forward(student, (sample, *rest))
    backwards = toys.forward(student, (sample.flip(1), *rest))
    torch.testing.assert_close(backwards.flip(1), forwards)
    whole = toys.forward(unet, (sample.flip(1), *rest)).flip(1)
    assert not torch.allclose(whole, toys.forward(unet, (sample, *rest)), atol=1e-3)


def test_cutting_twice_adds_up(unet):
    once = toys.FAMILY.prune(unet, ["D.0.pair.0", "M.temporal", "U.1.pair.0.temporal"])
    twice = toys.FAMILY.prune(
        toys.FAMILY.prune(unet, ["D.0.pair.0.temporal", "M.temporal"]),
        ["U.1.pair.0.temporal", "D.0.pair.0"],
    )
    assert list(twice.config.removed_units) == list(once.config.removed_units)
    assert torch.equal(toys.forward(twice, toys.inputs()), toys.forward(once, toys.inputs()))


@pytest.mark.parametrize("name", ["D.0.pair.0", "M"])
def test_replaced_draws_temporal_weights_alone(unet, name):
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    with toys.FAMILY.bypass(unet, f"{name}.temporal", "replaced", seed=1):
        inside = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
        first = toys.forward(unet, toys.inputs())
    changed = {key for key, tensor in inside.items() if not torch.equal(tensor, before[key])}
    home = ("mid_block.",) if name == "M" else ("down_blocks.0.resnets.0.", "down_blocks.0.attentions.0.")
    assert changed and all(key.startswith(home) for key in changed)
    assert all("temporal" in key or "time_pos_embed" in key for key in changed)
    assert any(key.endswith("temporal_res_block.conv1.weight") for key in changed)
    assert not torch.equal(first, toys.forward(unet, toys.inputs()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_replay_starts_at_the_resnet_of_the_pair(unet, units):
    points = toys.FAMILY.trace_points(unet)
    for name, unit in units.items():
        start = start_of(points, unit.modules)
        assert start > 0 and points[start - 1].kept, name
        if unit.kind == "temporal":
            assert start == start_of(points, units[name.removesuffix(".temporal")].modules)


@pytest.mark.parametrize("variant", ["removed", "replaced"])
def test_sharing_gives_the_same_bits(variant):
    pipeline = toys.tiny_pipeline()
    clips = torch.randint(0, 256, (2, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    inputs = prepare_inputs(pipeline, toys.FAMILY, clips, toys.SETTINGS, seed=1, batch_size=2)
    traces = record_shared(pipeline, toys.FAMILY, inputs, 2**40)
    for name in ("D.1.pair.0.temporal", "M.temporal", "U.3.pair.1.temporal"):
        found, wanted = (
            profile_unit(pipeline, toys.FAMILY, name, variant, inputs, {}, {}, shared)
            for shared in (traces, ())
        )
        assert found == wanted and found["paired_mse"] > 0


def test_times_are_of_what_is_called(unet, units):
    args = unet_inputs(unet, 2, 8, 8, device="cpu")
    times = time_units(unet, list(units.values()), lambda: unet(*args), repeats=1)["unit_ms"]
    for name in KINDS:
        assert 0 < times[name] < times[name.removesuffix(".temporal")]


def profile(units, free=(), kinds=("pair", "block", "temporal")):
    """A profile in which `free` units do no damage."""
    rows = [unit for unit in units.values() if unit.kind in kinds]
    return {
        "units": [{"name": u.name, "removed": {"paired_mse": 0.0 if u.name in free else 1.0}} for u in rows]
    }


def plan_of(unet, sensitivity=None, times=None, **params):
    known = toys.FAMILY.units(unet, toys.SETTINGS)
    return make_plan(
        PlanParams(**params), toys.FAMILY, unet, known, sensitivity, toys.SETTINGS, 0, timing=times
    )


def test_auto_considers_them_where_the_profile_has_rows(unet, units, cuts):
    free = ("D.0.pair.0.temporal", "M.temporal")
    saved = sum(cuts[name].flops for name in free)
    limit = math.nextafter(1 - saved / total_flops(unet, toys.SETTINGS), 1)
    choices = {"recipe": "auto", "max_flops_ratio": limit}
    assert plan_of(unet, profile(units, free), **choices).removed == free
    without = plan_of(unet, profile(units, free, ("pair", "block")), **choices)
    assert without.removed and not set(without.removed) & set(free)
    some = profile(units, free)
    some["units"] = [row for row in some["units"] if row["name"] != "M.temporal"]
    assert "M.temporal" not in plan_of(unet, some, **choices).removed


def test_a_pair_and_its_temporal_part_are_never_both_paid_for(unet, units, cuts):
    """All free: the solver must not reach the budget by counting a part twice."""
    for ratio in (0.9, 0.6, 0.45):
        plan = plan_of(unet, profile(units, units), recipe="auto", max_params_ratio=ratio)
        chosen = [cuts["inner"]] if "U.0" in plan.removed else []
        chosen += [
            cuts[name] for name in plan.removed if name not in ("D.2", "U.0") and (not chosen or name != "M")
        ]
        assert (
            plan.expected_params == size(unet) - sum(cut.parameters for cut in chosen) <= ratio * size(unet)
        )
        assert plan.expected_flops == total_flops(unet, toys.SETTINGS) - sum(cut.flops for cut in chosen)


@pytest.mark.parametrize("recipe", ["magnitude", "random"])
def test_other_recipes_leave_them_alone(unet, units, recipe):
    """Even at a budget that only all of them together would meet."""
    plan = plan_of(unet, profile(units), recipe=recipe, max_params_ratio=0.7)
    assert plan.removed and not any(name.endswith(".temporal") for name in plan.removed)
    with pytest.raises(PlanError, match="no plan reaches"):
        plan_of(unet, profile(units), recipe=recipe, max_params_ratio=0.2)


def test_by_hand_they_go_always_and_a_budget_is_held_against_them(unet, units, cuts):
    times = {unit.name: 2.0 for unit in units.values()}
    timing = {"denoiser_ms": 100.0, "unit_ms": times, "architecture": architecture(unet)}
    choices = {"recipe": "manual", "units": KINDS, "max_latency_ratio": 0.91, "timing": "x"}
    plan = plan_of(unet, times=timing, **choices)
    assert set(plan.removed) == set(KINDS)
    assert any("latency ratio is 0.920" in note for note in plan.notes)
    for name in KINDS:
        del times[name]
    with pytest.raises(PlanError, match=r"no time for \S+\.temporal"):
        plan_of(unet, times=timing, **choices)
    assert plan_of(unet, times=timing, **(choices | {"units": ("M",)})).removed == ("M",)


def test_inspect_lists_them_where_asked_for():
    app = new_app("test")
    app.command("inspect")(inspect_command)
    app.command("other")(lambda: None)
    asked = ("inspect", "stable-video-diffusion", "--json")
    default, finer = (
        json.loads(CliRunner().invoke(app, [*asked, *more]).stdout)["units"]
        for more in ((), ("--granularity", "temporal"))
    )
    assert [unit for unit in finer if unit["kind"] != "temporal"] == default
    assert len(finer) - len(default) == 21
    pair = next(unit for unit in finer if unit["name"] == "D.0.pair.0.temporal")
    assert pair["parameters"] == 5_583_362
    with pytest.raises(ModelError, match="pair, block, both, temporal"):
        inspect_model("stable-video-diffusion", granularity="finest")
