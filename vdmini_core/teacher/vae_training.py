"""Training of the small autoencoder, a stock `AutoencoderKLTemporalDecoder`, on random crops.

Where the widths allow, the encoder starts as the best linear one (`vae_start`) and stays so; the decoder
learns to paint the pixels that the latents came from.

Legend: B clips, F frames, C channels, H and W pixels, h and w latent cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from numpy.typing import NDArray
from torch import Tensor

from vdmini_core.teacher import loop
from vdmini_core.teacher.temporal_conv import temporal_convolutions_as_2d
from vdmini_core.teacher.vae_start import has_room, patch_basis, start_from_patches

BASIS_CLIPS = 200  # clips that the encoder's components are drawn from


@dataclass(frozen=True)
class VaeTrainConfig:
    """Settings of a decoder's run; `noise` scales the posterior noise that latents are decoded with."""

    steps: int = 900
    batch_size: int = 8
    crop: int = 32
    crop_frames: int = 2
    full_size_share: float = 0.1
    learning_rate: float = 5e-4
    warmup: int = 50
    l1_weight: float = 0.25
    noise: float = 1.0
    ema_decay: float = 0.995
    bf16: bool = False
    seed: int = 0
    log_every: int = 25
    checkpoint_every: int = 100


def to_unit_range(clips_BFHWC: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (B, F, H, W, C) to float (B, F, C, H, W) in -1..1."""
    clips = torch.as_tensor(clips_BFHWC)
    return clips.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def train_vae(
    vae: AutoencoderKLTemporalDecoder,
    clips_uint8: NDArray[np.uint8],
    config: VaeTrainConfig,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
) -> dict[str, Any]:
    """Train `vae` in place on clips (n, F, H, W, 3), resuming from `workdir`; ends with averaged weights."""
    vae.requires_grad_(True)
    if has_room(vae):
        side = 2 ** (len(vae.config.block_out_channels) - 1)
        start_from_patches(vae, patch_basis(clips_uint8[:BASIS_CLIPS], side, vae.config.latent_channels))
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )
    average = loop.AveragedWeights(vae, config.ema_decay)
    path, done = workdir / "vae.pt", 0
    if state := loop.load_checkpoint(path, asdict(config)):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average, done = state["average"], state["step"]
    curve = loop.Curve(workdir / "vae.jsonl", config.steps, done, on_log)
    vae.train()
    for step in range(done, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * loop.learning_rate_factor(step, config.steps, config.warmup)
        optimizer.zero_grad(set_to_none=True)
        with temporal_convolutions_as_2d(vae):
            terms = _step(vae, clips_uint8, config, step)
            terms["loss"].backward()
        loop.check_finite(terms["loss"], step)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        finished = step + 1
        if finished % config.log_every == 0 or finished == config.steps:
            curve.write(finished, **{name: round(term.item(), 5) for name, term in terms.items()})
        if finished % config.checkpoint_every == 0 or finished == config.steps:
            state = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.average,
            }
            loop.save_checkpoint(path, {**state, "step": finished, "config": asdict(config)})
    average.copy_to(vae)
    vae.eval()
    return {"steps": config.steps, "psnr_db": reconstruction_psnr(vae, clips_uint8[:64])}


def _step(
    vae: AutoencoderKLTemporalDecoder, clips: NDArray[np.uint8], config: VaeTrainConfig, step: int
) -> dict[str, Tensor]:
    generator = loop.step_generator(config.seed, step)
    target_BFCHW = to_unit_range(_draw(clips, config, generator))
    frames = target_BFCHW.shape[1]
    target_NCHW = target_BFCHW.flatten(0, 1)
    posterior = vae.encode(target_NCHW).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    latents = posterior.mean + config.noise * posterior.std * noise
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        decoded = vae.decode(latents, num_frames=frames).sample
    error = decoded.float() - target_NCHW
    l1, mse = error.abs().mean(), error.square().mean()
    return {"loss": config.l1_weight * l1 + 10 * mse, "l1": l1, "mse": mse}


def _draw(clips: NDArray[np.uint8], config: VaeTrainConfig, generator: torch.Generator) -> NDArray[np.uint8]:
    """A batch of crops (B, f, crop, crop, C); a share of the steps sees whole frames, fewer of them."""
    _, frames, height, width, _ = clips.shape

    def integer(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    crop = min(config.crop, height, width)
    length = min(config.crop_frames, frames)
    count = config.batch_size
    if float(torch.rand((), generator=generator)) < config.full_size_share:
        count, crop = max(1, count * crop**2 // (height * width)), height
    batch = []
    for _ in range(count):
        clip, start = clips[integer(len(clips))], integer(frames - length + 1)
        top, left = integer(height - crop + 1), integer(width - crop + 1)
        batch.append(clip[start : start + length, top : top + crop, left : left + crop])
    return np.stack(batch)


def iterate_latents(
    vae: AutoencoderKLTemporalDecoder, clips_uint8: NDArray[np.uint8], bf16: bool = False, batch: int = 4
) -> Iterator[Tensor]:
    """Unscaled latent modes, a batch of clips at a time: float32 (b, F, C, h, w)."""
    for start in range(0, len(clips_uint8), batch):
        pixels_BFCHW = to_unit_range(clips_uint8[start : start + batch])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            latents = vae.encode(pixels_BFCHW.flatten(0, 1)).latent_dist.mode()
        yield latents.float().unflatten(0, pixels_BFCHW.shape[:2])


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLTemporalDecoder, clips_uint8: NDArray[np.uint8]) -> float:
    """PSNR in dB (pixels in 0..1) of decode(encode(clip)) over clips (n, F, H, W, 3)."""
    squared, count = 0.0, 0
    for index, latents_BFChw in enumerate(iterate_latents(vae, clips_uint8, batch=1)):
        frames = latents_BFChw.shape[1]
        decoded = vae.decode(latents_BFChw[0], num_frames=frames).sample.clamp(-1, 1)
        error = (decoded - to_unit_range(clips_uint8[index : index + 1])[0]) / 2
        squared, count = squared + error.square().sum().item(), count + error.numel()
    return float(-10 * np.log10(squared / count))
