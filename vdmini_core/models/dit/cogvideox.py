"""The CogVideoX family: `CogVideoXPipeline` and its transformer, trained to predict v.

Noise levels are those of the clean latents, noisy = clean + sigma noise; the model sees
x_t = sqrt(a) clean + sqrt(1 - a) noise with a = 1 / (1 + sigma^2), and answers
v = sqrt(a) noise - sqrt(1 - a) clean (Salimans and Ho, arXiv 2202.00512). The squared error of v is that of
the clean latents times (1 + sigma^2) / sigma^2: EDM's weight at a data deviation of 1, as the recovery weighs
where a family names no task loss of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline
from torch import Tensor, nn

from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit.clip_family import ClipFamily
from vdmini_core.models.inputs import ClipInputs, clip_seeds
from vdmini_core.models.precision import working_dtype
from vdmini_core.models.registry import register_family

# The schedule that all published CogVideoX share, but for the shift of its signal-to-noise ratio.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
LEAST_SIGNAL = 1e-10  # share of the clean latents at the last timestep, which has none: its level is 1e5


@register_family("CogVideoXPipeline")
class CogVideoXFamily(ClipFamily):
    """CogVideoX's text, rotary positions where the model has them, v-prediction, DDIM or DPM sampling."""

    name = "cogvideox"

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """Prompts -> `text`, `negative_text` (B, N, D), `snr_shift`, `seed` (B,).

        Raises:
            ModelError: for a scheduler that no published CogVideoX has, and for an even number of latent
                frames, which the autoencoder decodes two by two to more frames than it was given.
        """
        config = pipeline.transformer.config
        _check_schedule(pipeline.scheduler)
        if settings.latent_frames % 2 == 0:
            raise ModelError(
                "CogVideoX does not make this number of frames",
                expected=f"1 more than a multiple of {2 * settings.frame_scale}",
                found=str(settings.frames),
                fix=f"take {settings.frames - settings.frame_scale} frames",
            )
        prompts = list(inputs.need_prompts())
        device, dtype = next(pipeline.transformer.parameters()).device, pipeline.transformer.dtype
        with torch.no_grad():
            text, negative = pipeline.encode_prompt(
                prompts, device=device, max_sequence_length=config.max_text_seq_length
            )
        shift = float(pipeline.scheduler.config.snr_shift_scale)
        return Conditions(
            {
                "text": text.to(dtype),
                "negative_text": negative.to(dtype),
                "snr_shift": torch.full((len(prompts),), shift, device=device),
                "seed": torch.tensor(clip_seeds(seed, len(prompts)), dtype=torch.long, device=device),
            }
        )

    def scaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """Times the scaling factor."""
        return latents_BCFhw * vae.config.scaling_factor

    def unscaled(self, vae: Any, latents_BCFhw: Tensor) -> Tensor:
        """By the scaling factor, as the stock call computes it."""
        return 1 / vae.config.scaling_factor * latents_BCFhw

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """As in the other families; CogVideoX 1.5 sees the first latent frame twice where tokens need it."""
        latents = super().encode_clips(pipeline, clips_BFHWC)
        missing = whole_tokens(pipeline.transformer.config, latents.shape[1]) - latents.shape[1]
        return torch.cat([latents[:, :missing], latents], dim=1)

    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """As in the other families, without the frames that only fill tokens."""
        return super().decode_latents(pipeline, latents_BFChw[:, -settings.latent_frames :], settings)

    def noise(self, denoiser: Any, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, F, C, h, w): the first that the stock call draws from each clip's generator."""
        parameter = next(denoiser.parameters())
        frames = whole_tokens(denoiser.config, settings.latent_frames)
        shape = (1, frames, denoiser.config.in_channels, *settings.latent_size)
        dtype = working_dtype(parameter.dtype)
        rows = [torch.randn(shape, generator=_generator(seed), dtype=dtype) for seed in seeds]
        return torch.cat(rows).to(parameter.device, parameter.dtype)

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """Predicted clean latents (B, F, C, h, w) at noise levels (B,): x0 = sqrt(a) x_t - sqrt(1 - a) v."""
        tensors = conditions.tensors
        levels = noise_levels(float(tensors["snr_shift"][0]))
        sigma_B = sigma_B.detach()
        timestep_B = (levels.log()[None, :] - sigma_B.cpu().log()[:, None]).abs().argmin(dim=1)
        signal = (1 + sigma_B.to(noisy_BFChw) ** 2).rsqrt().reshape(-1, 1, 1, 1, 1)
        sample = signal * noisy_BFChw
        v = _predicted(denoiser, sample, timestep_B.to(sample.device), tensors["text"])
        return signal * sample - (1 - signal**2).sqrt() * v

    def sample(
        self,
        pipeline: Any,
        denoiser: Any,
        noise_BFChw: Tensor,
        conditions: Conditions,
        settings: SamplingSettings,
    ) -> Tensor:
        """Unit noise -> clean scaled latents (B, F, C, h, w), as the stock call steps; no gradients."""
        scheduler: Any = copy.deepcopy(pipeline.scheduler)
        latents, tensors = noise_BFChw, conditions.tensors
        generators = [_generator(int(seed)) for seed in tensors["seed"]]
        for generator in generators:  # past the noise that sampling starts from
            torch.randn(latents[:1].shape, generator=generator, dtype=working_dtype(latents.dtype))
        scheduler.set_timesteps(settings.steps, device=latents.device)
        clean, before = None, None  # what DPM-Solver's second order looks back at
        with torch.no_grad():
            for t in scheduler.timesteps:
                v = _guided(denoiser, latents, t, tensors, settings.guidance)
                more: dict[str, Any] = {"generator": generators, "return_dict": False}
                if isinstance(scheduler, CogVideoXDPMScheduler):
                    latents, clean = scheduler.step(v, clean, t, before, latents, **more)
                else:
                    latents = scheduler.step(v, t, latents, **more)[0]
                latents, before = latents.to(noise_BFChw.dtype), t
        return latents

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery: the top one for one step, else of any training timestep."""
        levels = noise_levels(settings.flow_shift)
        if settings.steps == 1:
            return levels[-1:].repeat(count)
        return levels[torch.randint(0, len(levels), (count,), generator=generator)]


def whole_tokens(config: Any, frames: int) -> int:
    """Latent frames with those before them that fill the first token (CogVideoX 1.5: two in one)."""
    return frames + -frames % (config.patch_size_t or 1)


@cache
def noise_levels(snr_shift: float) -> Tensor:
    """Sigma of every training timestep, float32 (1000,), rising."""
    alphas = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=snr_shift).alphas_cumprod
    signal = alphas.clamp_min(LEAST_SIGNAL)
    return ((1 - signal) / signal).sqrt().float()


def _guided(denoiser: Any, latents: Tensor, t: Tensor, tensors: dict[str, Tensor], guidance: float) -> Tensor:
    """v in float32, moved away from the negative prompt's, in one call of twice the batch."""
    if guidance <= 1:
        return _predicted(denoiser, latents, t.expand(len(latents)), tensors["text"]).float()
    text = torch.cat([tensors["negative_text"], tensors["text"]])
    v = _predicted(denoiser, torch.cat([latents, latents]), t.expand(len(text)), text).float()
    without, with_text = v.chunk(2)
    return without + guidance * (with_text - without)


def _predicted(denoiser: Any, sample_BFChw: Tensor, timestep_B: Tensor, text: Tensor) -> Tensor:
    v: Tensor = denoiser(
        hidden_states=sample_BFChw,
        encoder_hidden_states=text,
        timestep=timestep_B,
        image_rotary_emb=_rotary(denoiser, sample_BFChw),
        return_dict=False,
    )[0]
    return v


def _rotary(denoiser: Any, sample_BFChw: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rotary positions by the stock pipeline's own rule, which needs of it the transformer alone."""
    if not denoiser.config.use_rotary_positional_embeddings:
        return None
    _, frames, _, height, width = sample_BFChw.shape
    stand_in: Any = SimpleNamespace(transformer=denoiser, vae_scale_factor_spatial=1)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        stand_in, height, width, frames, sample_BFChw.device
    )


def _check_schedule(scheduler: Any) -> None:
    known = isinstance(scheduler, CogVideoXDDIMScheduler | CogVideoXDPMScheduler)
    wrong = {
        key: scheduler.config.get(key)
        for key, value in SCHEDULE.items()
        if not known or scheduler.config.get(key) != value
    }
    if wrong:
        raise ModelError(
            "the pipeline's scheduler is not supported",
            expected=f"CogVideoXDDIMScheduler or CogVideoXDPMScheduler with {SCHEDULE}",
            found=f"{type(scheduler).__name__} with {wrong}",
        )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
