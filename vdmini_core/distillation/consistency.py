"""Consistency distillation: what T2V-Turbo-v2 was trained with, as the task loss of its recovery.

A consistency function f answers alike anywhere on one path of the probability-flow ODE (Song et al.,
arXiv 2303.01469). For latent video (T2V-Turbo, arXiv 2405.18750, Sec. 2; LCM, arXiv 2310.04378):

    L = E d(f_student(x_t, t), f_target(x_t', t')),   x_t' by one solver step from x_t to the next lower t'

with d the pseudo-Huber distance. The originals solve the ODE with the many-step model and take the student
itself, without gradient, for the target. Here the teacher is a consistency function already: its answer at t
is the end of the path, so it gives the solver step, and the target at t' as well. Shape letters: B batch,
F frames, C channels, h w (latent grid). Noise levels are of clean latents: x = clean + sigma noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from vdmini_core.errors import TrainingError
from vdmini_core.models.base import SamplingSettings

HUBER_C = 0.001  # as LCM's and T2V-Turbo's training takes it
OwnTask = Literal["reconstruction", "noise", "flow", "consistency"]
Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy, sigma_B) -> clean


@runtime_checkable
class OwnTaskFamily(Protocol):
    """A family whose base model was not trained by EDM's reconstruction."""

    def own_task(self, settings: SamplingSettings) -> OwnTask:
        """The loss that the base model itself was trained with."""
        ...

    def lower_sigmas(self, sigma_B: Tensor, settings: SamplingSettings) -> Tensor:
        """The next lower noise levels (B,) of a consistency model; 0 below the lowest."""
        ...

    def training_guidance(
        self, settings: SamplingSettings, count: int, generator: torch.Generator
    ) -> Tensor | None:
        """Guidance scales (count,) to train with where the denoiser is told one, else None."""
        ...


def own_task(family: Any, settings: SamplingSettings) -> OwnTask:
    """The base model's own loss: the family's word, or EDM's reconstruction."""
    return family.own_task(settings) if isinstance(family, OwnTaskFamily) else "reconstruction"


def pseudo_huber(pred: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """E[sqrt((pred - target)^2 + c^2) - c], a mean over everything: |error| but smooth within c."""
    square = (pred.float() - target.float()).square()
    return (square / ((square + c**2).sqrt() + c)).mean()  # the same, without the loss of digits near 0


def ode_step(noisy_BFChw: Tensor, clean_BFChw: Tensor, sigma_B: Tensor, lower_B: Tensor) -> Tensor:
    """DDIM's step, eta 0, in terms of clean latents: x' = x0 + (sigma' / sigma) (x - x0).

    Args:
        noisy_BFChw: x at levels `sigma_B`.
        clean_BFChw: x0, predicted.
        sigma_B: levels (B,), > 0.
        lower_B: levels (B,) to go to; 0 gives x0.
    """
    share = (lower_B / sigma_B).to(noisy_BFChw.dtype)[:, None, None, None, None]
    return clean_BFChw + share * (noisy_BFChw - clean_BFChw)


def consistency_target(
    denoise: Denoise, noisy_BFChw: Tensor, clean_BFChw: Tensor, sigma_B: Tensor, lower_B: Tensor
) -> Tensor:
    """f_target at the next lower level of the same path (B, F, C, h, w), without gradient.

    Args:
        denoise: the target's consistency function.
        noisy_BFChw: x at levels `sigma_B`.
        clean_BFChw: the teacher's answer there.
        sigma_B: levels (B,).
        lower_B: next lower levels (B,); at 0 the boundary condition holds: f(x, 0) = x.
    """
    with torch.no_grad():
        lower = ode_step(noisy_BFChw, clean_BFChw, sigma_B, lower_B)
        inside = lower_B > 0
        if not inside.is_meta and not inside.any():  # a rehearsal without values counts the pass
            return lower
        answered = denoise(lower, torch.where(inside, lower_B, sigma_B)).float()
        return torch.where(inside[:, None, None, None, None], answered, lower.float())


def lower_levels(family: Any, sigma_B: Tensor, settings: SamplingSettings | None) -> Tensor:
    """The next lower noise levels (B,) of a consistency model.

    Raises:
        TrainingError: for a family without a consistency function.
    """
    own = own_task(family, settings) if settings is not None else "reconstruction"
    if own != "consistency" or settings is None:
        raise TrainingError(
            "distill.task_loss: consistency needs a consistency model for a teacher",
            expected="a teacher such as T2V-Turbo-v2",
            found=f"family `{family.name}`, trained by {own}",
            fix="set distill.task_loss: auto",
        )
    lower: Tensor = family.lower_sigmas(sigma_B, settings)
    return lower
