"""Depth of the recovery: what learns, what the merged student answers, what `none` and `auto` do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recovery_toys import ToyFamily, toy_batches, toy_params, toy_step, toy_unet
from torch import Tensor, nn

from tasks.distill import run
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from tests.unit.dit_toys import CONFIGS, tiny_dit
from vdmini_core.artifacts import tree_digests
from vdmini_core.distillation.depth import adapted_layers, depth_for, load_recovered, open_student
from vdmini_core.errors import TrainingError
from vdmini_core.models.registry import load_settings, save_pipeline
from vdmini_core.params import Params
from vdmini_core.pruning.plan import Plan
from vdmini_core.teacher.architecture import build_pipeline

LORA = {"depth": "lora", "lora_rank": 4, "lora_alpha": 8}
PLAN = Plan("manual", (), "architecture:x", "svd", 1000, 1000, 1000, 1000, {}, ())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def answer(model: nn.Module) -> Tensor:
    """In double precision, so that what differs is not rounding."""
    batch = toy_batches().batch(0)
    given = batch.conditions.to("cpu", torch.float64)
    with torch.no_grad():
        model = copy.deepcopy(model).double()
        return ToyFamily().denoise(model, batch.noisy_BFChw.double(), batch.sigma_B.double(), given)


def test_only_adapters_learn_and_merged_they_answer_as_beside_the_weights() -> None:
    params, batches = toy_params(**LORA, learning_rate=1e-2), toy_batches()
    step = toy_step(params)
    before = weights(step.student)
    for index in range(3):
        step.step(batches.batch(index))
    learned = {name for name, p in step.student.named_parameters() if p.grad is not None}
    assert learned and all(".lora_A." in name or ".lora_B." in name for name in learned)
    changed = {name for name, tensor in weights(step.student).items() if not tensor.equal(before[name])}
    # of a layer that the toy's single-cell levels give no gradient nothing moves
    assert changed and changed <= learned == set(step.ema.tensors)
    student, fresh = toy_unet(1).double(), toy_unet(1)
    load_recovered(student, step.state_dict(), params)
    beside = answer(step.recovered())
    assert (answer(fresh) - beside).abs().max() > 1e-3, "the adapters do something"
    assert (answer(student) - beside).abs().max() < 1e-6 * beside.abs().max()
    assert list(student.state_dict()) == list(fresh.state_dict()) and type(student) is type(fresh)


def test_adapters_start_as_nothing_and_alike_on_every_worker() -> None:
    params = toy_params(**LORA)
    first, second = (open_student(toy_unet(1), params, seed=3) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert torch.allclose(answer(first), answer(toy_unet(1)), atol=1e-9)


def test_resume_with_adapters_is_exact(tmp_path: Path) -> None:
    params, batches = toy_params(**LORA), toy_batches()
    whole = toy_step(params)
    rows = [whole.step(batches.batch(i)) for i in range(6)]
    first = toy_step(params)
    before = [first.step(batches.batch(i)) for i in range(3)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = toy_step(params, student_seed=9)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert before + [resumed.step(batches.batch(i)) for i in range(3, 6)] == rows
    ends = (weights(whole.recovered()), weights(resumed.recovered()))
    assert all(a.equal(b) for a, b in zip(*(end.values() for end in ends), strict=True))


def test_small_layers_and_too_high_ranks_get_no_adapter() -> None:
    unet = toy_unet()
    layers = adapted_layers(unet, 4)
    assert layers and {type(unet.get_submodule(path)) for path in layers} == {nn.Linear, nn.Conv2d, nn.Conv3d}
    assert not any(path.startswith(("conv_in", "conv_out", "time_embedding")) for path in layers)
    with pytest.raises(TrainingError, match=r"lower distill\.lora_rank"):
        open_student(copy.deepcopy(unet), toy_params(depth="lora", lora_rank=512), 0)
    with pytest.raises(TrainingError, match="nothing to train"):
        open_student(unet, toy_params(depth="none"), 0)


@pytest.mark.parametrize(
    ("left", "flops", "depth"),
    [(1000, 1000, "none"), (990, 1000, "none"), (1000, 950, "lora"), (900, 990, "lora"), (995, 690, "full")],
)
def test_auto_looks_at_the_larger_share_removed(left: int, flops: int, depth: str) -> None:
    plan = replace(PLAN, expected_params=left, expected_flops=flops)
    assert depth_for(toy_params(depth="auto"), plan) == depth
    assert depth_for(toy_params(depth="full"), plan) == "full"


def test_none_passes_on_the_very_bytes_of_the_pruned_student(tmp_path: Path) -> None:
    student = tmp_path / "artifacts" / "prune" / "student"
    save_pipeline(build_pipeline("nano", 0), student, None)
    save_pipeline(build_pipeline("nano", 0), student, load_settings(student))
    replace(PLAN, expected_flops=500).save(student / "plan.json")
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir(), work.mkdir()
    monitor = QuietMonitor()
    params = Params.model_validate({"distill": {"depth": "none"}})
    outcome = run(StageJob(tmp_path, params, out, work, monitor))
    assert tree_digests(out / "student") == tree_digests(student)
    assert outcome.metrics == {"depth": "none", "steps": 0} and "learned nothing" in monitor.notes[0]


def test_the_layers_of_a_transformer_get_adapters_and_nothing_around_them() -> None:
    config = CONFIGS["WanTransformer3DModel"][0]
    layers = adapted_layers(tiny_dit("WanTransformer3DModel", config), 1)
    assert layers and all(path.startswith("blocks.") for path in layers)
    assert {path.split(".")[1] for path in layers} == {str(i) for i in range(config["num_layers"])}
