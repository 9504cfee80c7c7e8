"""Train the networks of the embedded extractors: `python -m vdmini_core.metrics.train_embedded --seed 0`.

Procedural clips and films of random texture are damaged in known ways, and the networks must say what is
shown (shapes, colours, mean colour, contrast), how it moves (pan, zoom, pace) and what was done to it
(noise, blur, shuffled, frozen or shaken frames). So the features react to damage instead of ignoring it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vdmini_core.artifacts import sha256_file, write_json
from vdmini_core.data.procedural import Clip, ProceduralSpec, render_clip, split_seeds
from vdmini_core.metrics import distortions
from vdmini_core.metrics.embedded import ClipNetwork, FrameNetwork
from vdmini_core.progress import track

LONG = 24  # frames rendered, so that a clip can be played up to three times as fast
CONTENT_TARGETS = 5 + 3 + 1 + 4 + 12  # damage; mean colour; contrast; shapes; colours
MOTION_TARGETS = 4 + 4  # damage; pan (x, y), zoom, change of brightness
TARGETS = CONTENT_TARGETS + MOTION_TARGETS
_RANGES = {
    "noise": 0.25,
    "blur": 2.2,
    "colour": 0.3,
    "contrast": 0.7,
    "shuffle": 1.0,
    "freeze": 1.0,
    "jitter": 3.5,
}


@dataclass(frozen=True)
class Film:
    """Undamaged long clip (LONG, 64, 64, 3) uint8; attributes (20,), NaN where unknown."""

    frames: Tensor
    attributes: Tensor


@dataclass(frozen=True)
class Batch:
    """Damaged clips (B, F, 64, 64, 3) and targets (B, TARGETS), NaN where unknown."""

    clips: Tensor
    targets: Tensor


def procedural_film(seed: int, level: int) -> Film:
    """A procedural clip with its attributes."""
    spec = ProceduralSpec(frames=LONG, level=("normal", "hard", "easy")[level % 3])
    clip: Clip = render_clip(spec, seed)
    known = torch.zeros(20)
    known[torch.from_numpy(clip.truth["sprite_shapes"]).long()] = 1.0
    known[4 + torch.from_numpy(clip.truth["sprite_colours"]).long()] = 1.0
    known[16:18] = torch.from_numpy(clip.truth["background_velocity"]).float() / 3
    known[18] = float(clip.truth["background_zoom"]) / 0.03
    known[19] = float(clip.truth["brightness_rate"]) / 0.05
    return Film(torch.from_numpy(clip.frames), known)


def texture_film(generator: torch.Generator) -> Film:
    """A coloured 1/f texture that pans and zooms: the statistics of photographs, without sprites."""
    size, half = 128, 65
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    slope = 0.8 + 0.8 * float(torch.rand((), generator=generator))
    spectrum = torch.randn(3, size, half, 2, generator=generator)
    shaped = torch.view_as_complex(spectrum) / (fy**2 + fx**2).sqrt().clamp(min=1 / size) ** slope
    image = torch.fft.irfft2(shaped, s=(size, size))
    mixed = torch.einsum("ij,jhw->ihw", torch.randn(3, 3, generator=generator) * 0.4 + 0.6, image)
    mean, spread = (
        torch.rand(3, 1, 1, generator=generator) * 0.4 + 0.3,
        0.1 + 0.15 * float(torch.rand((), generator=generator)),
    )
    image = (mean + spread * mixed / mixed.std()).clamp(0, 1)
    velocity = torch.randn(2, generator=generator) * 1.5
    rate = 0.02 * float(torch.randn((), generator=generator))
    time = torch.arange(LONG, dtype=torch.float32)
    theta = torch.zeros(LONG, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.5 * (1 + rate) ** -time
    theta[:, :, 2] = -velocity * time[:, None] * 2 / size
    grid = F.affine_grid(theta, [LONG, 3, 64, 64], align_corners=False)
    frames = F.grid_sample(
        image.expand(LONG, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    known = torch.full((20,), float("nan"))
    known[16:20] = torch.tensor([float(velocity[0]) / 3, float(velocity[1]) / 3, rate / 0.03, 0.0])
    return Film((frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), known)


def make_batch(films: list[Film], size: int, frames: int, generator: torch.Generator) -> Batch:
    """Draw films, play them at a random pace, damage them, and write down what was done."""
    pairs = [
        _damaged(films[int(i)], frames, generator)
        for i in torch.randint(len(films), (size,), generator=generator)
    ]
    return Batch(torch.stack([clip for clip, _ in pairs]), torch.stack([target for _, target in pairs]))


def _damaged(film: Film, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    pace = 1.0
    if _chance(0.3, generator):
        pace = float(np.exp(float(torch.rand((), generator=generator)) * np.log((LONG - 1) / (frames - 1))))
        pace = min(pace, 3.5)
    room = LONG - 1 - int(np.ceil((frames - 1) * pace))
    start = int(torch.randint(max(room, 0) + 1, (), generator=generator))
    clip = distortions.speed(film.frames[None, start:].float() / 255, pace, frames)
    strength = {name: _strength(limit, generator) for name, limit in _RANGES.items()}
    for name, function in _DAMAGE.items():
        amount = strength[name]
        if amount:
            clip = function(clip, 1 - amount if name == "contrast" else amount, generator)
    content = [strength[n] / _RANGES[n] for n in ("noise", "blur", "colour", "contrast")] + [
        strength["noise"] ** 0.5
    ]
    motion = [strength[n] / _RANGES[n] for n in ("shuffle", "freeze", "jitter")] + [float(np.log(pace))]
    looks = torch.cat([clip.mean(dim=(0, 1, 2, 3)) * 4 - 2, clip.std().reshape(1) * 4])
    known = film.attributes.clone()
    known[16:20] *= pace if not strength["shuffle"] else float("nan")
    return clip[0], torch.cat(
        [torch.tensor(content), looks, known[:16], torch.tensor(motion), known[16:]]
    ).float()


_DAMAGE = {
    "colour": distortions.colour_shift,
    "contrast": distortions.contrast,
    "blur": distortions.blur,
    "jitter": distortions.jitter,
    "shuffle": distortions.shuffle,
    "freeze": distortions.freeze,
    "noise": distortions.static_noise,
}


def _chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)


def _strength(limit: float, generator: torch.Generator) -> float:
    # Squared, so that weak damage is seen often: that is where a metric is hard put.
    if not _chance(0.3, generator):
        return 0.0
    return max(0.02, float(torch.rand((), generator=generator)) ** 2) * limit


def known_error(answers: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over the targets that are known."""
    known = torch.isfinite(targets)
    return F.mse_loss(answers[known], targets[known])


def train(
    seed: int, steps: int, batch_size: int, films: int
) -> tuple[ClipNetwork, FrameNetwork, dict[str, float]]:
    """Train both networks on one thread; the same seed gives the same weights on the same kind of machine."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = [procedural_film(s, i) for i, s in enumerate(split_seeds("train", films * 3 // 4, seed + 1000))]
    pool += [texture_film(generator) for _ in range(films - len(pool))]
    clip_net, frame_net = ClipNetwork(TARGETS), FrameNetwork(CONTENT_TARGETS)
    parameters = [*clip_net.parameters(), *frame_net.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    clip_loss = frame_loss = torch.zeros(())
    for step in track(range(steps), "metric networks", unit="step"):
        batch = make_batch(pool, batch_size, (8, 6, 8, 12)[step % 4], generator)
        clips = batch.clips.permute(0, 4, 1, 2, 3).contiguous()
        clip_loss = known_error(clip_net(clips), batch.targets)
        picks = torch.randint(clips.shape[2], (2,), generator=generator)
        frames = clips[:, :, picks].transpose(1, 2).flatten(0, 1).contiguous()
        answers = batch.targets[:, :CONTENT_TARGETS].repeat_interleave(2, dim=0)
        frame_loss = known_error(frame_net(frames), answers)
        optimiser.zero_grad()
        (clip_loss + frame_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
    losses = {"clip_loss": round(clip_loss.item(), 4), "frame_loss": round(frame_loss.item(), 4)}
    return clip_net.eval(), frame_net.eval(), losses


def save(networks: dict[str, torch.nn.Module], out: Path, record: dict[str, object]) -> None:
    """Write `embedded.safetensors` (without the heads) and `embedded.json`, the record of its making."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{prefix}.{name}": tensor.contiguous()
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
        if not name.startswith("head.") and not name.endswith("num_batches_tracked")
    }
    path = out / "embedded.safetensors"
    save_file(tensors, path)
    write_json(out / "embedded.json", {**record, "sha256": sha256_file(path), "torch": torch.__version__})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--films", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip_net, frame_net, losses = train(args.seed, args.steps, args.batch_size, args.films)
    command = (
        f"python -m vdmini_core.metrics.train_embedded --seed {args.seed} --steps {args.steps} "
        f"--batch-size {args.batch_size} --films {args.films}"
    )
    save({"clip": clip_net, "frame": frame_net}, args.out, {"command": command, "seed": args.seed, **losses})


if __name__ == "__main__":
    main()
