"""The samplers of VideoCrafter2 (DDIM with a falling scale) and T2V-Turbo-v2 (multi-step consistency).

Both predict noise on the schedule beta = linspace(sqrt(0.00085), sqrt(0.012), 1000)^2. diffusers' own
classes come near and differ: `DDIMScheduler` knows no scale of the predicted sample, `LCMScheduler` picks
other timesteps where the number of steps does not divide the grid (16 of 200) and adds no noise at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vdmini_core.errors import ModelError


@dataclass
class StepOutput(BaseOutput):
    """One step: the sample at the next timestep, and the clean sample predicted on the way."""

    prev_sample: Tensor
    denoised: Tensor


class EpsilonScheduler(SchedulerMixin, ConfigMixin):
    """What both samplers share: the noise schedule, and the clean sample from predicted noise."""

    __module__ = "vdmini_core"  # as the other classes that model_index.json names
    order = 1
    init_noise_sigma = 1.0

    def _make_schedule(self, num_train_timesteps: int, beta_start: float, beta_end: float) -> None:
        self.betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.num_inference_steps: int | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is: noise prediction on this schedule scales nothing."""
        return sample

    def predicted_clean(self, model_output: Tensor, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """(sample - sqrt(1 - a) noise) / sqrt(a).

        Args:
            model_output: predicted noise, like `sample`.
            timestep: one for all, or (B,).
            sample: noisy (B, ...).
        """
        alpha = self._of(self.alphas_cumprod, timestep, sample)
        return (sample - (1 - alpha).sqrt() * model_output) / alpha.sqrt()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean (B, ...) -> noisy at `timesteps` (B,)."""
        alpha = self._of(self.alphas_cumprod, timesteps, original_samples)
        return alpha.sqrt() * original_samples + (1 - alpha).sqrt() * noise

    def _of(self, table: Tensor, timestep: Tensor | int, like: Tensor) -> Tensor:
        """The table's values at timesteps, shaped to multiply `like`."""
        index = torch.as_tensor(timestep, device="cpu").long()
        return table[index].to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def _position(self, timestep: Tensor | int) -> int:
        where = (self.timesteps.cpu() == int(timestep)).nonzero()
        if self.num_inference_steps is None or len(where) != 1:
            raise ModelError(
                f"timestep {int(timestep)} is not one of this sampling",
                expected="one of `scheduler.timesteps`, after `set_timesteps`",
                fix="call set_timesteps first and step through its timesteps",
            )
        return int(where[0])

    def _choose(self, timesteps: list[int], device: torch.device | str | None) -> None:
        self.timesteps = torch.tensor(timesteps, dtype=torch.long, device=device)
        self.num_inference_steps = len(timesteps)


class ConsistencyScheduler(EpsilonScheduler):
    """T2V-Turbo-v2's sampler: each step predicts the clean sample, then noises it to the next timestep.

    denoised = c_out(t) x0 + c_skip(t) x, with s = timestep_scaling t, c_skip = d^2 / (s^2 + d^2) and
    c_out = s / sqrt(s^2 + d^2), d = sigma_data. What is decoded in the end is `denoised` of the last step.

    Args:
        num_train_timesteps: of the noise schedule.
        beta_start: first beta.
        beta_end: last beta.
        original_inference_steps: size of the grid of timesteps the model was distilled on.
        timestep_scaling: of the boundary condition.
        sigma_data: of the boundary condition.
    """

    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        original_inference_steps: int = 200,
        timestep_scaling: float = 10.0,
        sigma_data: float = 0.5,
    ) -> None:
        self._make_schedule(num_train_timesteps, beta_start, beta_end)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        original_inference_steps: int | None = None,
    ) -> None:
        """Every (grid / steps)-th timestep of the grid, from its top.

        Args:
            num_inference_steps: 1 to the size of the grid; the model was made for 4 to 16.
            device: of `timesteps`.
            original_inference_steps: size of the grid; the config's where None.

        Raises:
            ModelError: for more steps than the grid has, or a grid finer than the schedule.
        """
        config = cast(Any, self).config
        size, trained = (
            original_inference_steps or config.original_inference_steps,
            config.num_train_timesteps,
        )
        if not 1 <= num_inference_steps <= size <= trained:
            raise ModelError(
                "this number of sampling steps is not possible",
                expected=f"1 to {size} steps on a grid of {size}, the grid within {trained} timesteps",
                found=f"{num_inference_steps} steps",
            )
        grid = [(place + 1) * (trained // size) - 1 for place in range(size)]
        stride = size // num_inference_steps
        self._choose(grid[::-1][::stride][:num_inference_steps], device)

    def boundary_scalings(self, timestep: Tensor | int) -> tuple[Tensor, Tensor]:
        """c_skip and c_out at timesteps: () or (B,) -> float32 of the same shape."""
        config = cast(Any, self).config
        scaled = torch.as_tensor(timestep).float() * config.timestep_scaling
        total = scaled**2 + config.sigma_data**2
        return config.sigma_data**2 / total, scaled / total.sqrt()

    def denoised(self, model_output: Tensor, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """The consistency function: predicted noise -> clean sample, like `sample` (B, ...)."""
        skip, out = (
            scaling.to(sample.device, sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
            for scaling in self.boundary_scalings(timestep)
        )
        return out * self.predicted_clean(model_output, timestep, sample) + skip * sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Predicted noise at one of `timesteps` -> `prev_sample` and `denoised`.

        Args:
            model_output: predicted noise (B, ...).
            timestep: one of `timesteps`.
            sample: noisy (B, ...).
            generator: of the noise that is added.
            noise: that noise itself, like `sample`; drawn where None.
            return_dict: False gives a plain tuple.
        """
        place = self._position(timestep)
        denoised = prev_sample = self.denoised(model_output, timestep, sample)
        if len(self.timesteps) > 1:
            following = int(self.timesteps[min(place + 1, len(self.timesteps) - 1)])
            if noise is None:
                noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            prev_sample = self.add_noise(denoised, noise, torch.tensor(following))
        return StepOutput(prev_sample, denoised) if return_dict else (prev_sample, denoised)


@dataclass(frozen=True)
class DDIMCoefficients:
    """Numbers of one DDIM step: alphas (cumulative) and scales here and at the next timestep, and sigma."""

    alpha: Tensor
    alpha_prev: Tensor
    sigma: Tensor
    scale: Tensor
    scale_prev: Tensor


class RescaledDDIMScheduler(EpsilonScheduler):
    """VideoCrafter2's sampler: DDIM whose clean sample is divided by a scale that falls with the timestep.

    The scale falls linearly from 1 to `scale_end` over the first `scale_timesteps` and stays there.
    x0 = (x - sqrt(1 - a) e) / sqrt(a) / scale; next x = sqrt(a') scale' x0 + sqrt(1 - a' - s^2) e + s noise.

    Args:
        num_train_timesteps: of the noise schedule.
        beta_start: first beta.
        beta_end: last beta.
        scale_end: lowest scale; 1 is plain DDIM.
        scale_timesteps: over which it falls.
        eta: share of fresh noise in a step; 0 is deterministic.
    """

    __module__ = "vdmini_core"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        scale_end: float = 0.7,
        scale_timesteps: int = 400,
        eta: float = 1.0,
    ) -> None:
        self._make_schedule(num_train_timesteps, beta_start, beta_end)
        falling = torch.linspace(1.0, scale_end, scale_timesteps)
        # As long as the original's: the constant part is a whole schedule long and never used to its end.
        self.scales = torch.cat([falling, torch.full((num_train_timesteps,), scale_end)])

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """1, 1 + c, 1 + 2c, ... in falling order, c = 1000 // steps; a few more where c does not divide.

        Raises:
            ModelError: for fewer than one step, or a number (3, 9, 27, 600) that leads beyond the schedule.
        """
        trained = cast(Any, self).config.num_train_timesteps
        stride = trained // num_inference_steps if num_inference_steps > 0 else 0
        timesteps = [t + 1 for t in range(0, trained, stride)] if stride else []
        if not timesteps or timesteps[-1] >= trained:
            raise ModelError(
                "this number of sampling steps is not possible",
                expected=f"one whose last timestep is below {trained}, such as a divisor of it",
                found=f"{num_inference_steps} steps" + (f", up to {timesteps[-1]}" if timesteps else ""),
            )
        self._choose(timesteps[::-1], device)

    def coefficients(self, timestep: Tensor | int, eta: float | None = None) -> DDIMCoefficients:
        """Numbers of the step from one of `timesteps` to the next one, 0-d float32 on the CPU."""
        place = self._position(timestep)
        now = int(timestep)
        following = int(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else 0
        alpha, alpha_prev = self.alphas_cumprod[now], self.alphas_cumprod[following]
        share = cast(Any, self).config.eta if eta is None else eta
        sigma = share * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).sqrt()
        return DDIMCoefficients(alpha, alpha_prev, sigma, self.scales[now], self.scales[following])

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Predicted noise at one of `timesteps` -> `prev_sample` and `denoised`.

        Args:
            model_output: predicted noise (B, ...).
            timestep: one of `timesteps`.
            sample: noisy (B, ...).
            eta: share of fresh noise; the config's where None.
            generator: of that noise.
            noise: that noise itself, like `sample`; drawn where None and eta > 0.
            return_dict: False gives a plain tuple.
        """
        numbers = self.coefficients(timestep, eta)
        denoised = self.predicted_clean(model_output, timestep, sample) / float(numbers.scale)
        towards = float((1 - numbers.alpha_prev - numbers.sigma**2).clamp_min(0).sqrt()) * model_output
        prev_sample = float(numbers.alpha_prev.sqrt() * numbers.scale_prev) * denoised + towards
        if float(numbers.sigma) > 0:
            if noise is None:
                noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            prev_sample = prev_sample + float(numbers.sigma) * noise
        return StepOutput(prev_sample, denoised) if return_dict else (prev_sample, denoised)
