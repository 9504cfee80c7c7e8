"""Any tiny architecture, any units, any recipe: a plan gives the model it promises, or says why not."""

from __future__ import annotations

import copy
import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import svd_toys as toys
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_unets import Architecture, architectures, removals

from vdmini_core.errors import PlanError
from vdmini_core.models.flops import total_flops
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel
from vdmini_core.models.registry import own_memory
from vdmini_core.params import PlanParams
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import describe_plan, make_plan
from vdmini_core.pruning.surgery import apply_plan


@dataclass(frozen=True)
class Choice:
    """A recipe, what its profile holds, and its budget."""

    recipe: str
    temporal: bool
    budget: str
    ratio: float
    seed: int


CHOICES = st.builds(
    Choice,
    st.sampled_from(["auto", "auto", "magnitude", "random", "paper"]),
    st.booleans(),
    st.sampled_from(["max_params_ratio", "max_flops_ratio"]),
    st.floats(0.1, 0.9),
    st.integers(0, 99),
)
SEEN: Counter[str] = Counter()
STABLE = {"deadline": None, "derandomize": True, "database": None}


def saved_and_loaded(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).eval().requires_grad_(False)
        own_memory(again)
    return again


def check(architecture: Architecture, unet: Any, plan: Plan, names: tuple[str, ...]) -> None:
    """The student of `plan`, which removes `names`, is what the plan says, and comes back from disk."""
    student: Any = apply_plan(unet, plan, toys.FAMILY)
    size = sum(p.numel() for p in student.parameters())
    assert size == plan.expected_params == architecture.parameters_left(unet.state_dict(), names)
    output = toys.forward(student, toys.inputs())
    assert output.shape == (2, 2, 4, 8, 8) and torch.isfinite(output).all()
    assert torch.equal(toys.forward(saved_and_loaded(student), toys.inputs()), output)
    for ours, theirs in plan.feature_pairs:
        assert type(student.get_submodule(ours)) is type(unet.get_submodule(theirs))
    assert Plan.from_dict(plan.to_dict()) == plan
    if any(name.endswith(".temporal") for name in plan.removed):
        assert isinstance(student, UNetSpatioTemporalPrunedModel)


@settings(max_examples=25, **STABLE)
@given(data=st.data(), architecture=architectures())
def test_any_removal_gives_the_promised_model_or_a_reason(data: Any, architecture: Architecture) -> None:
    """Without counting operations, which costs more than all else: so more architectures and removals."""
    unet, names = architecture.build(), data.draw(removals(architecture))
    if architecture.impossible(names):
        with pytest.raises(PlanError, match="cannot be removed"):
            toys.FAMILY.outline(unet, names)
        SEEN["refused"] += 1
        return
    SEEN["made"] += 1
    student = toys.FAMILY.prune(unet, names)
    size = sum(p.numel() for p in student.parameters())
    assert size == architecture.parameters_left(unet.state_dict(), names)
    output = toys.forward(student, toys.inputs())
    assert output.shape == (2, 2, 4, 8, 8) and torch.isfinite(output).all()
    assert torch.equal(toys.forward(saved_and_loaded(student), toys.inputs()), output)


def test_both_kinds_of_removals_were_drawn() -> None:
    if not SEEN:
        pytest.skip("the property test above ran elsewhere")
    assert SEEN["refused"] >= 3 and SEEN["made"] >= 10, dict(SEEN)


@settings(max_examples=4, **STABLE)
@given(data=st.data(), architecture=architectures())
def test_any_plan_gives_the_promised_model_or_a_reason(data: Any, architecture: Architecture) -> None:
    """By hand and by a recipe on each: to count the teacher's operations costs more than all else."""
    unet = architecture.build()
    by_hand(architecture, unet, data.draw(removals(architecture)))
    by_recipe(architecture, unet, data.draw(CHOICES))


def test_the_papers_cut_of_three_levels() -> None:
    architecture = Architecture((32, 64, 64), (2, 1, 1), (1, 1, 2), (True, True, False))
    by_recipe(architecture, architecture.build(), Choice("paper", False, "max_params_ratio", 0.9, 0))


def by_hand(architecture: Architecture, unet: Any, names: tuple[str, ...]) -> None:
    if architecture.impossible(names):
        with pytest.raises(PlanError, match=r"cannot be removed[\s\S]*(expected|found): \S+"):
            describe_plan("manual", toys.FAMILY, unet, names, toys.SETTINGS)
        return
    plan = describe_plan("manual", toys.FAMILY, unet, names, toys.SETTINGS)
    check(architecture, unet, plan, names)
    if len(architecture.widths) == 2:
        assert plan.expected_flops == total_flops(apply_plan(unet, plan, toys.FAMILY), toys.SETTINGS)
    assert toys.FAMILY.outline(unet, plan.removed).removed == plan.removed, "canonical is canonical"


def by_recipe(architecture: Architecture, unet: Any, choice: Choice) -> None:
    units = toys.FAMILY.units(unet, toys.SETTINGS, "temporal" if choice.temporal else "both")
    drawn = random.Random(choice.seed)
    profile = {"units": [{"name": u.name, "removed": {"paired_mse": drawn.random()}} for u in units]}
    finer = choice.temporal and choice.recipe == "auto"
    paper = choice.recipe == "paper"
    params = PlanParams(**{"recipe": choice.recipe} | ({} if paper else {choice.budget: choice.ratio}))

    def made() -> Plan:
        known = [unit for unit in units if unit.kind != "temporal"]
        return make_plan(params, toys.FAMILY, unet, known, profile, toys.SETTINGS, choice.seed)

    def left(plan: Plan) -> float:
        return getattr(plan, choice.budget.removeprefix("max_"))

    most = describe_plan("manual", toys.FAMILY, unet, architecture.all_removable(finer), toys.SETTINGS)
    if not (architecture.paper_fits if paper else left(most) <= choice.ratio):
        with pytest.raises(PlanError, match=r"no plan reaches|the paper's recipe needs|cannot be removed"):
            made()
        return
    plan = made()
    check(architecture, unet, plan, plan.removed)
    assert paper or left(plan) <= choice.ratio
    assert finer or not any(name.endswith(".temporal") for name in plan.removed)


@settings(max_examples=4, **STABLE)
@given(data=st.data(), architecture=architectures())
def test_without_temporal_parts_is_as_if_mixers_took_the_spatial_side_alone(
    data: Any, architecture: Architecture
) -> None:
    """sigmoid(100) is 1 in float32, and a mixer's factor weighs the spatial side of SVD's U-Net."""
    owners = [*architecture.pairs, "M"]
    chosen = data.draw(st.lists(st.sampled_from(owners), unique=True, min_size=1))
    names = tuple(f"{owner}.temporal" for owner in chosen)
    others = data.draw(st.sampled_from([(), ("M",), tuple(architecture.pairs[:1])]))
    unet = architecture.build()
    forced = copy.deepcopy(unet)
    for weight, tensor in forced.state_dict().items():
        if weight in architecture.temporal(names, [weight]) and weight.endswith("mix_factor"):
            tensor.fill_(100.0)
    student = toys.FAMILY.prune(unet, [*names, *others])
    expected = toys.forward(toys.FAMILY.prune(forced, others), toys.inputs())
    assert torch.equal(toys.forward(student, toys.inputs()), expected)


@settings(max_examples=3, **STABLE)
@given(architecture=architectures())
def test_nothing_removed_is_the_same_to_the_bit(architecture: Architecture) -> None:
    unet = architecture.build()
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    ours = UNetSpatioTemporalPrunedModel(**config, removed_units=()).eval().requires_grad_(False)
    ours.load_state_dict(unet.state_dict())
    expected = toys.forward(unet, toys.inputs())
    assert torch.equal(toys.forward(toys.FAMILY.prune(unet, ()), toys.inputs()), expected)
    assert torch.equal(toys.forward(ours, toys.inputs()), expected)
