"""Every loss against reference math written out here, to 1e-6."""

from __future__ import annotations

import math

import pytest
import torch

from vdmini_core.distillation.discriminator import DiscriminatorHeads
from vdmini_core.distillation.losses import (
    edm_weight,
    icd_loss,
    mca_discriminator_loss,
    mca_generator_loss,
    paired_discriminator_loss,
    paired_generator_loss,
    task_reconstruction,
    total_loss,
)
from vdmini_core.errors import TrainingError


def features(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, c, 4, 4, generator=generator) * c for c in (3, 5)]


def close(found: torch.Tensor, expected: float) -> None:
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_reconstruction_is_the_mean_squared_error() -> None:
    a, b = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    close(
        task_reconstruction(a, b),
        sum(((x - y) ** 2).item() for x, y in zip(a.view(-1), b.view(-1), strict=True)) / a.numel(),
    )


def test_edm_weighting_weighs_each_clip_by_its_level() -> None:
    a, b, sigma = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5), torch.tensor([0.5, 700.0])
    per_clip = [((a[i] - b[i]) ** 2).mean().item() for i in range(2)]
    expected = (per_clip[0] * (0.25 + 1) / 0.25 + per_clip[1] * (490000 + 1) / 490000) / 2
    close(task_reconstruction(a, b, sigma, "edm"), expected)
    close(edm_weight(torch.tensor([2.0]), 0.5)[0], (4 + 0.25) / (2 * 0.5) ** 2)
    with pytest.raises(TrainingError, match="noise level"):
        task_reconstruction(a, b, None, "edm")


def test_icd_plain_is_the_sum_over_layers_of_frame_distances() -> None:
    student, teacher = features(0), features(1)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        expected += sum(((s[n] - t[n]) ** 2).sum().sqrt().item() for n in range(6)) / 6
    close(icd_loss(student, teacher), expected)


def test_icd_normalised_is_relative_to_the_teacher_and_averaged() -> None:
    student, teacher = features(0), features(1)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        ratios = [((s[n] - t[n]) ** 2).sum().sqrt() / (t[n] ** 2).sum().sqrt() for n in range(6)]
        expected += sum(r.item() for r in ratios) / 6 / 2
    close(icd_loss(student, teacher, normalise=True), expected)
    louder = icd_loss([s * 50 for s in student], [t * 50 for t in teacher], normalise=True)
    close(louder, expected)


@pytest.mark.parametrize("normalise", [False, True])
def test_icd_does_not_see_the_order_of_frames(normalise: bool) -> None:
    student, teacher, order = features(0), features(1), torch.randperm(6)
    before = icd_loss(student, teacher, normalise)
    after = icd_loss([s[order] for s in student], [t[order] for t in teacher], normalise)
    close(after, before.item())
    assert not torch.isclose(icd_loss([s.flip(0) for s in student], teacher, normalise), before)


def test_icd_of_equal_features_is_zero_with_finite_gradient() -> None:
    student = [f.clone().requires_grad_() for f in features(0)]
    loss = icd_loss(student, features(0), normalise=True)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(s.grad).all() for s in student if s.grad is not None)


def test_icd_gives_the_teacher_no_gradient_and_refuses_other_shapes() -> None:
    student, teacher = [f.requires_grad_() for f in features(0)], [f.requires_grad_() for f in features(1)]
    icd_loss(student, teacher).backward()
    assert all(t.grad is None for t in teacher)
    with pytest.raises(TrainingError, match="another shape"):
        icd_loss(student, [t[:, :2] for t in teacher])
    with pytest.raises(TrainingError, match="do not pair up"):
        icd_loss(student, teacher[:1])


def test_mca_hinge_and_generator_forms() -> None:
    fake, real = (
        [torch.tensor([-2.0, 0.5]), torch.tensor([0.25])],
        [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])],
    )
    heads = [(0 + 1.5) / 2 + (0 + 0.5) / 2, 1.25 + 2.0]
    close(mca_discriminator_loss(fake, real), sum(heads) / 2)
    close(mca_generator_loss(fake), (0.75 - 0.25) / 2)
    sigmoid = torch.sigmoid
    log = -(sigmoid(fake[0]).log().mean() + sigmoid(fake[1]).log().mean()) / 2
    close(mca_generator_loss(fake, "log"), log.item())


def test_paired_forms_compare_each_answer_with_its_own_partner() -> None:
    fake, real = (
        [torch.tensor([[0.5, -1.0]]), torch.tensor([2.0])],
        [torch.tensor([[1.5, -1.0]]), torch.tensor([0.0])],
    )
    heads = [
        (math.log1p(math.exp(-1.0)) + math.log(2)) / 2,
        math.log1p(math.exp(2.0)),
    ]
    close(paired_discriminator_loss(fake, real), sum(heads) / 2)
    student = [(math.log1p(math.exp(1.0)) + math.log(2)) / 2, math.log1p(math.exp(-2.0))]
    close(paired_generator_loss(fake, real), sum(student) / 2)
    same = [torch.randn(3, 4)]
    close(paired_discriminator_loss(same, same), math.log(2))


def test_pairs_teach_heads_what_the_hinge_loss_loses_among_the_clips() -> None:
    """Answers a hundredth apart of what clips are; the loss of pairs that were not learned from."""
    torch.manual_seed(0)
    offset = 0.01 * torch.randn(8, 1, 1)
    clips = [torch.randn(4, 8, 6, 6) for _ in range(12)]
    sigma = torch.ones(2)

    def held_out(loss: object) -> float:
        heads = DiscriminatorHeads([8], seed=0)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3, betas=(0.5, 0.99), weight_decay=0.0)
        for _ in range(15):
            for clip in clips[:9]:
                optimizer.zero_grad()
                loss(heads([clip + offset], sigma), heads([clip], sigma)).backward()  # type: ignore[operator]
                optimizer.step()
        with torch.no_grad():
            pairs = [(heads([clip + offset], sigma), heads([clip], sigma)) for clip in clips[9:]]
            return sum(paired_discriminator_loss(*pair).item() for pair in pairs) / len(pairs)

    by_pairs, by_hinge = held_out(paired_discriminator_loss), held_out(mca_discriminator_loss)
    assert by_pairs < 0.5 < 0.66 < by_hinge, (by_pairs, by_hinge)


def test_total_weighs_named_terms_and_leaves_out_what_has_no_weight() -> None:
    terms = {"task": torch.tensor(2.0), "icd": torch.tensor(3.0), "mca_generator": torch.tensor(float("nan"))}
    close(total_loss(terms, {"task": 1.0, "icd": 0.1, "mca_generator": 0.0}), 2.3)
    with pytest.raises(TrainingError, match="no loss term"):
        total_loss(terms, {"task": 0.0})
