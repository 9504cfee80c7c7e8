"""Surgery: exact, replayable, loads in stock diffusers where the stock class can express the cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import svd_toys as toys
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.pruned_unet import DroppedBlock, UNetSpatioTemporalPrunedModel
from vdmini_core.models.registry import load_pipeline, save_pipeline
from vdmini_core.models.student import build_student
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.recipes import describe_plan
from vdmini_core.pruning.surgery import apply_plan

REMOVABLE = [
    cut.name
    for cut in toys.FAMILY.cuts(toys.tiny_unet(), toys.SETTINGS)
    if cut.name != "inner" and not cut.optional
]


@pytest.fixture(scope="module")
def unet():
    return toys.tiny_unet()


def plan_for(unet, removed) -> Plan:
    return describe_plan("manual", toys.FAMILY, unet, removed, toys.SETTINGS)


def test_nothing_removed_is_the_same_model(unet):
    student = toys.FAMILY.prune(unet, ())
    assert type(student) is UNetSpatioTemporalConditionModel
    assert torch.equal(toys.forward(student, toys.inputs()), toys.forward(unet, toys.inputs()))
    student.conv_in.weight.data.zero_()
    assert unet.conv_in.weight.abs().sum() > 0, "the student must have weights of its own"


def test_nothing_removed_is_the_same_in_the_subclass(unet):
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    student = UNetSpatioTemporalPrunedModel(**config).eval().requires_grad_(False)
    student.load_state_dict(unet.state_dict())
    assert torch.equal(toys.forward(student, toys.inputs()), toys.forward(unet, toys.inputs()))


@pytest.mark.parametrize("name", REMOVABLE)
def test_bypass_is_what_surgery_makes(unet, name):
    student = toys.FAMILY.prune(unet, [name])
    with toys.FAMILY.bypass(unet, name, "removed"):
        bypassed = toys.forward(unet, toys.inputs())
    assert torch.equal(toys.forward(student, toys.inputs()), bypassed)
    assert not torch.equal(bypassed, toys.forward(unet, toys.inputs()))


@pytest.mark.parametrize("sizes", [(8, 8), (12, 20)])
def test_paper_recipe_equals_a_stock_three_level_unet(unet, sizes):
    plan = plan_for(unet, toys.FAMILY.paper_cut(unet))
    assert plan.removed == toys.PAPER
    student = apply_plan(unet, plan, toys.FAMILY)
    stock = toys.tiny_unet(
        (32, 32, 64),
        layers_per_block=(1, 1, 2),
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 3,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 3,
    )
    stock.mid_block = DroppedBlock()
    state, whole = {}, unet.state_dict()
    for name in stock.state_dict():
        origin = name
        if name.startswith("up_blocks."):
            parts = name.split(".")
            place = int(parts[3])
            parts[1] = str(int(parts[1]) + 1)
            # One layer fewer: the first and the last pair of an up block stay.
            parts[3] = "2" if parts[2] != "upsamplers" and parts[1] != "1" and place == 1 else parts[3]
            origin = ".".join(parts)
        state[name] = whole[origin]
    stock.load_state_dict(state)
    args = toys.inputs(0, *sizes)
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in stock.parameters())
    assert torch.equal(toys.forward(student, args), toys.forward(stock, args))


def test_equal_removals_give_a_stock_class(unet, tmp_path):
    student = apply_plan(unet, plan_for(unet, toys.SECOND_PAIRS), toys.FAMILY)
    assert type(student) is UNetSpatioTemporalConditionModel
    assert list(student.config.layers_per_block) == [1, 1, 2, 2]
    student.save_pretrained(tmp_path)
    again = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in student.state_dict().items())


def test_unequal_removals_need_the_subclass(unet):
    for removed in (["D.1.pair.1"], ["U.1.pair.0"], ["M"], ["D.0.pair.1", "U.3.pair.1", "U.3.pair.2"]):
        assert isinstance(toys.FAMILY.prune(unet, removed), UNetSpatioTemporalPrunedModel), removed


def test_stock_student_equals_the_subclass(unet):
    stock = toys.FAMILY.prune(unet, toys.SECOND_PAIRS)
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    ours = UNetSpatioTemporalPrunedModel(**config, removed_units=toys.SECOND_PAIRS)
    ours.eval().requires_grad_(False)
    whole = unet.state_dict()
    ours.load_state_dict({name: whole[name] for name in ours.state_dict()})
    assert torch.equal(toys.forward(stock, toys.inputs()), toys.forward(ours, toys.inputs()))


def test_pruning_a_pruned_model_adds_up(unet):
    twice = toys.FAMILY.prune(toys.FAMILY.prune(unet, ["M", "D.0.pair.1"]), ["U.3.pair.1"])
    once = toys.FAMILY.prune(unet, ["M", "D.0.pair.1", "U.3.pair.1"])
    assert dict(twice.config)["removed_units"] == dict(once.config)["removed_units"]
    assert torch.equal(toys.forward(twice, toys.inputs()), toys.forward(once, toys.inputs()))


def test_student_pipeline_loads_in_diffusers_after_import(tmp_path):
    pipeline = toys.tiny_pipeline()
    student = toys.FAMILY.prune(pipeline.unet, toys.PAPER)
    pipeline.register_modules(unet=student)
    save_pipeline(pipeline, tmp_path / "student", toys.SETTINGS)
    args = [torch.ones(1, 2, 8, 8, 8), torch.ones(1), torch.ones(1, 1, 16), torch.ones(1, 3)]
    loaded = load_pipeline(tmp_path / "student").unet
    assert isinstance(loaded, UNetSpatioTemporalPrunedModel)
    assert torch.equal(toys.forward(loaded, args), toys.forward(student, args))
    code = (
        "import sys, torch, vdmini_core; from diffusers import DiffusionPipeline;"
        "p = DiffusionPipeline.from_pretrained(sys.argv[1]); torch.save(p.unet.state_dict(), sys.argv[2]);"
        "from PIL import Image; p.set_progress_bar_config(disable=True);"
        "f = p(Image.new('RGB', (16, 16)), height=16, width=16, num_inference_steps=1,"
        " max_guidance_scale=1.0).frames[0]; assert len(f) == 2; print(type(p.unet).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "student"), str(tmp_path / "state.pt")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "UNetSpatioTemporalPrunedModel"
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        (["D.1.pair.7"], "D.1.pair.1"),
        (["D.3"], "together"),
        (["D.3", "M"], "together"),
        (["D.2.pair.0"], "32 channels in, 64 out"),
        (["D.2"], "channels"),
        (["nonsense"], "did you mean"),
    ],
)
def test_impossible_cuts_are_refused(unet, removed, says):
    with pytest.raises(PlanError, match=says):
        toys.FAMILY.prune(unet, removed)


def test_innermost_level_of_another_width_stays(unet):
    with pytest.raises(PlanError, match="64 channels feed a level of 32"):
        toys.FAMILY.prune(toys.tiny_unet((32, 32, 32, 64)), ["D.3", "M", "U.0"])


def test_plan_refuses_another_teacher_and_an_edited_map(unet):
    plan = plan_for(unet, ["M"])
    with pytest.raises(PlanError, match="another teacher"):
        apply_plan(toys.tiny_unet(seed=1), plan, toys.FAMILY)
    data = plan.to_dict()
    data["expected_params"] += 1
    with pytest.raises(PlanError, match="not what the plan expects"):
        apply_plan(unet, Plan.from_dict(data), toys.FAMILY)
    data = plan.to_dict()
    data["layer_map"]["conv_in"] = "conv_out"
    with pytest.raises(PlanError, match="name map"):
        apply_plan(unet, Plan.from_dict(data), toys.FAMILY)


def test_plan_from_a_config_fits_any_weights_of_it(unet):
    meta = build_student(unet, (), weights=False).model
    plan = plan_for(meta, ["M"])
    assert plan.teacher_fingerprint.startswith("architecture:")
    for seed in (0, 1):
        assert isinstance(apply_plan(toys.tiny_unet(seed=seed), plan, toys.FAMILY), nn.Module)
    with pytest.raises(PlanError, match="another teacher"):
        apply_plan(toys.tiny_unet((32, 64, 64, 64)), plan, toys.FAMILY)


def test_what_is_gone_cannot_be_removed_again():
    student = toys.FAMILY.prune(toys.tiny_unet(), toys.PAPER)
    for name in ("M", "D.0.pair.1", "D.3"):
        with pytest.raises(PlanError, match="lost them already"):
            toys.FAMILY.prune(student, [name])
