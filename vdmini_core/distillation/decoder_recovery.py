"""Recovery of a cut VAE decoder: reconstruction + perceptual + adversarial (paper, Appendix A).

The decoder learns to paint the frames its latents came from. Perceptual distance is that of the teacher's
own frozen VAE encoder, so nothing is downloaded and it fits any video; the discriminator judges patches of a
frame beside its predecessor, so flicker is seen too. The encoder of the student is the teacher's and stays.

Legend: B clips, F frames, N = B F, C channels, H and W pixels, h and w latent cells.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdmini_core.data.clip_source import Clips
from vdmini_core.params import DecoderRecoveryParams
from vdmini_core.teacher import loop

EMA_DECAY = 0.99


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches, (N, 6, H, W) -> (N, 1, H / 8, W / 8): a frame and the one before it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, pairs_N6HW: Tensor) -> Tensor:
        """Higher is more like a real pair."""
        scores: Tensor = self.layers(pairs_N6HW)
        return scores


def with_predecessor(frames_BFCHW: Tensor) -> Tensor:
    """Every frame but the first beside the one before: (B (F - 1), 2 C, H, W); a lone one with itself."""
    before, after = frames_BFCHW[:, :-1], frames_BFCHW[:, 1:]
    if frames_BFCHW.shape[1] == 1:
        before = after = frames_BFCHW
    return torch.cat([before, after], dim=2).flatten(0, 1)


def encoder_features(encoder: Any, pixels_NCHW: Tensor) -> list[Tensor]:
    """What each down block of a VAE encoder makes of frames in -1..1."""
    hidden = encoder.conv_in(pixels_NCHW)
    features = []
    for block in encoder.down_blocks:
        hidden = block(hidden)
        features.append(hidden)
    return features


def perceptual_distance(encoder: Any, made_NCHW: Tensor, real_NCHW: Tensor) -> Tensor:
    """Mean over layers of the squared error of features, relative to the real features' own mean square."""
    with torch.no_grad():
        wanted = encoder_features(encoder, real_NCHW)
    found = encoder_features(encoder, made_NCHW)
    return torch.stack(
        [
            (a - b).square().mean() / b.square().mean().clamp(min=1e-8)
            for a, b in zip(found, wanted, strict=True)
        ]
    ).mean()


def decode(vae: Any, latents_BFChw: Tensor) -> Tensor:
    """Frames (B, F, C, H, W) of unscaled latents, in about -1..1."""
    frames = latents_BFChw.shape[1]
    made: Tensor = vae.decode(latents_BFChw.flatten(0, 1), num_frames=frames).sample
    return made.unflatten(0, latents_BFChw.shape[:2])


def recover_decoder(
    student: Any,
    teacher: Any,
    clips_uint8: Clips,
    params: DecoderRecoveryParams,
    seed: int,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
) -> list[dict[str, float]]:
    """Train the decoder of `student` in place, resuming from `workdir`; it ends with averaged weights.

    Args:
        student: VAE with a cut decoder and the teacher's encoder.
        teacher: the VAE it was cut from; its encoder is the perceptual network. Unchanged.
        clips_uint8: training clips (n, F, H, W, 3).
        params: steps, rates and weights of the terms.
        seed: clips and crops of a step depend on it and the step alone.
        workdir: where the checkpoint lies.

    Returns:
        One row a step: `step`, `loss`, `l1`, `mse`, `perceptual`, `adversarial`, `discriminator`.

    Raises:
        TrainingError: when the loss is not finite, or the checkpoint is of another run.
    """
    device = next(student.parameters()).device
    config = {**params.model_dump(mode="json"), "seed": seed, "clips": len(clips_uint8)}
    teacher.requires_grad_(False)
    student.requires_grad_(False)
    student.decoder.requires_grad_(True)
    discriminator = _seeded_discriminator(seed).to(device)
    optimizer = torch.optim.AdamW(
        student.decoder.parameters(), lr=params.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    judge = torch.optim.AdamW(discriminator.parameters(), lr=params.learning_rate / 2, betas=(0.5, 0.99))
    average = loop.AveragedWeights(student.decoder, EMA_DECAY)
    path, done, rows = workdir / "decoder.pt", 0, []
    if state := loop.load_checkpoint(path, config):
        student.decoder.load_state_dict(state["decoder"])
        discriminator.load_state_dict(state["discriminator"])
        optimizer.load_state_dict(state["optimizer"])
        judge.load_state_dict(state["judge"])
        average.average = {name: value.to(device) for name, value in state["average"].items()}
        done, rows = state["step"], state["rows"]
    latents_of = LatentCache(teacher, clips_uint8, device)
    student.decoder.train()
    for step in range(done, params.steps):
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * loop.learning_rate_factor(
                step, params.steps, params.warmup_steps
            )
        generator = loop.step_generator(seed, step)
        latents, real = _draw(latents_of, params, generator)
        judged = int(torch.randint(real.shape[1], (), generator=generator))
        optimizer.zero_grad(set_to_none=True)
        made = decode(student, latents)
        terms = _terms(made, real, judged, teacher.encoder, discriminator, params, step)
        terms["loss"].backward()
        loop.check_finite(terms["loss"], step)
        torch.nn.utils.clip_grad_norm_(student.decoder.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        average.update(student.decoder, step)
        if params.lambda_adversarial > 0:
            terms["discriminator"] = _judge_step(discriminator, judge, made.detach(), real)
        finished = step + 1
        rows.append({"step": finished, **{name: float(f"{t.item():.7g}") for name, t in terms.items()}})
        if on_log and (finished % params.log_every == 0 or finished == params.steps):
            on_log(rows[-1])
        if finished % params.checkpoint_every == 0 or finished == params.steps:
            state = {
                "decoder": student.decoder.state_dict(),
                "discriminator": discriminator.state_dict(),
                "optimizer": optimizer.state_dict(),
                "judge": judge.state_dict(),
                "average": average.average,
                "rows": rows,
            }
            loop.save_checkpoint(path, {**state, "step": finished, "config": config})
    average.copy_to(student.decoder)
    student.eval().requires_grad_(False)
    return rows


def _seeded_discriminator(seed: int) -> PatchDiscriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchDiscriminator()


class LatentCache:
    """Latents of whole clips, each encoded once, when it is first drawn.

    A crop encoded alone would have other latents, through normalisation, padding and attention.
    """

    def __init__(self, teacher: Any, clips_BFHWC: Clips, device: torch.device) -> None:
        self.teacher, self.clips, self.device = teacher, clips_BFHWC, device
        self.cell = 2 ** (len(teacher.config.block_out_channels) - 1)
        self._known: dict[int, Tensor] = {}

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        """Latents (F, C, h, w) of a clip."""
        if index not in self._known:
            frames_FCHW = self.frames(index, slice(None))
            self._known[index] = self.teacher.encode(frames_FCHW).latent_dist.mode().cpu()
        return self._known[index].to(self.device)

    def frames(self, index: int, window: slice) -> Tensor:
        """Frames (F, C, H, W) of a clip in -1..1."""
        return (
            self.clips[index : index + 1][0, window].to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        )


def _draw(
    latents_of: LatentCache, params: DecoderRecoveryParams, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (B, F, C, h, w) and the frames in -1..1 they came from, cropped in space and time alike."""
    count, frames, height, width = latents_of.clips.shape[:4]
    cell = latents_of.cell
    length = min(params.crop_frames, frames)
    tall, wide = (min(params.crop_cells, n // cell) for n in (height, width))

    def integer(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    latents, pixels = [], []
    for _ in range(params.batch_size):
        clip, start = integer(count), integer(frames - length + 1)
        top, left = integer(height // cell - tall + 1), integer(width // cell - wide + 1)
        window = slice(start, start + length)
        latents.append(latents_of[clip][window, :, top : top + tall, left : left + wide])
        rows, columns = (slice(cell * a, cell * (a + n)) for a, n in ((top, tall), (left, wide)))
        pixels.append(latents_of.frames(clip, window)[..., rows, columns])
    return torch.stack(latents), torch.stack(pixels)


def _terms(
    made: Tensor,
    real: Tensor,
    judged: int,
    encoder: Any,
    discriminator: nn.Module,
    params: DecoderRecoveryParams,
    step: int,
) -> dict[str, Tensor]:
    """Reconstruction L1 + 10 MSE, and the weighted other terms.

    The perceptual network judges frame `judged` of each clip alone: on all frames it would cost more than the
    decoder itself.
    """
    error = made - real
    l1, mse = error.abs().mean(), error.square().mean()
    terms = {"l1": l1, "mse": mse}
    loss = l1 + 10 * mse
    if params.lambda_perceptual > 0:
        terms["perceptual"] = perceptual_distance(encoder, made[:, judged], real[:, judged])
        loss = loss + params.lambda_perceptual * terms["perceptual"]
    if params.lambda_adversarial > 0:
        terms["adversarial"] = -discriminator(with_predecessor(made)).mean()
        if step >= params.adversarial_start * params.steps:  # the discriminator learns alone before
            loss = loss + params.lambda_adversarial * terms["adversarial"]
    return {"loss": loss, **terms}


def _judge_step(discriminator: nn.Module, judge: torch.optim.Optimizer, made: Tensor, real: Tensor) -> Tensor:
    """Hinge loss: real pairs above 1, painted ones below -1."""
    judge.zero_grad(set_to_none=True)
    loss = F.relu(1 - discriminator(with_predecessor(real))).mean()
    loss = loss + F.relu(1 + discriminator(with_predecessor(made))).mean()
    loss.backward()
    judge.step()
    return loss.detach()


@torch.no_grad()
def decoder_quality(vae: Any, teacher: Any, clips_uint8: Tensor, batch: int = 1) -> dict[str, float]:
    """How well a VAE paints clips (n, F, H, W, 3) again.

    Clips are decoded whole, `batch` at a time: the decoder's temporal layers and norms look across all frames
    of what they are given, so a clip decoded in pieces (as `decode_chunk_size` does when sampling) is painted
    otherwise, most of all at the seams. Memory is therefore that of one clip.

    Returns:
        `psnr` against the real frames, `psnr_teacher` against the teacher's frames of the same latents (dB,
        pixels in 0..1), and `flicker`: squared error of the changes between frames against the real ones,
        divided by the squared error of the frames (two where errors are independent in time, less where
        they stay).
    """
    device = next(vae.parameters()).device
    sums = {"real": 0.0, "teacher": 0.0, "change": 0.0}
    count = changes = 0
    for start in range(0, len(clips_uint8), batch):
        pixels = clips_uint8[start : start + batch].to(device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        latents = teacher.encode(pixels.flatten(0, 1)).latent_dist.mode().unflatten(0, pixels.shape[:2])
        made = decode(vae, latents).clamp(-1, 1)
        error = (made - pixels) / 2
        sums["real"] += error.square().sum().item()
        sums["teacher"] += ((made - decode(teacher, latents).clamp(-1, 1)) / 2).square().sum().item()
        sums["change"] += error.diff(dim=1).square().sum().item()
        count += error.numel()
        changes += error.diff(dim=1).numel()

    def psnr(total: float) -> float:
        return float(-10 * torch.log10(torch.tensor(max(total / count, 1e-12))))

    flicker = (sums["change"] / max(changes, 1)) / max(sums["real"] / count, 1e-12)
    return {
        "psnr": round(psnr(sums["real"]), 3),
        "psnr_teacher": round(psnr(sums["teacher"]), 3),
        "flicker": round(flicker, 4),
    }
