"""Training of the mini teacher: a one-step generator from pure noise on a stock SVD U-Net.

At SVD's highest noise level (sigma 700) the denoised clip is -F(x) + x sigma / (sigma^2 + 1): the network
makes the whole clip from unit noise, the first frame's latents and its image embedding, in one step, as
SF-V does (arXiv 2406.04324). `one_step` is that map, equal to what the stock pipeline returns.

Trained in the ordinary way, the deep blocks of so small a U-Net stay dead: the shallow ones do all. Three
things give them work (`docs/teacher.md` has the trials):

* the shallow blocks start near-spatial, so that what tells the frames apart is born in the deep ones;
* for most of the run D.0 and D.1 see one frame a clip: cheap, and their skips cannot carry motion;
* for a share of the samples the skips into U.2 and U.3 are closed.

The last steps train exactly the stock network. `deep_steps` closes the skips for everybody at first; it
did not pay (nearest-neighbour up-sampling cannot place detail without skips) and is 0 by default.

Legend: B clips, F frames, C latent channels, h and w latent cells, E image embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray

from vdmini_core.teacher import bypass, loop
from vdmini_core.teacher.one_step import (
    LatentClips,
    encode_clips,
    first_frame,
    one_step,
    probe,
    weighted_mse,
)
from vdmini_core.teacher.temporal_conv import temporal_convolutions_as_2d

SHALLOW_UP = ("U.2", "U.3")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a U-Net run.

    The skips are closed for the first `deep_steps`; D.0 and D.1 see one frame for the first `shared_steps`;
    at `focus_step` motion is moved towards D.2, and from `close_step` on only D.2 and U.1 can make it.
    """

    steps: int = 1000
    deep_steps: int = 0
    shared_steps: int = 950
    focus_step: int = 400
    close_step: int = 500
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 1e-3
    skip_dropout: float = 0.15
    ema_decay: float = 0.995
    bf16: bool = True
    seed: int = 0
    log_every: int = 25
    probe_every: int = 200
    checkpoint_every: int = 100

    @property
    def last_shared_step(self) -> int:
        """The last tenth of even a short run trains the stock network."""
        return min(self.shared_steps, self.steps * 9 // 10)


@torch.no_grad()
def prepare_unet(unet: UNetSpatioTemporalConditionModel) -> None:
    """Adapt fresh weights so that motion starts in the deep blocks.

    `time_mixer` is 0.998 spatial in D.0, D.1, U.2 and U.3, and 0.38 in D.2 and U.1; skips into U.2
    and U.3 count half; noise enters with a tenth of the usual weight. Neighbouring channels, which share
    a normalisation group, get opposite offsets.
    """
    unet.conv_in.weight[:, : unet.config.out_channels] *= 0.1
    for name, mix in (("D.0", 6.0), ("D.1", 6.0), ("U.2", 6.0), ("U.3", 6.0), ("D.2", -0.5), ("U.1", -0.5)):
        for path, parameter in bypass.block_of(unet, name).named_parameters():
            if path.endswith("mix_factor"):
                parameter.fill_(mix)
    streams = [path for path, _ in unet.named_modules() if path.endswith("samplers.0.conv")]
    for path in ("conv_in", *streams):
        bias: Any = unet.get_submodule(path).bias
        bias[0::2] += 1
        bias[1::2] -= 1
    for name in SHALLOW_UP:
        bypass.scale_skip_weights(unet, name, 0.5)


@torch.no_grad()
def place_motion(
    unet: UNetSpatioTemporalConditionModel,
    average: loop.AveragedWeights,
    blocks: Sequence[str],
    elsewhere: float,
) -> None:
    """From here on frames are told apart in the second pairs of `blocks` alone.

    Left to itself the network moves everything in U.3 and the deep blocks stay dead. The blend factors
    (`time_mixer`, trained like all weights) become 0.27 spatial in those pairs and sigmoid(elsewhere) in
    all others: 0.998 at 6, which still leaks, and 1 to the last bit at 20.
    """
    chosen = tuple(f"{block}.{kind}.1." for block in blocks for kind in ("resnets", "attentions"))
    for path, parameter in unet.named_parameters():
        if path.endswith("mix_factor"):
            parameter.fill_(-1.0 if path.startswith(chosen) else elsewhere)
            average.average[path].copy_(parameter)


def train_unet(
    pipeline: StableVideoDiffusionPipeline,
    clips_uint8: NDArray[np.uint8] | LatentClips,
    config: TrainConfig,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
    held_out: LatentClips | None = None,
) -> dict[str, Any]:
    """Train the pipeline's U-Net in place on clips (n, F, H, W, 3), resuming from `workdir`.

    Ends with averaged weights. `held_out` clips are measured every `probe_every` steps.
    """
    data = (
        clips_uint8
        if isinstance(clips_uint8, LatentClips)
        else encode_clips(pipeline, clips_uint8, config.bf16)
    )
    unet = pipeline.unet
    processors = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    prepare_unet(unet)
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
        average.average, done = state["average"], state["step"]
    curve = loop.Curve(workdir / "unet.jsonl", config.steps, done, on_log)
    unet.train()
    losses: list[float] = []
    for step in range(done, config.steps):
        if step == config.focus_step:
            place_motion(unet, average, ("down_blocks.2",), elsewhere=6.0)
        if step == config.close_step:
            place_motion(unet, average, ("down_blocks.2", "up_blocks.1"), elsewhere=20.0)
        losses.append(_update(pipeline, data, optimizer, config, step))
        average.update(unet, step)
        finished = step + 1
        last = finished == config.steps
        if finished % config.log_every == 0 or last:
            curve.write(finished, loss=round(float(np.mean(losses)), 5))
            losses.clear()
        if held_out is not None and (finished % config.probe_every == 0 or last):
            with average.applied(unet), _phase(unet, config, step, None):
                curve.write(finished, **probe(pipeline, held_out, config.bf16))
        if finished % config.checkpoint_every == 0 or last:
            state = {
                "model": unet.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.average,
            }
            loop.save_checkpoint(path, {**state, "step": finished, "config": asdict(config)})
    average.copy_to(unet)
    unet.set_attn_processor(processors)
    unet.eval()
    return {"steps": config.steps, **({} if held_out is None else probe(pipeline, held_out, config.bf16))}


def _update(
    pipeline: StableVideoDiffusionPipeline,
    data: LatentClips,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
) -> float:
    """One optimiser step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * loop.learning_rate_factor(step, config.steps, config.warmup)
    optimizer.zero_grad(set_to_none=True)
    generator = loop.step_generator(config.seed, step)
    index = torch.randint(len(data.latents), (config.batch_size,), generator=generator)
    target = data.latents[index].float()
    noise = torch.randn(target.shape, generator=generator)
    with _phase(pipeline.unet, config, step, generator), temporal_convolutions_as_2d(pipeline.unet):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            made = one_step(pipeline, noise, first_frame(pipeline, target), data.embeddings[index])
        loss = weighted_mse(made, target, data.weights)
        loss.backward()
    loop.check_finite(loss, step)
    torch.nn.utils.clip_grad_norm_(pipeline.unet.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.step()
    return loss.item()


@contextmanager
def _phase(
    unet: UNetSpatioTemporalConditionModel, config: TrainConfig, step: int, generator: torch.Generator | None
) -> Iterator[None]:
    """What is open at this step; without a generator (measuring) no sample loses its skips by chance."""
    frames = unet.config.num_frames
    with ExitStack() as stack:
        if step < config.last_shared_step:
            stack.enter_context(bypass.shared_frames(unet, ("D.0", "D.1"), frames))
        if step < config.deep_steps:
            stack.enter_context(bypass.without_block(unet, "U.3"))
            closed = torch.zeros(1)
            stack.enter_context(bypass.scaled_skips(unet, SHALLOW_UP, closed))
        elif generator is not None and config.skip_dropout:
            keep_B = (torch.rand(config.batch_size, generator=generator) >= config.skip_dropout).float()
            stack.enter_context(bypass.scaled_skips(unet, SHALLOW_UP, keep_B.repeat_interleave(frames)))
        yield
