"""The recovery objective L = L_task + λ_ICD L_ICD + λ_MCA L_MCA (ICMD paper, Sec. 3.3).

Tensors in, scalar out. Shape letters: B batch, F frames, C channels, h w (latent grid), N = B*F folded.
Every expectation is a mean over equal-sized items, so the mean over workers of a loss on slices equals
the loss on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_core.errors import TrainingError

SCALE_FLOOR = 1e-6  # a dead teacher frame must not divide by zero


def edm_weight(sigma_B: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Weight of a noise level, λ(σ) = (σ² + σ_d²) / (σ σ_d)² (EDM, arXiv 2206.00364, Table 1).

    Args:
        sigma_B: noise levels (B,), in units of the latents, > 0.
        sigma_data: standard deviation of the latents; 1 is what SVD's v-prediction assumes.

    Returns:
        Weights (B,); about 1 at the top level with `sigma_data` 1.
    """
    return (sigma_B**2 + sigma_data**2) / (sigma_B * sigma_data) ** 2


def task_reconstruction(
    pred_BFChw: Tensor,
    target_BFChw: Tensor,
    sigma_B: Tensor | None = None,
    weighting: Literal["none", "edm", "noise", "flow"] = "none",
) -> Tensor:
    """L_task of a diffusion model: E[λ(σ) ||x̂0 - x0||²], a mean over everything.

    At one step and one level this is SF-V's reconstruction loss (arXiv 2406.04324).

    Args:
        pred_BFChw: predicted clean latents.
        target_BFChw: latents of the real clip, or the teacher's prediction for the same noise.
        sigma_B: noise levels (B,), needed by all but `none`.
        weighting: `none` for one-step models (one level has one weight), `edm` for many levels; `noise`,
            1/σ², is the error of the predicted noise, as x = x0 + σ ε gives x̂0 - x0 = σ (ε - ε̂) (DDPM,
            arXiv 2006.11239, Eq. 14); `flow`, (1 + σ)²/σ², is the error of the predicted velocity, as
            x̂0 - x0 = s (v - v̂) at the flow time s = σ / (1 + σ) (arXiv 2210.02747).

    Raises:
        TrainingError: a weighting without noise levels.
    """
    error_B = (pred_BFChw.float() - target_BFChw.float()).square().flatten(1).mean(dim=1)
    if weighting != "none":
        if sigma_B is None:
            raise TrainingError("this weighting needs the noise level of every clip", expected="sigma_B (B,)")
        sigma_B = sigma_B.float()
        weights = {"edm": edm_weight(sigma_B), "noise": sigma_B**-2, "flow": ((1 + sigma_B) / sigma_B) ** 2}
        error_B = error_B * weights[weighting]
    return error_B.mean()


def icd_loss(
    student_feats: Sequence[Tensor], teacher_feats: Sequence[Tensor], normalise: bool = False
) -> Tensor:
    """Individual content distillation: L_ICD = Σ_l E_frames ||f_l^stu - f_l^tea||₂ (Sec. 3.3).

    Each frame is compared with itself alone, so the loss does not change when the frames of student and
    teacher are permuted together.

    Args:
        student_feats: one tensor (N, C, h, w) per matched layer, frames folded into the batch.
        teacher_feats: the same shapes; no gradient reaches them.
        normalise: divide every frame's distance by the norm of the teacher's own feature and average over
            the layers, so that wide or loud layers do not swamp the other terms. Per frame rather than
            per batch, so that workers with slices of the batch agree with one that sees all of it.

    Raises:
        TrainingError: when layers or shapes do not match.
    """
    if len(student_feats) != len(teacher_feats) or not student_feats:
        raise TrainingError(
            "student and teacher features do not pair up",
            expected="as many student as teacher layers, at least one",
            found=f"{len(student_feats)} and {len(teacher_feats)}",
        )
    layers = [
        _frame_distance(s, t.detach(), normalise) for s, t in zip(student_feats, teacher_feats, strict=True)
    ]
    total = torch.stack(layers).sum()
    return total / len(layers) if normalise else total


def _frame_distance(student_NChw: Tensor, teacher_NChw: Tensor, normalise: bool) -> Tensor:
    if student_NChw.shape != teacher_NChw.shape:
        raise TrainingError(
            "a student feature has another shape than the teacher's",
            expected=str(tuple(teacher_NChw.shape)),
            found=str(tuple(student_NChw.shape)),
            fix="make the plan again (`vdmini plan`): its feature pairs belong to another cut",
        )
    distance_N = torch.linalg.vector_norm((student_NChw.float() - teacher_NChw.float()).flatten(1), dim=1)
    if normalise:
        scale_N = torch.linalg.vector_norm(teacher_NChw.float().flatten(1), dim=1)
        distance_N = distance_N / scale_N.clamp_min(SCALE_FLOOR)
    return distance_N.mean()


def mca_discriminator_loss(fake_logits: Sequence[Tensor], real_logits: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the heads: E[max(0, 1 + D(fake, σ'))] + E[max(0, 1 - D(real, σ'))] (Sec. 3.3).

    Args:
        fake_logits: one tensor per head for the student's re-noised prediction.
        real_logits: the same for the teacher's.

    Returns:
        The mean over heads; 2 for heads that answer 0 everywhere, 0 for heads that are sure.
    """
    losses = [
        F.relu(1 + fake.float()).mean() + F.relu(1 - real.float()).mean()
        for fake, real in zip(fake_logits, real_logits, strict=True)
    ]
    return torch.stack(losses).mean()


def mca_generator_loss(fake_logits: Sequence[Tensor], form: Literal["hinge", "log"] = "hinge") -> Tensor:
    """What the student pays for being told apart, a mean over heads.

    `hinge`: -E[D], the usual partner of a hinge discriminator. `log`: -E[log D] as the paper prints it
    (Sec. 3.3), with the sigmoid of the logit as the probability that D's formula needs.
    """
    if form == "log":
        losses = [F.softplus(-fake.float()).mean() for fake in fake_logits]
    else:
        losses = [-fake.float().mean() for fake in fake_logits]
    return torch.stack(losses).mean()


def paired_discriminator_loss(fake_logits: Sequence[Tensor], real_logits: Sequence[Tensor]) -> Tensor:
    """E[softplus(D(fake, σ') - D(real, σ'))], a mean over heads: relativistic, in pairs (arXiv 1807.00734).

    Fake and real of a pair are two answers to one clip, one condition and one noise, so what the clips differ
    by cancels: heads learn from what is left, where the hinge loss would have to tell it from all that
    variation first (docs/log.md, 2026-11-27).

    Args:
        fake_logits: one tensor per head for the student's re-noised prediction.
        real_logits: the same for what it is held against, at the same places of the same clips.

    Returns:
        log 2 for heads that see no difference, 0 for heads that are sure.
    """
    losses = [
        F.softplus(fake.float() - real.float()).mean()
        for fake, real in zip(fake_logits, real_logits, strict=True)
    ]
    return torch.stack(losses).mean()


def paired_generator_loss(fake_logits: Sequence[Tensor], real_logits: Sequence[Tensor]) -> Tensor:
    """What the student pays for `paired_discriminator_loss`: the same with the sides exchanged."""
    return paired_discriminator_loss(real_logits, fake_logits)


def feature_matching_loss(fake_feats: Sequence[Tensor], real_feats: Sequence[Tensor]) -> Tensor:
    """How far the student's clip is from the teacher's in what the discriminator's encoder sees of them.

    Mean over levels and frames of ||f - r||₁ / ||r||₁ (after pix2pixHD, arXiv 1711.11585, which compares a
    discriminator's features). Here they are those of the frozen encoder, not those of the heads: the target
    stands still while the heads learn, and both sides are there already, so it costs nothing.

    Args:
        fake_feats: one tensor (N, C, h, w) per level, frames folded into the batch.
        real_feats: the same shapes; no gradient reaches them.
    """
    levels = []
    for fake, real in zip(fake_feats, real_feats, strict=True):
        real_NX = real.detach().float().flatten(1)
        distance_N = (fake.float().flatten(1) - real_NX).abs().mean(dim=1)
        levels.append((distance_N / real_NX.abs().mean(dim=1).clamp_min(SCALE_FLOOR)).mean())
    return torch.stack(levels).mean()


def r1_penalty(heads: Callable[[list[Tensor]], Sequence[Tensor]], real_feats: Sequence[Tensor]) -> Tensor:
    """R1 = E ||∇_f Σ D(f)||² at the teacher's features f (arXiv 1801.04406, Sec. 4.1, eq. 9 without γ/2).

    The heads are all that learns of D and f is what they see, so the slope is taken there: no second
    derivative runs through the encoder. Norms are over channels, means over places, frames and levels, so
    that γ means the same at every size of clip. In float32 whatever the precision of the rest.

    Args:
        heads: features to logits, one tensor per head.
        real_feats: one tensor (N, C, h, w) per level, frames folded into the batch.
    """
    leaves = [real.detach().float().requires_grad_(True) for real in real_feats]
    device = leaves[0].device.type
    # The meta device, on which a step is rehearsed, has no autocast to switch off.
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        answer = torch.stack([logits.float().sum() for logits in heads(leaves)]).sum()
        slopes = torch.autograd.grad(answer, leaves, create_graph=True)
    return torch.stack([slope.square().sum(dim=1).mean() for slope in slopes]).mean()


def total_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight · term over the named terms; a term without a weight, or weight 0, is out of the graph.

    Raises:
        TrainingError: when nothing is left to minimise.
    """
    weighted = [weights[name] * term for name, term in terms.items() if weights.get(name, 0.0) != 0]
    if not weighted:
        raise TrainingError(
            "no loss term has a weight", expected="a lambda above 0", found=str(dict(weights))
        )
    return torch.stack(weighted).sum()


def sum_terms(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of every term over the slices of a batch, which are weighted already."""
    return {name: torch.stack([terms[name] for terms in parts]).sum() for name in parts[0]}
