"""The channel-pruning baseline: what Torch-Pruning finds, what goes, and a student as predicted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import svd_toys as toys
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D

from vdmini_core.errors import PlanError
from vdmini_core.models.flops import total_flops
from vdmini_core.models.narrow import inner_widths
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel
from vdmini_core.params import PlanParams
from vdmini_core.pruning.depgraph import channel_importance, channel_steps
from vdmini_core.pruning.plan import Plan, diff_plans
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan

pytest.importorskip("torch_pruning", reason="the depgraph recipe's library is not installed")


@pytest.fixture
def unet() -> Any:
    return toys.tiny_unet((64, 64))


def plan_of(unet: Any, **budget: float) -> Plan:
    params = PlanParams(recipe="depgraph", **budget)
    return make_plan(params, toys.FAMILY, unet, (), None, toys.SETTINGS, seed=0)


def test_importance_is_the_norm_of_all_weights_that_share_a_channel() -> None:
    """Against the sum written out, for a resnet with time embedding and for a gated feed-forward network."""
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=16)
    parts = [
        resnet.conv1.weight.square().sum((1, 2, 3)),
        resnet.time_emb_proj.weight.square().sum(1),
        resnet.conv2.weight.square().sum((0, 2, 3)),
    ]
    wanted = torch.stack(parts).mean(0)
    found = channel_importance(resnet)
    assert torch.allclose(found, (wanted / wanted.mean()).detach(), rtol=1e-4)
    network = FeedForward(32, mult=2, activation_fn="geglu")
    with torch.no_grad():
        network.net[0].proj.weight[64 + 5] = 0  # the gate of channel 5 ...
        network.net[0].proj.weight[5] = 0  # ... and its value
        network.net[2].weight[:, 5] = 0
    with torch.no_grad():  # as callers who only plan do
        assert channel_importance(network).argmin() == 5


def test_dead_channels_go_first(unet: Any) -> None:
    place = next(p for p in inner_widths(unet) if p.path.endswith("spatial_res_block"))
    block = unet.get_submodule(place.path)
    with torch.no_grad():  # the second channel of every normalisation group of two
        for tensor in (block.conv1.weight, block.norm2.weight, block.time_emb_proj.weight):
            tensor[1::2] = 0
        block.conv2.weight[:, 1::2] = 0
    plan = plan_of(unet, max_flops_ratio=0.999)
    assert plan.channels[place.path] == tuple(range(0, 64, 2))
    student: Any = apply_plan(unet, plan, toys.FAMILY)
    kept = student.get_submodule(place.path)
    assert torch.equal(kept.conv1.weight, block.conv1.weight[::2])
    assert torch.equal(kept.time_emb_proj.bias, block.time_emb_proj.bias[::2])
    assert torch.equal(kept.conv2.weight, block.conv2.weight[:, ::2])


@pytest.mark.parametrize("budget", [{"max_flops_ratio": 0.8}, {"max_params_ratio": 0.6}])
def test_the_student_is_what_was_predicted(unet: Any, budget: dict[str, float], tmp_path: Path) -> None:
    plan = plan_of(unet, **budget)
    student: Any = apply_plan(unet, plan, toys.FAMILY)
    assert sum(p.numel() for p in student.parameters()) == plan.expected_params < plan.teacher_params
    assert total_flops(student, toys.SETTINGS) == plan.expected_flops
    reached = plan.flops_ratio if "max_flops_ratio" in budget else plan.params_ratio
    assert reached <= next(iter(budget.values()))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan and not diff_plans(plan, plan)["narrowed"]
    student.save_pretrained(tmp_path / "unet")
    again: Any = UNetSpatioTemporalPrunedModel.from_pretrained(tmp_path / "unet").eval()
    for parameter in again.parameters():
        parameter.data = parameter.data.clone()
    assert torch.equal(toys.forward(again, toys.inputs()), toys.forward(student, toys.inputs()))


def test_features_keep_their_width_for_recovery(unet: Any) -> None:
    plan = plan_of(unet, max_flops_ratio=0.7)
    assert plan.feature_pairs and all(mine == theirs for mine, theirs in plan.feature_pairs)


def test_what_is_impossible_is_refused_with_the_reason(unet: Any) -> None:
    with pytest.raises(PlanError, match=r"no plan reaches a FLOPs ratio of 0\.010"):
        plan_of(unet, max_flops_ratio=0.01)
    with pytest.raises(PlanError, match="knows no times"):
        params = PlanParams(recipe="depgraph", max_latency_ratio=0.5, timing="some.json")
        make_plan(params, toys.FAMILY, unet, (), None, toys.SETTINGS, seed=0)
    with pytest.raises(PlanError, match="needs weights"):
        plan_of(unet.to("meta"), max_flops_ratio=0.8)


def test_steps_cost_what_they_save(unet: Any) -> None:
    fresh = toys.tiny_unet((64, 64))
    steps = channel_steps(fresh, toys.SETTINGS)
    places = {place.path: place for place in inner_widths(fresh)}
    assert len(steps) == sum(p.width // p.step - 1 for p in places.values())
    first = next(step for step in steps if "spatial_res_block" in step.name)
    params = PlanParams(recipe="manual", units=("M",))
    whole = make_plan(params, toys.FAMILY, fresh, (), None, toys.SETTINGS, seed=0)
    path = first.name.rpartition(":")[0]
    order = tuple(range(1, 64, 2))
    narrowed: Any = toys.FAMILY.prune(fresh, (), {path: order})
    assert sum(p.numel() for p in narrowed.parameters()) == whole.teacher_params - first.parameters
    assert total_flops(narrowed, toys.SETTINGS) == whole.teacher_flops - first.flops


def test_edited_channels_are_refused(unet: Any) -> None:
    plan = plan_of(unet, max_flops_ratio=0.8)
    path = next(path for path, kept in plan.channels.items() if "spatial_res_block" in path)
    kept = plan.channels[path]
    edits: dict[str, tuple[int, ...]] = {
        "twice": (kept[0], *kept[:-1]),
        "below": (-1, *kept[1:]),
        "above": (*kept[:-1], 10**6),
        "none": (),
        "uneven": (0, 1, *kept[2:]),
    }
    for edited in edits.values():
        with pytest.raises(PlanError, match="inner channels do not fit"):
            apply_plan(unet, dataclasses.replace(plan, channels={**plan.channels, path: edited}), toys.FAMILY)
    with pytest.raises(PlanError, match="do not fit nowhere"):
        apply_plan(unet, dataclasses.replace(plan, channels={"nowhere": (0,)}), toys.FAMILY)
