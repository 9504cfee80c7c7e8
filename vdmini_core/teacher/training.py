"""Training of the mini teacher: a one-step generator from pure noise on a stock SVD U-Net.

At SVD's highest noise level (sigma 700) the denoised clip is -F(x) + x sigma / (sigma^2 + 1): the network
makes the whole clip from unit noise, the first frame's latents and its image embedding, in one step, as
SF-V does (arXiv 2406.04324). `one_step` is that map, equal to what the stock pipeline returns.

Three things make an hour on a CPU enough, and give the deep blocks work (`docs/teacher.md` has the trials):

* the start: the untrained network repeats the first frame and its deep blocks are heard (`unet_start`);
* the first `window_steps` see small windows, a third of the work;
* for the first `quiet_steps` frames are told apart by D.2's second pair alone, and D.0 and D.1 see one frame
  a clip (`unet_start.quiet_parts`).

The last steps train exactly the stock network, all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from vdmini_core.teacher import bypass, loop, unet_start
from vdmini_core.teacher.clip_source import ClipSource, Draw, drawn_ahead
from vdmini_core.teacher.one_step import (
    LatentClips,
    denoised,
    first_frame,
    one_step,
    probe,
    weighted_mse,
)
from vdmini_core.teacher.temporal_conv import temporal_convolutions_as_2d

SIGMA_MAX = 700.0  # where SVD's schedule begins
P_MEAN, P_STD = 0.0, 1.6  # of the logarithm of the drawn levels; SVD's 0.7 is for latents of more cells


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a U-Net run.

    `channel_weight_power` moves the loss between latents counting alike (0) and as much as pixels depend on
    them (1). `noised_share` of the clips start from a drawn noise level in place of pure noise: a network
    that never meets any other leaves its noisy input alone, and a discriminator on its encoder sees nothing.
    """

    steps: int = 2000
    window_steps: int = 800
    quiet_steps: int = 1700
    batch_size: int = 2
    window_batch_size: int = 4
    learning_rate: float = 6e-4
    warmup: int = 50
    weight_decay: float = 1e-3
    channel_weight_power: float = 0.5
    ema_decay: float = 0.995
    noised_share: float = 0.0
    bf16: bool = False
    device: str = "cpu"
    workers: int = 0  # processes that draw batches ahead
    seed: int = 0
    log_every: int = 25
    probe_every: int = 300
    checkpoint_every: int = 100


def train_unet(
    pipeline: StableVideoDiffusionPipeline,
    source: ClipSource,
    config: TrainConfig,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
    held_out: LatentClips | None = None,
    on_probe: Callable[[int], None] | None = None,
    fresh: bool = True,
) -> dict[str, Any]:
    """Train the pipeline's U-Net in place, resuming from `workdir`; ends with averaged weights.

    A `fresh` network gets the start that repeats the first frame, another one is trained as it is.

    `held_out` clips are measured every `probe_every` steps; `on_probe` is then called with the number of
    finished steps while the pipeline holds the averaged weights.
    """
    device = torch.device(config.device)
    unet = pipeline.unet.to(device)  # the rest draws and shows clips, on the CPU
    processors = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())  # the plain one is the faster one at this size
    if fresh and unet_start.has_room(unet):
        unet_start.start_from_first_frame(unet)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
    )
    average = loop.AveragedWeights(unet, config.ema_decay)
    path, done = workdir / "unet.pt", 0
    if state := loop.load_checkpoint(path, asdict(config)):
        unet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average = {name: value.to(device) for name, value in state["average"].items()}
        done = state["step"]
    curve = loop.Curve(workdir / "unet.jsonl", config.steps, done, on_log)
    unet.train()
    losses: list[float] = []
    weights = (source.weights**config.channel_weight_power).to(device)
    steps = range(done, config.steps)
    draws = drawn_ahead(partial(_draw, source, config), steps, config.workers)
    for step, drawn in zip(steps, draws, strict=True):
        losses.append(_update(pipeline, drawn, weights / weights.mean(), optimizer, config, step))
        average.update(unet, step)
        finished = step + 1
        last = finished == config.steps
        if finished % config.log_every == 0 or last:
            curve.write(finished, loss=round(float(np.mean(losses)), 5))
            losses.clear()
        if held_out is not None and (finished % config.probe_every == 0 or last):
            with average.applied(unet), _phase(unet, config, step):
                curve.write(finished, **probe(pipeline, held_out, config.bf16))
                if on_probe is not None:
                    on_probe(finished)
        if finished % config.checkpoint_every == 0 or last:
            state = {
                "model": unet.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.average,
            }
            loop.save_checkpoint(path, {**state, "step": finished, "config": asdict(config)})
    average.copy_to(unet)
    unet.set_attn_processor(processors)
    unet.requires_grad_(True)
    unet.eval()
    result = {} if held_out is None else probe(pipeline, held_out, config.bf16)
    unet.to("cpu")
    return {"steps": config.steps, **result}


def _update(
    pipeline: StableVideoDiffusionPipeline,
    drawn: Draw,
    weights_C: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
) -> float:
    """One optimiser step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * loop.learning_rate_factor(step, config.steps, config.warmup)
    optimizer.zero_grad(set_to_none=True)
    drawn = drawn.to(weights_C.device)
    target, embeddings = drawn.batch.latents, drawn.batch.embeddings
    with _phase(pipeline.unet, config, step):
        image, sigma_B = first_frame(pipeline, target), drawn.sigma
        with torch.autocast(weights_C.device.type, torch.bfloat16, enabled=config.bf16):
            if sigma_B is None:
                made = one_step(pipeline, drawn.noise, image, embeddings)
                loss = weighted_mse(made, target, weights_C)
            else:
                sigma = sigma_B[:, None, None, None, None]
                made = denoised(pipeline, target + sigma * drawn.noise, sigma_B, image, embeddings)
                # The error of what the network itself puts out, as large at every level (EDM, equation 8).
                scale = (sigma**2 + 1).sqrt() / sigma
                loss = weighted_mse(made * scale, target * scale, weights_C)
        loss.backward()
    loop.check_finite(loss, step)
    torch.nn.utils.clip_grad_norm_(pipeline.unet.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.step()
    return loss.item()


def _draw(source: ClipSource, config: TrainConfig, step: int) -> Draw:
    """The clips and the noise of a step: they depend on the seed and the step alone."""
    generator = loop.step_generator(config.seed, step)
    if step < config.window_steps:
        batch = source.windows(config.window_batch_size, generator)
    else:
        batch = source.batch(config.batch_size, generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    if config.noised_share == 0:
        return Draw(batch, noise)
    count = len(noise)
    drawn = (P_STD * torch.randn(count, generator=generator) + P_MEAN).exp()
    pure = torch.rand(count, generator=generator) >= config.noised_share
    return Draw(batch, noise, torch.where(pure, SIGMA_MAX, drawn))


@contextmanager
def _phase(unet: UNetSpatioTemporalConditionModel, config: TrainConfig, step: int) -> Iterator[None]:
    """What rests at this step. The quiet parts have no effect until they are first trained."""
    quiet = step < config.quiet_steps and unet_start.has_room(unet)
    for part in unet_start.quiet_parts(unet):
        part.requires_grad_(not quiet)
    shared = bypass.shared_frames(unet, unet_start.SHARED_DOWN, unet.config.num_frames)
    convolutions = temporal_convolutions_as_2d(unet) if config.bf16 else nullcontext()
    with shared if quiet else nullcontext(), convolutions:
        yield
