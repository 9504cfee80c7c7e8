"""Wan and HunyuanVideo: sampling as the stock call samples, latents, noise levels, the recovery's loss."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.dit_toys import HUNYUAN, tiny_dit
from vdmini_core.distillation.data import RecoveryBatches, RecoveryData
from vdmini_core.distillation.losses import task_reconstruction
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.errors import ModelError
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.dit import flow
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.inspect import inspect_model, load_architecture
from vdmini_core.models.registry import (
    family_of,
    load_pipeline,
    load_settings,
    merge_settings,
    pipeline_settings,
    save_pipeline,
)
from vdmini_core.params import DistillParams, PlanParams
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan
from vdmini_core.teacher.dit_architecture import NANO_DIT_CALL, build_dit_pipeline

PROMPTS = ("A red disc moves up.", "A blue square rests.")
SEEDS = [1, 2]
SIZE = SamplingSettings(5, 32, 32, 8.0, 2, guidance=3.0, frame_scale=4, flow_shift=3.0)


@cache
def nano() -> Any:
    return build_dit_pipeline(0)


@cache
def hunyuan() -> Any:
    """A tiny HunyuanVideo; prompts come as embeddings."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae: Any = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
        )
    parts: Any = HunyuanVideoPipeline
    pipeline = parts(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=tiny_dit("HunyuanVideoTransformer3DModel", HUNYUAN),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def test_wan_samples_as_the_stock_call_bit_by_bit() -> None:
    pipeline, family = nano(), family_of(nano())
    settings = merge_settings(pipeline_settings(pipeline), NANO_DIT_CALL)
    assert settings == replace(SIZE, decode_chunk_size=5) and settings.latent_frames == 2
    given = family.conditions(pipeline, ClipInputs(None, PROMPTS), settings, SEEDS)
    noise = family.noise(pipeline.transformer, settings, SEEDS)
    latents = family.sample(pipeline, pipeline.transformer, noise, given, settings)
    size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    stock = pipeline(list(PROMPTS), **size, generator=generators(), output_type="latent").frames
    assert torch.equal(latents, stock.transpose(1, 2))
    clips = family.decode_latents(pipeline, latents, settings)
    shown = pipeline(list(PROMPTS), **size, generator=generators(), output_type="pt").frames
    expected = (shown.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8)
    assert clips.shape == (2, 5, 32, 32, 3) and torch.equal(clips, expected)
    assert family.encode_clips(pipeline, clips).shape == latents.shape


def test_hunyuan_video_samples_as_the_stock_call_bit_by_bit() -> None:
    pipeline, family = hunyuan(), family_of(hunyuan())
    settings = replace(pipeline_settings(pipeline), frames=5, height=32, width=32, steps=2)
    assert (settings.flow_shift, settings.latent_scale, settings.frame_scale) == (7.0, 8, 4)
    generator = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 8, generator=generator)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    given = Conditions(
        {"text": text, "pooled": pooled, "text_mask": mask, "guidance": torch.full((2,), settings.guidance)}
    )
    noise = family.noise(pipeline.transformer, settings, SEEDS)
    latents = family.sample(pipeline, pipeline.transformer, noise, given, settings)
    embeds = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}
    size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 6.0}
    stock = pipeline(**embeds, **size, generator=generators(), output_type="latent").frames
    assert torch.equal(latents, stock.transpose(1, 2))
    clips = family.decode_latents(pipeline, latents, settings)
    assert clips.shape == (2, 5, 32, 32, 3)
    assert family.encode_clips(pipeline, clips).shape == latents.shape
    blank = given.tensors["text_mask"] * 0  # a clip whose conditions are dropped in training
    dropped = Conditions(given.tensors | {"text_mask": blank})
    assert family.denoise(pipeline.transformer, noise, torch.ones(2), dropped).isfinite().all()


def test_noise_levels_and_flow_times_are_one() -> None:
    time = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(flow.time_of(flow.sigma_of(time)), time)
    assert torch.allclose(flow.shifted(time, 3.0), 3 * time / (1 + 2 * time))
    clean, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    sigma = flow.sigma_of(time)

    def velocity(sample: Tensor, time_B: Tensor) -> Tensor:
        expected = (1 - time)[:, None, None] * clean + time[:, None, None] * noise
        assert torch.allclose(sample, expected, atol=1e-6) and torch.allclose(time_B, time)
        return noise - clean

    found = flow.clean_of(clean + sigma[:, None, None] * noise, sigma, velocity)
    assert torch.allclose(found, clean, atol=1e-6)
    drawn = flow.training_sigmas(3.0, False, 2000, torch.Generator().manual_seed(0))
    assert float(flow.time_of(drawn).median()) == pytest.approx(0.75, abs=0.02)  # 3 * .5 / (1 + 2 * .5)
    assert torch.allclose(
        flow.time_of(flow.training_sigmas(3.0, True, 2, torch.Generator())), torch.tensor(0.999)
    )


def test_flow_weighting_is_the_error_of_the_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise, predicted = (torch.randn(3, 2, 1, 4, 4, generator=generator) for _ in range(3))
    time = torch.tensor([0.2, 0.5, 0.8])
    column = time[:, None, None, None, None]
    sample = (1 - column) * clean + column * noise
    expected = (predicted - (noise - clean)).square().mean()
    found = task_reconstruction(sample - column * predicted, clean, flow.sigma_of(time), "flow")
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_cut_wan_learns_and_is_written_as_a_stock_pipeline(tmp_path: Path) -> None:
    pipeline, family = nano(), family_of(nano())
    units = family.units(pipeline.transformer, SIZE)
    plan = make_plan(PlanParams(recipe="paper"), family, pipeline.transformer, units, None, SIZE, 0)
    assert plan.removed == ("layer.3",) and len(plan.feature_pairs) == 5
    student = apply_plan(pipeline.transformer, plan, family)
    given = family.conditions(pipeline, ClipInputs(None, PROMPTS), SIZE, SEEDS)
    latents = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = RecoveryBatches(RecoveryData(latents, given), family, SIZE, 2, seed=0, dropout=0.5)
    params = DistillParams(steps=2, batch_size=2, learning_rate=1e-4)
    step = RecoveryStep(
        family,
        student,
        pipeline.transformer,
        plan.feature_pairs,
        params,
        batches.batch(0),
        one_step=False,
        settings=SIZE,
    )
    assert step.weighting == "flow" and step.task_weights["reconstruction"] == 1.0
    rows = [step.step(batches.batch(number)) for number in range(2)]
    assert all(
        row[term] != 0 for row in rows for term in ("task", "icd", "mca_generator", "mca_discriminator")
    )

    whole = pipeline.transformer
    try:
        pipeline.register_modules(transformer=step.recovered())
        save_pipeline(pipeline, tmp_path, SIZE)
    finally:
        pipeline.register_modules(transformer=whole)
    loaded = load_pipeline(tmp_path)
    assert type(loaded.transformer).__name__ == "WanTransformer3DModel"
    assert loaded.transformer.config.num_layers == 5
    assert load_settings(tmp_path) == load_settings(tmp_path, loaded) == SIZE
    facts = inspect_model(tmp_path)
    assert facts["family"] == "wan" and len(facts["units"]) == 5 and facts["vae_decoder"]["flops"] > 0


def test_two_transformers_of_one_pipeline_are_refused() -> None:
    pipeline = nano()
    pipeline.register_to_config(boundary_ratio=0.9)
    try:
        with pytest.raises(ModelError, match="not supported"):
            family_of(pipeline).conditions(pipeline, ClipInputs(None, PROMPTS), SIZE, SEEDS)
    finally:
        pipeline.register_to_config(boundary_ratio=None)
    family_of(pipeline).conditions(pipeline, ClipInputs(None, PROMPTS), SIZE, SEEDS)


def test_hunyuan_video_has_its_published_size_and_a_fifth_may_go() -> None:
    family, transformer, _, settings = load_architecture("hunyuan-video")
    assert sum(p.numel() for p in transformer.parameters()) == 12_821_012_544
    removed = family.paper_cut(transformer)
    assert len([name for name in removed if name.startswith("double")]) == 4 and len(removed) == 12
    small = replace(settings, frames=5, height=64, width=64)
    units = family.units(transformer, small)
    assert [unit.name for unit in units[19:21]] == ["double.19", "single.0"]
    assert (units[0].parameters, units[20].parameters) == (339_831_296, 141_591_808)
    student: Any = family.outline(transformer, removed).model
    assert (student.config.num_layers, student.config.num_single_layers) == (16, 32)
