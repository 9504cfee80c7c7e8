"""Generation equals the stock pipeline call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import svd_toys as toys
import torch
from PIL import Image

from vdmini_core.errors import DataError, ModelError
from vdmini_core.models.generate import generate
from vdmini_core.models.inputs import ClipInputs


@pytest.fixture(scope="module")
def pipeline():
    return toys.tiny_pipeline()


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=generator)


def stock(pipeline, frame, settings, **kwargs):
    films = pipeline(
        Image.fromarray(frame.numpy()),
        height=settings.height,
        width=settings.width,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        min_guidance_scale=1.0,
        max_guidance_scale=settings.guidance,
        fps=settings.fps,
        motion_bucket_id=settings.motion_bucket_id,
        noise_aug_strength=settings.noise_aug_strength,
        decode_chunk_size=settings.decode_chunk_size,
        **kwargs,
    ).frames
    return torch.from_numpy(np.stack([np.array(image) for image in films[0]]))


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (3, 1.0), (2, 2.5)])
def test_generate_is_the_stock_call(pipeline, frames, steps, guidance):
    settings = replace(toys.SETTINGS, steps=steps, guidance=guidance)
    ours = generate(pipeline, ClipInputs(frames), [5, 6], settings, batch_size=1)
    assert ours.shape == (2, 2, 16, 16, 3) and ours.dtype == torch.uint8
    for i, seed in enumerate((5, 6)):
        theirs = stock(pipeline, frames[i], settings, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(ours[i], theirs)


def test_generate_with_given_latents_is_the_stock_call(pipeline, frames):
    settings = replace(toys.SETTINGS, noise_aug_strength=0.0)
    noise = toys.FAMILY.noise(pipeline.unet, settings, [5])
    assert torch.equal(
        generate(pipeline, ClipInputs(frames[:1]), [5], settings)[0],
        stock(pipeline, frames[0], settings, latents=noise),
    )


def test_batches_do_not_matter(pipeline, frames):
    noise = toys.FAMILY.noise(pipeline.unet, toys.SETTINGS, [5, 6])
    assert torch.equal(noise[1:], toys.FAMILY.noise(pipeline.unet, toys.SETTINGS, [6]))
    alone = toys.FAMILY.conditions(pipeline, ClipInputs(frames[1:]), toys.SETTINGS, 7)
    both = toys.FAMILY.conditions(pipeline, ClipInputs(frames), toys.SETTINGS, 7)
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(both.tensors[name][1:], tensor)
    apart = (
        generate(pipeline, ClipInputs(frames), [5, 6], toys.SETTINGS, batch_size=b).int() for b in (1, 2)
    )
    assert max((a - b).abs().max() for a, b in [tuple(apart)]) <= 1


def test_denoise_is_one_sampling_step(pipeline, frames):
    conditions = toys.FAMILY.conditions(pipeline, ClipInputs(frames), toys.SETTINGS, 0)
    noise = toys.FAMILY.noise(pipeline.unet, toys.SETTINGS, [1, 2])
    sampled = toys.FAMILY.sample(pipeline, pipeline.unet, noise, conditions, toys.SETTINGS)
    top = (700.0**2 + 1) ** 0.5
    with torch.no_grad():
        ours = toys.FAMILY.denoise(pipeline.unet, noise * top, torch.full((2,), 700.0), conditions)
    torch.testing.assert_close(ours, sampled, atol=2e-3, rtol=0)  # at sigma 700 in float32
    levels = toys.FAMILY.training_sigmas(toys.SETTINGS, 3, torch.Generator().manual_seed(0))
    assert torch.equal(levels, torch.full((3,), 700.0))


def test_encode_then_decode_has_the_clips_shape(pipeline):
    clips = torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8)
    latents = toys.FAMILY.encode_clips(pipeline, clips)
    assert latents.shape == (2, 2, 4, 8, 8)
    assert toys.FAMILY.decode_latents(pipeline, latents, toys.SETTINGS).shape == clips.shape


def test_one_seed_a_clip(pipeline, frames):
    with pytest.raises(DataError, match="one seed per clip"):
        generate(pipeline, ClipInputs(frames), [1], toys.SETTINGS)


def test_a_model_that_fails_is_named(pipeline, frames):
    """Parts from outside, each whole, that do not fit each other."""
    other = toys.tiny_pipeline().unet
    other.conv_in = torch.nn.Conv2d(3, other.conv_in.out_channels, 3, padding=1)
    with pytest.raises(ModelError, match=r"makes no video of 2 frames of 16x16 in 1 steps\n.*\n.*Error: "):
        generate(pipeline, ClipInputs(frames), [5, 6], toys.SETTINGS, denoiser=other)


def test_what_is_the_machines_is_not_the_models(pipeline, frames):
    """Else nothing would be tried again, and a full disk would be said as a wrong size."""
    for error in (MemoryError(), OSError(28, "No space left on device"), RuntimeError("CUDA error: x")):

        class Failing(torch.nn.Module):
            def forward(self, *_, error=error, **__):
                raise error

        broken = toys.tiny_pipeline().unet
        broken.conv_in = Failing()
        with pytest.raises(type(error)):
            generate(pipeline, ClipInputs(frames), [5, 6], toys.SETTINGS, denoiser=broken)


def test_frames_that_are_no_numbers_make_no_video(frames):
    broken = toys.tiny_pipeline()
    broken.vae.decoder.conv_in.bias.data[0] = torch.nan
    with pytest.raises(ModelError, match="decoded frames are not numbers"):
        generate(broken, ClipInputs(frames), [5, 6], toys.SETTINGS)


def test_latents_that_are_no_numbers_make_no_video(pipeline, frames):
    broken = toys.tiny_pipeline().unet
    broken.conv_out.bias.data[0] = torch.nan
    with pytest.raises(ModelError, match="latents are not numbers"):
        generate(pipeline, ClipInputs(frames), [5, 6], toys.SETTINGS, denoiser=broken)
