"""The recovery step: who receives gradient, exact resume, equal slices, and stopping before harm."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from recovery_toys import SETTINGS, ToyFamily, toy_batches, toy_params, toy_step, toy_unet
from torch import Tensor, nn

from vdmini_core.distillation.data import RecoveryBatch, clip_indices
from vdmini_core.distillation.discriminator import BLIND
from vdmini_core.distillation.loss_watch import LossWatch
from vdmini_core.distillation.losses import task_reconstruction
from vdmini_core.distillation.optim import MovingAverage, rate_at, student_optimizer
from vdmini_core.errors import TrainingError


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]


def test_the_student_learns_the_heads_learn_and_the_teacher_never_changes() -> None:
    step, batches = toy_step(), toy_batches()
    teacher, student, heads = (weights_of(m) for m in (step.teacher, step.student, step.heads))
    rows = [step.step(batches.batch(i)) for i in range(3)]
    assert same(teacher, weights_of(step.teacher))
    assert not grads(step.teacher) and not any(p.requires_grad for p in step.teacher.parameters())
    assert not same(student, weights_of(step.student)) and not same(heads, weights_of(step.heads))
    keys = {"total", "task", "icd", "mca_generator", "mca_discriminator", "grad_norm", "lr"}
    assert all(set(row) == keys for row in rows)
    first = rows[0]
    assert first["total"] == pytest.approx(
        first["task"] + 0.1 * first["icd"] + first["mca_generator"], rel=1e-5
    )
    assert not any(m._forward_hooks for model in (step.teacher, step.student) for m in model.modules())


def test_the_heads_loss_leaves_the_student_alone() -> None:
    step = toy_step()
    _, heads_losses = step.losses(toy_batches().batch(0))
    heads_losses["mca_discriminator"].backward()
    assert not grads(step.student) and not grads(step.teacher) and grads(step.heads)


def test_the_generator_loss_leaves_the_heads_alone() -> None:
    step = toy_step()
    terms, _ = step.losses(toy_batches().batch(0))
    terms["mca_generator"].backward()
    assert grads(step.student) and not grads(step.teacher) and not grads(step.heads)


def test_the_teachers_prediction_gives_no_gradient() -> None:
    step = toy_step(toy_params(task_loss="teacher", lambda_mca=0))
    terms, _ = step.losses(toy_batches().batch(0))
    (terms["task"] + terms["icd"]).backward()
    assert grads(step.student) and not grads(step.teacher)


def test_lambda_zero_leaves_the_task_loss_alone() -> None:
    step = toy_step(toy_params(lambda_icd=0, lambda_mca=0, task_loss="reconstruction"))
    calls: list[int] = []
    step.teacher.register_forward_hook(lambda *_: calls.append(1))
    batch = toy_batches().batch(0)
    prediction = step.family.denoise(step.student, batch.noisy_BFChw, batch.sigma_B, batch.conditions)
    expected = task_reconstruction(prediction, batch.clean_BFChw).item()
    row = step.step(batch)
    assert row["total"] == row["task"] == pytest.approx(expected, rel=1e-6)
    assert row["icd"] == row["mca_generator"] == row["mca_discriminator"] == 0
    assert not calls and step.head_optimizer is None


def test_an_uncut_student_is_at_no_distance_from_its_teacher() -> None:
    step = toy_step(toy_params(task_loss="teacher", lambda_mca=0), student_seed=0)
    row = step.step(toy_batches().batch(0))
    other = toy_step(toy_params(task_loss="teacher", lambda_mca=0), student_seed=1)
    far = other.step(toy_batches().batch(0))
    # not exactly 0: with and without gradient torch takes other kernels, on some processors more so
    assert row["task"] < 1e-8 * far["task"] and row["icd"] < 1e-4 * far["icd"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_exact(tmp_path: Path, precision: str) -> None:
    params, batches = toy_params(precision=precision), toy_batches()
    whole = toy_step(params)
    rows = [whole.step(batches.batch(i)) for i in range(10)]
    first = toy_step(params)
    before = [first.step(batches.batch(i)) for i in range(5)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = toy_step(params, student_seed=9)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    after = [resumed.step(batches.batch(i)) for i in range(resumed.step_count, 10)]
    assert before + after == rows
    assert same(weights_of(whole.student), weights_of(resumed.student))
    assert same(weights_of(whole.recovered()), weights_of(resumed.recovered()))
    assert same(weights_of(whole.heads), weights_of(resumed.heads))


def test_a_foreign_checkpoint_is_refused() -> None:
    state = toy_step(toy_params(lambda_mca=0)).state_dict()
    with pytest.raises(TrainingError, match="another run"):
        toy_step().load_state_dict(state)


def test_two_slices_averaged_equal_the_whole_batch() -> None:
    params, batches = toy_params(max_grad_norm=1e6), toy_batches(4)
    whole = toy_step(params)
    workers = [toy_step(params) for _ in range(2)]
    shared: list[list[Tensor]] = []

    def first(tensors: Sequence[Tensor]) -> None:  # both see the mean, as all_reduce would give it
        shared.append([tensor.clone() for tensor in tensors])

    row = whole.step(batches.batch(0))
    for rank, worker in enumerate(workers):
        worker.average = first
        worker.step(batches.batch(0, rank, 2))
    mean = [(a + b) / 2 for a, b in zip(*shared, strict=True)]
    expected = [p.grad for p in whole.student.parameters()]
    for found, wanted in zip(mean[: len(expected)], expected, strict=True):
        assert wanted is not None
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=5e-5)
    assert mean[-1].tolist() == pytest.approx(list(row.values())[:5], rel=1e-5)


def test_slices_of_a_batch_are_the_batch() -> None:
    settings = replace(SETTINGS, steps=25)
    batches = toy_batches(4, settings, dropout=0.5)
    whole, parts = batches.batch(7), [batches.batch(7, rank, 2) for rank in range(2)]
    for name in ("clean_BFChw", "noisy_BFChw", "sigma_B", "renoise_BFChw", "renoise_sigma_B"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    for name, tensor in whole.conditions.tensors.items():
        assert torch.equal(tensor, torch.cat([part.conditions.tensors[name] for part in parts]))
    assert torch.equal(whole.noisy_BFChw, toy_batches(4, settings, dropout=0.5).batch(7).noisy_BFChw)


def test_every_epoch_sees_every_clip_once() -> None:
    seen = torch.cat([clip_indices(0, step, 2, 6) for step in range(6)])
    assert sorted(seen[:6].tolist()) == sorted(seen[6:].tolist()) == list(range(6))
    assert seen[:6].tolist() != seen[6:].tolist()


def test_a_one_step_student_sees_noise_alone() -> None:
    batch = toy_batches().batch(0)
    assert batch.noisy_BFChw.std().item() == pytest.approx(700, rel=0.1)
    other = toy_batches().batch(0)
    assert torch.equal(batch.noisy_BFChw, other.noisy_BFChw)
    many = toy_batches(2, replace(SETTINGS, steps=25)).batch(0)
    leaked = many.noisy_BFChw - many.clean_BFChw
    assert (leaked / many.sigma_B[:, None, None, None, None]).std().item() == pytest.approx(1, rel=0.15)


def broken(batch: RecoveryBatch) -> RecoveryBatch:
    return replace(batch, clean_BFChw=torch.full_like(batch.clean_BFChw, float("nan")))


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    step, batches = toy_step(toy_params(task_loss="reconstruction")), toy_batches()
    step.step(batches.batch(0))
    before = (weights_of(step.student), weights_of(step.heads), step.ema.updates, step.step_count)
    with pytest.raises(TrainingError, match=r"step 2 .* not finite: total, task, grad_norm"):
        step.step(broken(batches.batch(1)))
    assert same(before[0], weights_of(step.student)) and same(before[1], weights_of(step.heads))
    assert before[2:] == (step.ema.updates, step.step_count)


def test_divergence_stops_with_advice() -> None:
    step, batches = toy_step(toy_params(task_loss="reconstruction")), toy_batches()
    step.step(batches.batch(0))
    wild = batches.batch(1)
    with pytest.raises(TrainingError, match=r"diverged at step 2[\s\S]*learning_rate"):
        step.step(replace(wild, clean_BFChw=wild.clean_BFChw * 1e4))


def test_a_loss_that_rises_and_stays_there_is_divergence_a_hard_level_is_not() -> None:
    watch = LossWatch()
    for step in range(1, 31):
        watch.see(0.5 if step % 4 else 40.0, step)  # one level in four is hard
    resumed = LossWatch(**json.loads(json.dumps(asdict(watch))))
    told = []
    for each in (watch, resumed):
        with pytest.raises(
            TrainingError, match=r"diverged at step 3\d[\s\S]*near 0\.5[\s\S]*found: +8"
        ) as stopped:
            for step in range(31, 60):
                each.see(8.0, step)
        told.append(str(stopped.value))
    assert told[0] == told[1]
    small = LossWatch()
    for step, loss in enumerate((0.001, *[0.002] * 20, *[0.05] * 20), 1):
        small.see(loss, step)  # a cut that hardly hurts: the levels drawn alone are as far apart


def test_a_recovery_whose_loss_stays_far_above_its_best_is_stopped() -> None:
    step = toy_step(toy_params(steps=60, lambda_mca=0, lambda_icd=0), shallow=True)
    batches = toy_batches()
    for index in range(12):
        step.step(batches.batch(index))
    with pytest.raises(TrainingError, match=r"diverged at step \d\d[\s\S]*learning_rate"):
        for index in range(12, 40):
            batch = batches.batch(index)
            step.step(replace(batch, clean_BFChw=8 * batch.clean_BFChw))
    assert step.step_count < 30


def test_uneven_shares_of_workers_add_up_to_the_whole_batch() -> None:
    """Three workers with 2, 2 and 1 of five clips, in slices or not; the heads' own loss too."""
    batches = toy_batches(5)
    found: dict[tuple[int, int], list[Tensor]] = {}
    for world, slices in ((1, 1), (1, 2), (3, 1), (3, 2)):
        total: list[Tensor] = []
        for rank in range(world):
            # what is averaged: the gradients of student and heads, and the terms
            seen: list[Tensor] = []
            params = toy_params(batch_size=5, workers=1).model_copy(update={"accumulation": slices})
            step = toy_step(
                params, shallow=True, average=lambda tensors, to=seen: to.extend(map(Tensor.clone, tensors))
            )
            step.step(batches.batch(0, rank, world))
            total = [a + b for a, b in zip(total, seen, strict=True)] if total else seen
        found[world, slices] = [tensor / world for tensor in total]
    assert [len(batches.batch(0, rank, 3).sigma_B) for rank in range(3)] == [1, 2, 2]
    for case in ((1, 2), (3, 1), (3, 2)):
        for one, whole in zip(found[case], found[1, 1], strict=True):
            assert torch.allclose(one, whole, rtol=1e-3, atol=1e-6), case


def test_a_backbone_that_leaves_its_noisy_input_alone_is_told_from_one_that_looks() -> None:
    step, batch = toy_step(toy_params()), toy_batches().batch(0)
    looks = step.sight(batch)
    assert len(looks) == len(step.points) and min(looks) > BLIND
    weight = step.teacher.get_submodule("conv_in").weight
    with torch.no_grad():
        weight[:, : batch.clean_BFChw.shape[2]] = 0  # the condition's channels stay
    blind = step.sight(batch)
    assert max(blind) < 1e-6
    assert toy_step(toy_params(lambda_mca=0.0)).sight(batch) == []


def test_against_real_clips_other_heads_judge_beside_those_of_mca() -> None:
    """SF-V's own loss (arXiv 2406.04324): the same frozen encoder, real clips for the teacher's answers."""
    step, batch = toy_step(toy_params(lambda_adversarial=0.5)), toy_batches().batch(0)
    plain, _ = toy_step().losses(batch)
    terms, heads_losses = step.losses(batch)
    assert torch.equal(terms["mca_generator"], plain["mca_generator"])
    fake = step.family.denoise(step.student, batch.noisy_BFChw, batch.sigma_B, batch.conditions)
    sigma, heads = batch.renoise_sigma_B, step.heads["adversarial"]
    with torch.no_grad():
        told = [heads(step._encode(batch, clip), sigma) for clip in (fake, batch.clean_BFChw)]
    wanted = sum(
        (1 + f).clamp_min(0).mean() + (1 - r).clamp_min(0).mean() for f, r in zip(*told, strict=True)
    ) / len(told[0])
    assert heads_losses["adversarial_discriminator"].item() == pytest.approx(float(wanted), rel=1e-5)
    by_hand = -torch.stack([f.mean() for f in told[0]]).mean()
    assert terms["adversarial_generator"].item() == pytest.approx(float(by_hand), rel=1e-5)
    heads_losses["adversarial_discriminator"].backward(retain_graph=True)
    assert grads(heads) and not grads(step.heads["mca"]) and not grads(step.student)
    heads.zero_grad()
    terms["adversarial_generator"].backward()
    assert grads(step.student) and not grads(step.heads) and not grads(step.teacher)
    row = toy_step(toy_params(lambda_adversarial=0.5)).step(batch)
    total = row["task"] + 0.1 * row["icd"] + row["mca_generator"] + 0.5 * row["adversarial_generator"]
    assert row["total"] == pytest.approx(total, rel=1e-5)


def test_pairs_leave_gradient_where_the_hinge_does() -> None:
    params = toy_params(mca_loss="paired", lambda_adversarial=0.5)
    step, batch = toy_step(params), toy_batches().batch(0)
    terms, heads_losses = step.losses(batch)
    for name in ("mca", "adversarial"):
        terms[f"{name}_generator"].backward(retain_graph=True)
        assert grads(step.student) and not grads(step.heads) and not grads(step.teacher)
    step.student.zero_grad()
    torch.stack([*heads_losses.values()]).sum().backward()
    assert grads(step.heads["mca"]) and grads(step.heads["adversarial"]) and not grads(step.student)
    twin = toy_step(toy_params(mca_loss="paired"), student_seed=0)  # the teacher's own weights: no difference
    terms, heads_losses = twin.losses(batch)
    assert terms["mca_generator"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert heads_losses["mca_discriminator"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_real_clips_alone_need_no_answer_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    params = toy_params(lambda_icd=0, lambda_mca=0, lambda_adversarial=1.0, task_loss="reconstruction")
    step, batch = toy_step(params), toy_batches().batch(0)
    plain, asked = step.family.denoise, []

    def denoise(model: nn.Module, *given: object) -> Tensor:
        asked.append((model is step.teacher, given[0] is batch.noisy_BFChw))
        return plain(model, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(step.family, "denoise", denoise, raising=False)
    row = step.step(batch)
    assert (True, True) not in asked and asked.count((True, False)) == 2  # its encoder, on fake and real
    assert tuple(step.heads) == ("adversarial",) and row["adversarial_discriminator"] > 0
    assert row["mca_generator"] == row["mca_discriminator"] == 0


def test_the_heads_may_learn_alone_first() -> None:
    step, batches = toy_step(toy_params(mca_start_step=1)), toy_batches()
    heads = weights_of(step.heads)
    row = step.step(batches.batch(0))
    assert row["total"] == pytest.approx(row["task"] + 0.1 * row["icd"], rel=1e-6)
    assert not same(heads, weights_of(step.heads))
    later = step.step(batches.batch(1))
    assert later["total"] == pytest.approx(
        later["task"] + 0.1 * later["icd"] + later["mca_generator"], rel=1e-5
    )


def test_temporal_layers_have_their_own_learning_rate() -> None:
    params, unet = toy_params(temporal_learning_rate_scale=0.1), toy_unet()
    groups = student_optimizer(unet, params).param_groups
    assert [group["scale"] for group in groups] == [1.0, 0.1]
    parts = {"temporal_res_block", "temporal_transformer_blocks", "time_mixer", "time_pos_embed"}
    temporal = {id(p) for name, p in unet.named_parameters() if parts & set(name.split("."))}
    assert {id(p) for p in groups[1]["params"]} == temporal and temporal
    assert sum(len(group["params"]) for group in groups) == len(list(unet.parameters()))


def test_learning_rate_warms_up_and_falls() -> None:
    params = toy_params(steps=100, warmup_steps=10)
    rates = [rate_at(step, params) for step in range(100)]
    assert (
        rates[0] == pytest.approx(1 / 11) and rates[10] == 1 and rates == [*sorted(rates[:10]), *rates[10:]]
    )
    assert all(a >= b for a, b in pairwise(rates[10:])) and 0.05 <= rates[-1] < 0.06
    assert max(rate_at(s, toy_params(steps=4, warmup_steps=10)) for s in range(4)) == 1


def test_the_average_forgets_where_it_began() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, 0.99)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    for _ in range(100):
        average.update(model)
    share = (model.weight - average.tensors["weight"]).item()
    assert share == pytest.approx(1.0, abs=1) and share < 0.01
    assert torch.equal(start + 1, model.weight)


def test_recovery_brings_the_student_to_the_teacher() -> None:
    params = toy_params(steps=20, learning_rate=1e-3)
    step, batches = toy_step(params), toy_batches()
    held_out = toy_batches().batch(999)

    def distance(model: nn.Module) -> float:
        given = (held_out.noisy_BFChw, held_out.sigma_B, held_out.conditions)
        with torch.no_grad():
            found, wanted = (ToyFamily().denoise(m, *given) for m in (model, step.teacher))
        return (found - wanted).square().mean().item()

    before = distance(step.student)
    for index in range(20):
        step.step(batches.batch(index))
    assert distance(step.recovered()) < before
