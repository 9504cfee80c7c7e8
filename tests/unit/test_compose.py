"""Two cuts told as one: the same student as cutting twice, named and mapped as the first teacher's."""

from __future__ import annotations

import pytest
import svd_toys as toys
import torch
from diffusers import UNetSpatioTemporalConditionModel

from vdmini_core.errors import PlanError
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel
from vdmini_core.params import PlanParams
from vdmini_core.pruning.compose import compose, cut_again, moved
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import describe_plan, make_plan
from vdmini_core.pruning.surgery import apply_plan

CHANNELS = PlanParams(recipe="depgraph", max_flops_ratio=0.9)


@pytest.fixture(scope="module")
def unet():
    return toys.tiny_unet()


def plan_for(unet, removed) -> Plan:
    return describe_plan("manual", toys.FAMILY, unet, removed, toys.SETTINGS)


def learned(student, seed: int = 5):
    """As if it had been recovered: no weight is the teacher's any more."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return student


@pytest.mark.parametrize(
    ("first", "second", "removed"),
    [
        # the stock middle counts its up pairs anew: its U.2.pair.1 is the teacher's third
        (toys.SECOND_PAIRS, ("U.2.pair.1",), (*toys.SECOND_PAIRS[:3], "U.2.pair.2", "U.3.pair.1")),
        (toys.SECOND_PAIRS, ("U.3.pair.1.temporal",), (*toys.SECOND_PAIRS, "U.3.pair.2.temporal")),
        (("D.0.pair.1",), ("M", "D.0.pair.0.temporal"), ("D.0.pair.0.temporal", "D.0.pair.1", "M")),
        (toys.SECOND_PAIRS, ("D.3", "M", "U.0"), toys.PAPER),
    ],
)
def test_two_cuts_are_one_of_the_teacher_with_the_middles_weights(unet, first, second, removed):
    one = plan_for(unet, first)
    middle = learned(apply_plan(unet, one, toys.FAMILY))
    two = plan_for(middle, second)
    twice = apply_plan(middle, two, toys.FAMILY)
    student, whole = cut_again(one, two, unet, middle, toys.FAMILY, toys.SETTINGS)
    assert torch.equal(toys.forward(student, toys.inputs()), toys.forward(twice, toys.inputs()))
    assert set(whole.removed) == set(removed)
    assert whole.flops_ratio == pytest.approx(one.flops_ratio * two.flops_ratio)
    # an ordinary plan: cutting the teacher by it gives the same student, before either has learned
    at_once = apply_plan(unet, whole, toys.FAMILY)
    assert type(at_once) is type(student) and at_once.config == student.config
    by_hand = plan_for(unet, whole.removed)
    assert (by_hand.expected_params, by_hand.expected_flops) == (whole.expected_params, whole.expected_flops)
    assert by_hand.feature_pairs == whole.feature_pairs and whole.feature_pairs
    modules = (dict(student.named_modules()), dict(unet.named_modules()))
    assert all(s in modules[0] and t in modules[1] for s, t in whole.feature_pairs)


def test_channels_are_counted_in_the_teachers(unet):
    one = make_plan(CHANNELS, toys.FAMILY, unet, (), None, toys.SETTINGS, 0)
    middle = learned(apply_plan(unet, one, toys.FAMILY))
    two = make_plan(CHANNELS, toys.FAMILY, middle, (), None, toys.SETTINGS, 0)
    student, whole = cut_again(one, two, unet, middle, toys.FAMILY, toys.SETTINGS)
    twice = apply_plan(middle, two, toys.FAMILY)
    assert torch.equal(toys.forward(student, toys.inputs()), toys.forward(twice, toys.inputs()))
    again = set(one.channels) & set(two.channels)
    assert again and all(set(whole.channels[path]) < set(one.channels[path]) for path in again)
    gone = plan_for(middle, ("D.0.pair.1",))
    after = compose(one, gone, unet, middle, toys.FAMILY, toys.SETTINGS)
    assert not any(path.startswith("down_blocks.0.resnets.1.") for path in after.channels)
    assert isinstance(apply_plan(unet, after, toys.FAMILY), UNetSpatioTemporalPrunedModel)


def test_plans_of_other_models_are_refused(unet):
    one = plan_for(unet, toys.SECOND_PAIRS)
    middle = apply_plan(unet, one, toys.FAMILY)
    assert type(middle) is UNetSpatioTemporalConditionModel
    with pytest.raises(PlanError, match="another teacher"):
        compose(one, plan_for(unet, ("M",)), unet, middle, toys.FAMILY, toys.SETTINGS)
    with pytest.raises(PlanError, match="another teacher"):
        compose(one, plan_for(middle, ("M",)), toys.tiny_unet(seed=1), middle, toys.FAMILY, toys.SETTINGS)


def test_a_path_is_moved_by_its_longest_known_prefix():
    layer_map = {"a": "a", "a.b.1": "a.b.2"}
    assert [moved(p, layer_map) for p in ("a.b.1.weight", "a.b.10", "a", "c.d")] == [
        "a.b.2.weight", "a.b.10", "a", "c.d"
    ]  # fmt: skip


def test_what_is_left_of_a_student_can_all_be_cut_by_a_profile_of_its_pairs(unet):
    for first in (("M",), ("D.3.pair.0", "D.3.pair.1")):
        middle = toys.FAMILY.prune(unet, first)
        cuts = toys.FAMILY.cuts(middle, toys.SETTINGS)
        assert "inner" not in [cut.name for cut in cuts], "a block of it has gone"
        rows = {unit.name for unit in toys.FAMILY.units(middle, toys.SETTINGS, "temporal")}
        assert all(set(cut.units) <= rows for cut in cuts)
        for cut in cuts[-1:]:
            assert toys.FAMILY.outline(middle, cut.units).removed == cut.units
