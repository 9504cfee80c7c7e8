"""CogVideoX and LTX-Video: sampling as the stock call samples, latents, noise levels, the recovery's loss."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tests.unit.dit_toys import COG, LTX, tiny_dit
from vdmini_core.distillation.data import RecoveryBatches, RecoveryData
from vdmini_core.distillation.losses import task_reconstruction
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.errors import ModelError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit import flow
from vdmini_core.models.dit.cogvideox import SCHEDULE, noise_levels
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.inspect import load_architecture
from vdmini_core.models.registry import (
    family_of,
    load_pipeline,
    load_settings,
    pipeline_settings,
    save_pipeline,
)
from vdmini_core.params import DistillParams
from vdmini_core.teacher.tokens import word_tokenizer

PROMPTS = ["A red disc moves up.", "A blue square rests."]
SEEDS = [1, 2]
LTX_SCHEDULER = {  # as published
    "use_dynamic_shifting": True,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
}


@cache
def texts() -> dict[str, Any]:
    tokenizer = word_tokenizer(128)
    config = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config).eval()}


def seeded(build: Any, **config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**config).eval()


def cogvideox(solver: str = "DDIM", **config: Any) -> Any:
    """A tiny CogVideoX; with rotary positions it stands for the 5 B model, without for the 2 B one."""
    import diffusers

    vae = seeded(
        diffusers.AutoencoderKLCogVideoX,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    )
    parts: Any = diffusers.CogVideoXPipeline
    scheduler = getattr(diffusers, f"CogVideoX{solver}Scheduler")
    pipeline = parts(
        **texts(),
        vae=vae,
        transformer=tiny_dit("CogVideoXTransformer3DModel", {**COG, "max_text_seq_length": 12, **config}),
        scheduler=scheduler(**SCHEDULE, snr_shift_scale=3.0, timestep_spacing="trailing", clip_sample=False),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def ltx(**config: Any) -> Any:
    import diffusers

    vae: Any = seeded(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.5,
        **config,
    )
    vae.latents_mean += torch.tensor([0.1, -0.2, 0.3, 0.0])
    vae.latents_std *= torch.tensor([1.0, 2.0, 0.5, 1.5])
    parts: Any = diffusers.LTXPipeline
    pipeline = parts(
        **texts(),
        vae=vae,
        transformer=tiny_dit("LTXVideoTransformer3DModel", LTX),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**LTX_SCHEDULER),  # type: ignore[arg-type]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small(pipeline: Any, **changes: Any) -> SamplingSettings:
    side = 64 if type(pipeline).__name__ == "LTXPipeline" else 32
    return replace(pipeline_settings(pipeline), height=side, width=side, steps=3, **changes)


def check_sampling(pipeline: Any, settings: SamplingSettings, **more: Any) -> Tensor:
    """Latents and clips are the stock call's, bit by bit; the latents (B, F, C, h, w)."""
    family = family_of(pipeline)
    given = family.conditions(pipeline, ClipInputs(None, tuple(PROMPTS)), settings, SEEDS)
    noise = family.noise(pipeline.transformer, settings, SEEDS)
    latents = family.sample(pipeline, pipeline.transformer, noise, given, settings)
    size = {"num_frames": settings.frames, "height": settings.height, "width": settings.width}
    call = {**size, **more, "num_inference_steps": settings.steps, "guidance_scale": settings.guidance}

    def stock(kind: str) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        frames: Tensor = pipeline(PROMPTS, **call, generator=generators, output_type=kind).frames
        return frames

    expected = stock("latent")
    if expected.ndim == 3:  # LTX-Video's are one row of tokens
        expected = expected.unflatten(1, (settings.latent_frames, *settings.latent_size)).movedim(-1, 2)
    assert torch.equal(latents, expected)
    clips = family.decode_latents(pipeline, latents, settings)
    shown = (stock("pt").permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8)
    assert clips.shape == (2, settings.frames, settings.height, settings.width, 3)
    off = (clips.int() - shown.int()).abs()  # the stock call decodes both clips at once, we one by one
    assert off.max() <= 1 and off.float().mean() < 1e-3, (off.max(), off.float().mean())
    assert family.encode_clips(pipeline, clips).shape == latents.shape
    return latents


@pytest.mark.parametrize(("solver", "rotary"), [("DDIM", False), ("DPM", True)])
def test_cogvideox_samples_as_the_stock_call_bit_by_bit(solver: str, rotary: bool) -> None:
    pipeline = cogvideox(solver, use_rotary_positional_embeddings=rotary)
    settings = small(pipeline, frames=9)
    assert (settings.latent_frames, settings.fps) == (3, 8.0)
    assert (settings.flow_shift, settings.latent_scale, settings.frame_scale) == (3.0, 8, 4)
    guided = check_sampling(pipeline, settings, max_sequence_length=12)
    plain = check_sampling(pipeline, replace(settings, guidance=1.0), max_sequence_length=12)
    assert not torch.equal(guided, plain)


def test_cogvideox_1_5_has_two_latent_frames_in_a_token() -> None:
    pipeline = cogvideox(patch_size_t=2, patch_bias=False, use_rotary_positional_embeddings=True)
    settings = small(pipeline, frames=9)
    latents = check_sampling(pipeline, settings, max_sequence_length=12)
    assert (settings.fps, settings.latent_frames, latents.shape[1]) == (16.0, 3, 4)
    units = family_of(pipeline).units(pipeline.transformer, settings)
    assert units[0].flops > 0


def test_ltx_samples_as_the_stock_call_bit_by_bit() -> None:
    pipeline = ltx()
    settings = small(pipeline, frames=9)
    assert (settings.latent_scale, settings.frame_scale, settings.latent_frames) == (32, 8, 2)
    at_25 = check_sampling(pipeline, settings, frame_rate=25)
    assert not torch.equal(at_25, check_sampling(pipeline, replace(settings, fps=10.0), frame_rate=10))
    check_sampling(pipeline, replace(settings, guidance=1.0), frame_rate=25)


def test_an_ltx_decoder_that_is_told_a_noise_level_is_told_none() -> None:
    pipeline = ltx(timestep_conditioning=True)
    check_sampling(pipeline, small(pipeline, frames=9))


def test_ltx_shifts_times_by_the_number_of_tokens() -> None:
    """At 1024 tokens by e^0.95, at 4096 by e^2.05, as its scheduler does."""
    _, _, _, settings = load_architecture("ltx-video")
    few = replace(settings, frames=25, height=512, width=512)  # 4 x 16 x 16
    many = replace(settings, frames=121, height=512, width=512)  # 16 x 16 x 16
    assert [flow.shift_of(size) for size in (few, many)] == pytest.approx([2.585710, 7.767901], rel=1e-5)
    assert flow.shift_of(replace(settings, log_shift=0.0, log_shift_per_token=0.0)) == 1.0
    family = family_of(ltx())
    times = flow.time_of(family.training_sigmas(many, 2000, torch.Generator().manual_seed(0)))
    assert float(times.median()) == pytest.approx(7.7679 / 8.7679, abs=0.01)


def test_cogvideox_noise_levels_are_its_schedulers_and_the_last_has_no_signal() -> None:
    pipeline = cogvideox()
    alphas = pipeline.scheduler.alphas_cumprod
    levels = noise_levels(3.0)
    assert torch.allclose(levels[:-1], ((1 - alphas) / alphas).sqrt()[:-1].float())
    assert alphas[-1] == 0 and levels[-1] == pytest.approx(1e5) and (levels.diff() > 0).all()
    family, settings = family_of(pipeline), small(pipeline, frames=9)
    assert float(family.training_sigmas(replace(settings, steps=1), 1, torch.Generator())) == levels[-1]
    drawn = family.training_sigmas(settings, 2000, torch.Generator().manual_seed(0))
    assert float(drawn.median()) == pytest.approx(float(levels[500]), rel=0.1)


def test_the_task_loss_of_cogvideox_is_the_error_of_v() -> None:
    """The step's weight, EDM's, turns the error of the clean latents into that of what the model predicts."""
    pipeline = cogvideox()
    family, settings = family_of(pipeline), small(pipeline, frames=9)
    given = family.conditions(pipeline, ClipInputs(None, tuple(PROMPTS)), settings, SEEDS)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, 4, 4, generator=generator)
    timestep = torch.tensor([100, 900])
    alphas = pipeline.scheduler.alphas_cumprod[timestep].float().reshape(2, 1, 1, 1, 1)
    sigma = noise_levels(3.0)[timestep]
    noisy = clean + sigma.reshape(2, 1, 1, 1, 1) * noise
    sample = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    with torch.no_grad():
        v = pipeline.transformer(sample, given.tensors["text"], timestep, return_dict=False)[0]
        predicted = family.denoise(pipeline.transformer, noisy, sigma, given)
    expected = (v - (alphas.sqrt() * noise - (1 - alphas).sqrt() * clean)).square().mean()
    found = task_reconstruction(predicted, clean, sigma, "edm")
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["cogvideox", "ltx"])
def test_a_cut_one_learns_and_is_written_as_a_stock_pipeline(name: str, tmp_path: Path) -> None:
    pipeline = {"cogvideox": cogvideox, "ltx": ltx}[name]()
    family, settings = family_of(pipeline), small(pipeline, frames=9)
    teacher = pipeline.transformer
    outline = family.outline(teacher, ["layer.1"])
    student: Any = family.prune(teacher, ["layer.1"])
    pairs = [(path, outline.layer_map[path]) for path in family.feature_points(student).values()]
    given = family.conditions(pipeline, ClipInputs(None, tuple(PROMPTS)), settings, SEEDS)
    shape = family.noise(teacher, settings, SEEDS).shape
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batches = RecoveryBatches(RecoveryData(latents, given), family, settings, 2, seed=0, dropout=0.5)
    params = DistillParams(steps=2, batch_size=2, learning_rate=1e-4)
    step = RecoveryStep(
        family, student, teacher, pairs, params, batches.batch(0), one_step=False, settings=settings
    )
    assert step.weighting == {"cogvideox": "edm", "ltx": "flow"}[name]
    assert step.task_weights["reconstruction"] == 1.0
    rows = [step.step(batches.batch(number)) for number in range(2)]
    assert all(
        row[term] != 0 for row in rows for term in ("task", "icd", "mca_generator", "mca_discriminator")
    )
    pipeline.register_modules(transformer=step.recovered())
    try:
        save_pipeline(pipeline, tmp_path, settings)
        loaded = load_pipeline(tmp_path)
        assert load_settings(tmp_path) == load_settings(tmp_path, loaded) == settings
        again = family.sample(
            loaded, loaded.transformer, family.noise(student, settings, SEEDS), given, settings
        )
        ours = family.sample(
            pipeline, pipeline.transformer, family.noise(student, settings, SEEDS), given, settings
        )
    finally:
        pipeline.register_modules(transformer=teacher)
    assert torch.equal(again, ours) and loaded.transformer.config.num_layers == 3


def test_what_is_not_supported_is_refused() -> None:
    pipeline = cogvideox()
    settings = small(pipeline, frames=13)
    with pytest.raises(ModelError, match="take 9 frames"):
        family_of(pipeline).conditions(pipeline, ClipInputs(None, tuple(PROMPTS)), settings, SEEDS)
    settings = replace(settings, frames=9)
    pipeline.register_modules(scheduler=type(pipeline.scheduler)())
    with pytest.raises(ModelError, match="the pipeline's scheduler is not supported"):
        family_of(pipeline).conditions(pipeline, ClipInputs(None, tuple(PROMPTS)), settings, SEEDS)


def test_published_sizes() -> None:
    sizes = {}
    for name in ("cogvideox-2b", "cogvideox-5b", "ltx-video"):
        family, transformer, _, settings = load_architecture(name)
        removed = family.paper_cut(transformer)
        sizes[name] = (sum(p.numel() for p in transformer.parameters()), len(removed))
        assert settings.frames in (49, 161)
    assert sizes == {
        "cogvideox-2b": (1_693_783_872, 6),
        "cogvideox-5b": (5_570_283_072, 8),
        "ltx-video": (1_923_385_472, 5),
    }
