"""Flow matching in the words of the recovery: noise levels of clean latents, and back.

A flow-matching model (Lipman et al., arXiv 2210.02747; rectified flow, arXiv 2209.03003) is trained on
x_s = (1 - s) x0 + s e at times s in (0, 1) to predict the velocity v = e - x0. The recovery speaks of
noise levels: noisy = x0 + sigma e. Both are one: with sigma = s / (1 - s), x_s = (1 - s) noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdmini_core.models.base import SamplingSettings

TOP_TIME = 0.999  # at 1 the noise level is infinite; one-step teachers start here
LOWEST_TIME = 0.001

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_s, s of (B,)) -> v


def time_of(sigma_B: Tensor) -> Tensor:
    """Flow time s (B,) of noise levels sigma (B,)."""
    return sigma_B / (1 + sigma_B)


def sigma_of(time_B: Tensor) -> Tensor:
    """Noise level sigma (B,) of flow times s (B,) below 1."""
    return time_B / (1 - time_B)


def shifted(time_B: Tensor, shift: float) -> Tensor:
    """Times moved towards noise, s' = k s / (1 + (k - 1) s) (SD3, arXiv 2403.03206, Eq. 23)."""
    return shift * time_B / (1 + (shift - 1) * time_B)


def shift_of(settings: SamplingSettings) -> float:
    """How far a pipeline's scheduler shifts times, at the number of tokens of these settings."""
    height, width = settings.latent_size
    tokens = settings.latent_frames * height * width
    return settings.flow_shift * math.exp(settings.log_shift + settings.log_shift_per_token * tokens)


def clean_of(noisy: Tensor, sigma_B: Tensor, velocity: Velocity) -> Tensor:
    """Predicted clean latents x0 = x_s - s v, of `noisy` (B, ...) at levels (B,)."""
    time_B = time_of(sigma_B).to(noisy.device)
    time = time_B.to(noisy.dtype).reshape(-1, *[1] * (noisy.ndim - 1))
    sample = noisy * (1 - time)
    return sample - time * velocity(sample, time_B)


def training_sigmas(shift: float, one_step: bool, count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,) of recovery: the top one for one step, else of uniform, shifted times."""
    if one_step:
        return sigma_of(torch.full((count,), TOP_TIME))
    times = shifted(torch.rand(count, generator=generator), shift)
    return sigma_of(times.clamp(LOWEST_TIME, TOP_TIME))
