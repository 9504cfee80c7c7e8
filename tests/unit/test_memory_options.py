"""What saves memory or adds a term changes no number that it should not: accumulation, checkpointing, R1."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from recovery_toys import toy_batches, toy_params, toy_step, toy_unet
from torch import Tensor, nn

from vdmini_core.distillation.checkpointing import checkpoint_activations
from vdmini_core.distillation.losses import feature_matching_loss, r1_penalty
from vdmini_core.distillation.optim import adamw8bit, is_temporal, set_rate, student_optimizer
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.terms import TERMS
from vdmini_core.errors import TrainingError
from vdmini_core.params import DistillParams


def one_step(clips: int = 2, **changes: object) -> tuple[RecoveryStep, dict[str, float]]:
    params = toy_params(batch_size=clips, max_grad_norm=1e6, **changes)
    step = toy_step(params, shallow=True)
    return step, step.step(toy_batches(clips).batch(0))


def same_gradients(one: nn.Module, other: nn.Module, rtol: float = 1e-3) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        scale = a.grad.abs().max().item()
        torch.testing.assert_close(a.grad, b.grad, rtol=rtol, atol=rtol * scale + 1e-6, msg=name)


def test_accumulated_slices_are_the_whole_batch() -> None:
    extra = {"r1_gamma": 0.5, "lambda_feature_matching": 0.3}
    whole, row = one_step(4, **extra)
    sliced, found = one_step(4, accumulation=2, **extra)
    assert found == pytest.approx(row, rel=1e-4)
    same_gradients(whole.student, sliced.student)
    same_gradients(whole.heads, sliced.heads)


def test_computing_activations_twice_changes_no_gradient() -> None:
    plain, row = one_step()
    again, found = one_step(activation_checkpointing=True)
    assert found == pytest.approx(row, rel=1e-5)
    same_gradients(plain.student, again.student, 1e-5)
    same_gradients(plain.heads, again.heads, 1e-5)


def test_activations_are_computed_twice_and_taps_are_read_once() -> None:
    step = toy_step(toy_params(activation_checkpointing=True), shallow=True)
    layer, block = step.student.get_submodule("down_blocks.0.resnets.0"), "down_blocks.0"
    calls: list[str] = []
    # on its way in: torch ends the second computation as soon as it has what it needs
    layer.register_forward_pre_hook(lambda *_: calls.append("layer"))
    step.student.get_submodule(block).register_forward_hook(lambda *_: calls.append("block"))
    step.step(toy_batches().batch(0))
    assert calls.count("layer") == 2 and calls.count("block") == 1
    assert not any(module._forward_hooks for module in step.teacher.modules())


def test_a_model_without_checkpointing_is_refused() -> None:
    unet = UNet3DConditionModel(
        down_block_types=("DownBlock3D",), up_block_types=("UpBlock3D",), block_out_channels=(32,)
    )
    with pytest.raises(TrainingError, match="UNet3DConditionModel has no activation checkpointing"):
        checkpoint_activations(unet)


def test_terms_that_are_off_are_not_there() -> None:
    _, row = one_step()
    assert tuple(row) == (*TERMS, "lr")


def test_terms_that_are_on_enter_the_right_sums() -> None:
    _, plain = one_step()
    step, row = one_step(r1_gamma=2.0, lambda_feature_matching=0.3)
    assert tuple(row) == (*TERMS[:-1], "feature_matching", "r1", "grad_norm", "lr")
    # the student pays for features alone; what the heads pay for does not enter its sum
    assert row["total"] == pytest.approx(plain["total"] + 0.3 * row["feature_matching"], rel=1e-5)
    assert row["feature_matching"] > 0 and row["r1"] > 0
    other, _ = one_step(lambda_feature_matching=0.3)
    with pytest.raises(AssertionError):
        same_gradients(step.heads, other.heads)
    same_gradients(step.student, other.student, 1e-5)


def test_features_match_before_the_heads_take_part() -> None:
    step = toy_step(toy_params(mca_start_step=5, lambda_feature_matching=1.0), shallow=True)
    terms, _ = step.losses(toy_batches().batch(0))
    terms["feature_matching"].backward()
    assert any(p.grad is not None and p.grad.any() for p in step.student.parameters())
    assert all(p.grad is None for p in step.teacher.parameters())


def test_feature_matching_by_hand() -> None:
    torch.manual_seed(0)
    fake, real = ([torch.randn(3, 2, 4, 4), torch.randn(3, 5, 2, 2)] for _ in range(2))
    levels = []
    for f, r in zip(fake, real, strict=True):
        frames = [(f[n] - r[n]).abs().sum() / r[n].abs().sum() for n in range(3)]
        levels.append(sum(frames) / 3)
    assert feature_matching_loss(fake, real).item() == pytest.approx(float(sum(levels)) / 2, rel=1e-6)
    assert feature_matching_loss(real, real).item() == 0


def test_r1_by_hand() -> None:
    """Of a linear head the slope is its weight, of its square twice the answer times it."""
    torch.manual_seed(0)
    weight = torch.randn(3, requires_grad=True)
    feature = torch.randn(2, 3, 4, 4)

    def linear(features: list[Tensor]) -> list[Tensor]:
        return [torch.einsum("nchw,c->nhw", features[0], weight)]

    def squared(features: list[Tensor]) -> list[Tensor]:
        return [linear(features)[0].square()]

    assert r1_penalty(linear, [feature]).item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    answer = torch.einsum("nchw,c->nhw", feature, weight)
    wanted = (4 * answer.square() * weight.square().sum()).mean()
    found = r1_penalty(squared, [feature])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    grads = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (found, wanted)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4, "accumulation": 3}, "multiple of accumulation"),
        ({"batch_size": 4, "workers": 2, "accumulation": 4}, "multiple of accumulation"),
        ({"lambda_mca": 0, "r1_gamma": 1}, "lambda_mca or lambda_adversarial above 0"),
        ({"lambda_mca": 0, "lambda_adversarial": 1, "lambda_feature_matching": 1}, "lambda_mca above 0"),
        ({"mca_loss": "paired", "mca_generator": "log"}, "partner of mca_loss hinge"),
        ({"parallel": "fsdp2", "optimizer": "adamw8bit"}, "use adamw"),
    ],
)
def test_choices_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillParams.model_validate({"batch_size": 2, **changes})


def test_eight_bits_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim", "torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"no 8-bit AdamW[\s\S]*bitsandbytes or torchao"):
        student_optimizer(toy_unet(levels=2), toy_params(optimizer="adamw8bit"))
    library = types.ModuleType("torchao.optim")
    library.AdamW8bit = torch.optim.AdamW  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.optim", library)
    assert adamw8bit() is torch.optim.AdamW
    groups = student_optimizer(toy_unet(levels=2), toy_params(optimizer="adamw8bit")).param_groups
    assert [group["scale"] for group in groups] == [1.0, 1.0]


def test_modelscopes_temporal_layers_are_known() -> None:
    unet = UNet3DConditionModel(
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    names = [name for name, _ in unet.named_parameters()]
    temporal = {name for name in names if is_temporal(name)}
    parts = {part for name in temporal for part in name.split(".")}
    assert {"transformer_in", "temp_convs", "temp_attentions"} <= parts
    spatial = {part for name in names if name not in temporal for part in name.split(".")}
    assert {"resnets", "attentions", "conv_in", "time_embedding"} <= spatial
    assert not spatial & {"transformer_in", "temp_convs", "temp_attentions"}


def test_a_rate_in_a_tensor_is_changed_in_place() -> None:
    """torchao's optimisers compile with it and refuse another object."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5), foreach=False)
    held = optimizer.param_groups[0]["lr"]
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is held and held.item() == 0.25
