"""What a trained teacher reaches on held-out clips: pixel errors, block effects, time, and pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from vdmini_core.teacher.one_step import LatentClips, encode_clips, first_frame, one_step, probe
from vdmini_core.teacher.vae_training import reconstruction_psnr

Floats = NDArray[np.float32]


def sample_clips(
    pipeline: StableVideoDiffusionPipeline,
    clips_uint8: NDArray[np.uint8],
    arguments: dict[str, Any],
    seed: int = 0,
) -> Floats:
    """The pipeline's clips for the first frames of clips (n, F, H, W, 3): float32, 0..1."""
    made = []
    for index, clip in enumerate(clips_uint8):
        generator = torch.Generator().manual_seed(seed + index)
        image = Image.fromarray(clip[0])
        made.append(pipeline(image, **arguments, generator=generator, output_type="np").frames[0])
    return np.asarray(made, np.float32)


@torch.no_grad()
def decoded_samples(pipeline: StableVideoDiffusionPipeline, clips: LatentClips, count: int) -> Floats:
    """One-step samples for the first `count` encoded clips, decoded: float32 (count, F, H, W, 3) in 0..1."""
    target = clips.latents[:count].float()
    device = pipeline.unet.device
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(device)
    image, embedding = first_frame(pipeline, target).to(device), clips.embeddings[:count].to(device)
    made = one_step(pipeline, noise, image, embedding).cpu()
    frames = target.shape[1]
    pixels = [
        pipeline.vae.decode(z / pipeline.vae.config.scaling_factor, num_frames=frames).sample for z in made
    ]
    return (torch.stack(pixels).permute(0, 1, 3, 4, 2) / 2 + 0.5).clamp(0, 1).numpy()


def measure(
    pipeline: StableVideoDiffusionPipeline, clips_uint8: NDArray[np.uint8], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Errors in pixels (0..1) and latents, PSNR of the autoencoder, block effects, seconds a clip.

    `mse_ratio` compares with repeating the first frame; `latent` is `one_step.probe` in float32.
    """
    started = time.perf_counter()
    made = sample_clips(pipeline, clips_uint8, arguments)
    seconds = (time.perf_counter() - started) / len(made)
    real = clips_uint8.astype(np.float32) / 255
    mse, copy = float(np.mean((made - real) ** 2)), float(np.mean((real[:, :1] - real) ** 2))
    encoded: LatentClips = encode_clips(pipeline, clips_uint8, bf16=False)
    return {
        "clips": len(made),
        "mse": mse,
        "mse_copy": copy,
        "mse_ratio": mse / copy,
        "mse_per_frame": np.mean((made - real) ** 2, axis=(0, 2, 3, 4)).round(5).tolist(),
        "mse_copy_per_frame": np.mean((real[:, :1] - real) ** 2, axis=(0, 2, 3, 4)).round(5).tolist(),
        "vae_psnr_db": reconstruction_psnr(pipeline.vae, clips_uint8),
        "latent": probe(pipeline, encoded, bf16=False),
        "seconds_per_clip": seconds,
    }


def interleaved(real: Floats, made: Floats) -> list[Floats]:
    """Rows for `write_strips`: every real clip with the sampled one below it."""
    return [clip for pair in zip(real, made, strict=True) for clip in pair]


def write_strips(path: Path, rows: list[Floats], zoom: int = 2) -> None:
    """A PNG of clips (F, H, W, 3) in 0..1, one a row, their frames side by side."""
    picture = np.concatenate([np.concatenate(list(clip), axis=1) for clip in rows])
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(
        path, optimize=True
    )
