"""The samplers of VideoCrafter2 and T2V-Turbo-v2 against the originals' numbers and diffusers' classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from safetensors.torch import load_file

from vdmini_core.errors import ModelError
from vdmini_core.models.t2v_schedulers import ConsistencyScheduler, RescaledDDIMScheduler

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the original samplers' numbers are not beside the checkout"
)
STOCK = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def tensors(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(count)]


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@needs_reference
def test_consistency_sampler_repeats_the_original():
    numbers, scheduler = (
        load_file(REFERENCE / "t2v_turbo_v2" / "scheduler.safetensors"),
        ConsistencyScheduler(),
    )
    for name in ("betas", "alphas_cumprod"):
        assert (getattr(scheduler, name) - numbers[name]).abs().max() <= 1e-5
    skip, out = scheduler.boundary_scalings(numbers["boundary.t"])
    assert (skip - numbers["boundary.c_skip"]).abs().max() <= 1e-5
    assert (out - numbers["boundary.c_out"]).abs().max() <= 1e-5
    grids = [match for name in numbers if (match := re.fullmatch(r"timesteps\.steps(\d+)_origin(\d+)", name))]
    assert len(grids) == 7
    for match in grids:
        scheduler.set_timesteps(int(match[1]), original_inference_steps=int(match[2]))
        assert torch.equal(scheduler.timesteps, numbers[match[0]])


@needs_reference
@pytest.mark.parametrize(("steps", "grid"), [(4, 200), (1, 50)])
def test_consistency_steps_repeat_the_original(steps, grid):
    numbers, scheduler = (
        load_file(REFERENCE / "t2v_turbo_v2" / "scheduler.safetensors"),
        ConsistencyScheduler(),
    )
    scheduler.set_timesteps(steps, original_inference_steps=grid)
    sample = numbers[f"traj{steps}.x_init"]
    for index, t in enumerate(scheduler.timesteps):
        stored = {
            name: numbers[f"traj{steps}.step{index}.{name}"]
            for name in ("model_output", "noise", "denoised", "prev_sample")
        }
        step = scheduler.step(stored["model_output"], t, sample, noise=stored["noise"])
        assert relative(step.denoised, stored["denoised"]) <= 1e-5
        assert relative(step.prev_sample, stored["prev_sample"]) <= 1e-5
        sample = step.prev_sample


@needs_reference
@pytest.mark.parametrize("steps", [25, 50])
def test_ddim_schedule_is_the_originals(steps):
    stored = load_file(REFERENCE / "videocrafter2" / "ddim_schedule.safetensors")
    scheduler = RescaledDDIMScheduler()
    assert (scheduler.alphas_cumprod - stored["alphas_cumprod"]).abs().max() <= 1e-5
    assert (scheduler.scales - stored["scale_arr"]).abs().max() <= 1e-5
    scheduler.set_timesteps(steps)
    rising = scheduler.timesteps.flip(0)
    assert torch.equal(rising, stored[f"ddim{steps}.timesteps"])
    rows = [scheduler.coefficients(t, eta=1.0) for t in rising]
    for ours, theirs in (
        ("alpha", "alphas"),
        ("alpha_prev", "alphas_prev"),
        ("sigma", "sigmas_eta1"),
        ("scale", "scale"),
        ("scale_prev", "scale_prev"),
    ):
        found = torch.stack([getattr(row, ours) for row in rows])
        assert (found - stored[f"ddim{steps}.{theirs}"]).abs().max() <= 1e-5, ours


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_a_scale_of_one_it_is_diffusers_ddim(eta):
    ours = RescaledDDIMScheduler(scale_end=1.0, eta=eta)
    stock = DDIMScheduler(**STOCK, set_alpha_to_one=False, steps_offset=1)
    ours.set_timesteps(25)
    stock.set_timesteps(25)
    assert torch.equal(ours.timesteps, stock.timesteps)
    sample, output, noise = tensors()
    for t in ours.timesteps[[0, 7, 24]]:
        expected = stock.step(output, t, sample, eta=eta, variance_noise=noise if eta else None)
        step = ours.step(output, t, sample, noise=noise)
        assert relative(step.prev_sample, expected.prev_sample) < 1e-5
        assert relative(step.denoised, expected.pred_original_sample) < 1e-5


def test_the_scale_divides_the_clean_sample_and_comes_back_on_the_way():
    scheduler = RescaledDDIMScheduler(eta=0.5)
    scheduler.set_timesteps(50)
    sample, output, noise = tensors()
    t = scheduler.timesteps[-6]  # 101, where the scale is still falling
    assert int(t) == 101
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    a, a_prev = alphas[101], alphas[81]
    sigma = 0.5 * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()
    clean = (sample - (1 - a).sqrt() * output) / a.sqrt() / (1 - 0.3 * 101 / 399)
    expected = a_prev.sqrt() * (1 - 0.3 * 81 / 399) * clean + (1 - a_prev - sigma**2).sqrt() * output
    step = scheduler.step(output, t, sample, noise=noise)
    assert relative(step.denoised, clean) < 1e-5
    assert relative(step.prev_sample, expected + sigma * noise) < 1e-5


def test_where_the_grid_divides_it_is_diffusers_lcm_but_for_the_last_step():
    ours, stock = ConsistencyScheduler(), LCMScheduler(**STOCK, original_inference_steps=200)
    ours.set_timesteps(8)
    stock.set_timesteps(8)
    assert torch.equal(ours.timesteps, stock.timesteps)
    sample, output, noise = tensors()
    for t in ours.timesteps:
        expected = stock.step(output, t, sample, generator=torch.Generator().manual_seed(5))
        step = ours.step(output, t, sample, generator=torch.Generator().manual_seed(5))
        assert relative(step.denoised, expected.denoised) < 1e-5
        if t != ours.timesteps[-1]:
            assert relative(step.prev_sample, expected.prev_sample) < 1e-5
    ours.set_timesteps(16)
    stock.set_timesteps(16)
    assert not torch.equal(ours.timesteps, stock.timesteps)
    assert torch.equal(
        ours.step(output, 999, sample, noise=noise).denoised, ours.denoised(output, 999, sample)
    )


@pytest.mark.parametrize("cls", [ConsistencyScheduler, RescaledDDIMScheduler])
def test_refusals_and_round_trip(cls, tmp_path):
    scheduler = cls()
    with pytest.raises(ModelError, match="after `set_timesteps`"):
        scheduler.step(*[tensors(1)[0], 999, tensors(1)[0]])
    for wrong in (0, 600):
        with pytest.raises(ModelError, match="number of sampling steps"):
            scheduler.set_timesteps(wrong)
    if cls is RescaledDDIMScheduler:  # 999 is a multiple of 1000 // 27
        with pytest.raises(ModelError, match="up to 1000"):
            scheduler.set_timesteps(27)
    scheduler.set_timesteps(4)
    with pytest.raises(ModelError, match="timestep 3 is not one"):
        scheduler.step(tensors(1)[0], 3, tensors(1)[0])
    changed = cls(beta_end=0.02)
    changed.save_pretrained(tmp_path)
    assert torch.equal(cls.from_pretrained(tmp_path).betas, changed.betas)
