"""Consistency distillation and noise prediction: the formulas, inlined; and which teacher learns by which."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from recovery_toys import SETTINGS as TOY_SETTINGS
from recovery_toys import toy_step

from vdmini_core.distillation.consistency import (
    consistency_target,
    lower_levels,
    ode_step,
    own_task,
    pseudo_huber,
)
from vdmini_core.distillation.data import RecoveryBatches, RecoveryData
from vdmini_core.distillation.losses import task_reconstruction
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.terms import task_weights
from vdmini_core.errors import TrainingError
from vdmini_core.models.base import Conditions
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import default_settings, merge_settings
from vdmini_core.models.svd import SVDFamily
from vdmini_core.models.t2v_schedulers import ConsistencyScheduler
from vdmini_core.models.videocrafter import VideoCrafterFamily
from vdmini_core.models.videocrafter_sampling import noise_levels
from vdmini_core.params import DistillParams
from vdmini_core.teacher.text_architecture import NANO_T2V_CALL, build_text_pipeline

FAMILY = VideoCrafterFamily()


@pytest.fixture(scope="module")
def pipeline():
    return build_text_pipeline(0)


@pytest.fixture(scope="module")
def settings(pipeline):
    found = default_settings(dict(pipeline.unet.config), dict(pipeline.vae.config))
    return merge_settings(found, NANO_T2V_CALL)


def test_pseudo_huber_is_its_formula() -> None:
    pred, target = torch.tensor([[1.0, -2.0], [0.0, 0.5]]), torch.tensor([[1.0, 1.0], [0.003, 0.5]])
    c = 0.001
    expected = sum(math.sqrt(d * d + c * c) - c for d in (0.0, -3.0, -0.003, 0.0)) / 4
    assert float(pseudo_huber(pred, target)) == pytest.approx(expected, rel=1e-6)
    assert float(pseudo_huber(pred, pred)) == 0
    near = torch.full((4,), 1e-5)  # where c - c would leave no digits
    assert float(pseudo_huber(near, 0 * near)) == pytest.approx(1e-10 / (2 * c), rel=1e-4)


def test_the_solver_step_is_ddims() -> None:
    scheduler = ConsistencyScheduler()
    t, s = 699, 694
    generator = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(2, 1, 2, 3, 4, 4, generator=generator)
    a, b = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[s]
    clean = (sample - (1 - a).sqrt() * noise) / a.sqrt()
    theirs = b.sqrt() * clean + (1 - b).sqrt() * noise  # DDIM, eta 0, in the schedule's own scale
    levels, roots = noise_levels(scheduler)
    ours = ode_step(sample / roots[t], clean, levels[t][None], levels[s][None]) * roots[s]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert torch.equal(ode_step(sample, clean, torch.ones(1), torch.zeros(1)), clean)


def test_the_target_is_the_answer_one_level_lower() -> None:
    noisy, clean = torch.full((2, 1, 1, 1, 1), 5.0), torch.ones(2, 1, 1, 1, 1)
    sigma, lower = torch.tensor([4.0, 1.0]), torch.tensor([2.0, 0.0])
    found = consistency_target(
        lambda x, level: x * level[:, None, None, None, None], noisy, clean, sigma, lower
    )
    assert found.flatten().tolist() == [(1 + 0.5 * 4) * 2.0, 1.0]  # at level 0 the boundary: f(x, 0) = x


def test_noise_weighting_is_the_error_of_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise, guess = torch.randn(3, 2, 3, 4, 4, 4, generator=generator)
    sigma = torch.tensor([0.1, 7.0])
    wide = sigma[:, None, None, None, None]
    pred = clean + wide * noise - wide * guess
    found = task_reconstruction(pred, clean, sigma, "noise")
    assert float(found) == pytest.approx(float((noise - guess).square().mean()), rel=1e-6)


def test_levels_lie_on_the_grid_the_teacher_was_distilled_on(settings) -> None:
    grid = noise_levels(ConsistencyScheduler())[0][4::5]
    drawn = FAMILY.training_sigmas(settings, 100, torch.Generator().manual_seed(0))
    assert len(grid) == 200 and all((level == grid).any() for level in drawn) and len(drawn.unique()) > 60
    lower = lower_levels(FAMILY, grid, settings)
    assert lower[0] == 0 and torch.equal(lower[1:], grid[:-1])


def test_each_teacher_learns_as_its_base_model_did(settings) -> None:
    many_step = replace(settings, rescaled_schedule=True, steps=50)
    assert own_task(FAMILY, settings) == "consistency" and own_task(FAMILY, many_step) == "noise"
    assert own_task(SVDFamily(), settings) == "reconstruction"
    auto, asked = DistillParams(), DistillParams(task_loss="consistency")
    assert task_weights(auto, False, "consistency")["consistency"] == 1
    assert task_weights(auto, False, "noise") == task_weights(auto, False)
    assert task_weights(asked, True) == {"reconstruction": 0, "teacher": 0, "consistency": 1}
    with pytest.raises(TrainingError, match="needs a consistency model"):
        toy_step(asked, settings=TOY_SETTINGS)
    # VideoCrafter2's own levels reach higher than T2V-Turbo's: the clean sample is scaled down.
    generator = torch.Generator().manual_seed(0)
    tops = [FAMILY.training_sigmas(replace(s, steps=1), 1, generator) for s in (settings, many_step)]
    assert float(tops[1] / tops[0]) == pytest.approx(1 / 0.7, rel=1e-5)


def batches_of(pipeline, settings, dropout=0.0):
    prompts = ("A red disc moves up.", "A blue square.", "A green triangle.")
    latents = torch.randn(3, 4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    conditions = FAMILY.conditions(pipeline, ClipInputs(prompts=prompts), settings, [1, 2, 3])
    return RecoveryBatches(RecoveryData(latents, conditions), FAMILY, settings, 2, seed=3, dropout=dropout)


def test_guidance_is_drawn_and_workers_agree_on_it(pipeline, settings) -> None:
    batches = batches_of(pipeline, settings)
    drawn = [batches.batch(step).conditions.tensors["guidance"] for step in range(20)]
    assert 5 <= float(torch.cat(drawn).min()) < 6.5 and 13.5 < float(torch.cat(drawn).max()) <= 15
    parts = [batches.batch(4, rank, 2).conditions.tensors["guidance"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), drawn[4])
    fixed = batches_of(pipeline, replace(settings, rescaled_schedule=True)).batch(0).conditions.tensors
    assert fixed["guidance"].tolist() == [7.5, 7.5]


def test_a_dropped_prompt_is_the_empty_one_and_nothing_else_changes(pipeline, settings) -> None:
    whole, dropped = (batches_of(pipeline, settings, d).batch(0).conditions.tensors for d in (0.0, 0.999))
    assert torch.equal(dropped["text"], whole["negative_text"])
    assert not torch.equal(whole["text"], whole["negative_text"])
    assert all(torch.equal(whole[name], dropped[name]) for name in whole if name != "text")


def test_the_task_term_is_the_distance_to_the_teachers_answer_lower_on_its_path(pipeline, settings) -> None:
    student = FAMILY.prune(pipeline.unet, ("D.0.pair.1", "U.3.pair.1"))
    params = DistillParams(steps=4, lambda_icd=0, lambda_mca=0)
    batch = batches_of(pipeline, settings).batch(0)
    step = RecoveryStep(FAMILY, student, pipeline.unet, (), params, batch, one_step=False, settings=settings)
    levels, roots = noise_levels(ConsistencyScheduler())
    alphas = ConsistencyScheduler().alphas_cumprod
    t = torch.stack([(levels - sigma).abs().argmin() for sigma in batch.sigma_B])
    a, b, k, k_lower = (
        x[:, None, None, None, None] for x in (alphas[t], alphas[t - 5], roots[t], roots[t - 5])
    )
    given = batch.conditions
    with torch.no_grad():
        clean = FAMILY.denoise(pipeline.unet, batch.noisy_BFChw, levels[t], given)
        noise = (k * batch.noisy_BFChw - a.sqrt() * clean) / (1 - a).sqrt()
        lower = (b.sqrt() * clean + (1 - b).sqrt() * noise) / k_lower
        target = FAMILY.denoise(pipeline.unet, lower, levels[t - 5], given)
        answer = FAMILY.denoise(student, batch.noisy_BFChw, levels[t], given)
    expected = (((answer - target).square() + 1e-6).sqrt() - 1e-3).mean()
    assert (t > 4).all() and any(isinstance(m, torch.nn.Dropout) and m.p for m in student.modules())
    assert step.step(batch)["task"] == pytest.approx(float(expected), rel=1e-6)


def test_conditions_of_other_families_are_left_alone() -> None:
    from vdmini_core.distillation.data import _blank

    given = Conditions({"image_embeds": torch.ones(2, 1, 3), "added_time_ids": torch.ones(2, 3)})
    found = _blank(given, torch.tensor([True, False])).tensors
    assert found["image_embeds"].sum() == 3 and found["added_time_ids"].sum() == 6


def test_without_a_weight_the_task_costs_no_second_answer(pipeline, settings) -> None:
    student = FAMILY.prune(pipeline.unet, ("D.0.pair.1", "U.3.pair.1"))
    params = DistillParams(steps=4, lambda_task=0, lambda_mca=0)
    batch = batches_of(pipeline, settings).batch(0)
    point = list(FAMILY.feature_points(student))[-1]  # behind the cut
    pairs = [(FAMILY.feature_points(student)[point], FAMILY.feature_points(pipeline.unet)[point])]
    step = RecoveryStep(
        FAMILY, student, pipeline.unet, pairs, params, batch, one_step=False, settings=settings
    )
    terms = step.step(batch)
    assert terms["task"] == 0 and terms["total"] > 0


def test_numbers_that_a_model_is_told_are_not_dropped() -> None:
    from vdmini_core.distillation.data import _blank

    told = {"guidance": torch.full((2,), 6.0), "snr_shift": torch.ones(2)}
    found = _blank(Conditions({"text": torch.ones(2, 5, 3), **told}), torch.tensor([True, False])).tensors
    assert found["text"].sum() == 15 and all(torch.equal(found[name], value) for name, value in told.items())
