"""What the recovery trains on: latents and conditions computed once, and batches that need no loader state.

Every batch is a pure function of (seed, step): which clips, which noise, which levels. A worker takes its
slice of it, so a resumed run, or one with another number of workers, sees the same global batches.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdmini_core.artifacts import digest_of, read_json, write_json
from vdmini_core.distillation.consistency import OwnTaskFamily
from vdmini_core.distillation.discriminator import renoise_sigmas
from vdmini_core.errors import DataError
from vdmini_core.models.base import Conditions, Family, SamplingSettings
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.progress import track

SHARD_CLIPS = 8
COMPLETE = "complete.json"
CONDITION = "condition."


@dataclass(frozen=True)
class RecoveryData:
    """Latents (n, F, C, h, w) of the training clips, scaled as the denoiser expects, and their conditions."""

    latents: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True)
class RecoveryBatch:
    """One worker's part of one step; everything random in a step is in here.

    Attributes:
        clean_BFChw: latents of the real clips.
        noisy_BFChw: what the denoisers see.
        sigma_B: noise level of `noisy`.
        renoise_BFChw: unit noise for the discriminator's inputs, the same for fake and real.
        renoise_sigma_B: its level σ'.
        conditions: first frames and the like.
    """

    clean_BFChw: Tensor
    noisy_BFChw: Tensor
    sigma_B: Tensor
    renoise_BFChw: Tensor
    renoise_sigma_B: Tensor
    conditions: Conditions

    def to(self, device: torch.device | str) -> RecoveryBatch:
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if k != "conditions"}
        return RecoveryBatch(**moved, conditions=self.conditions.to(device))


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of`; CPU, so that the numbers do not depend on the device."""
    return torch.Generator().manual_seed(seed_of(*parts))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator_of(seed, "epoch", epoch))


def clip_indices(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """Which clips step `step` (from 0) sees: consecutive places in an endless row of shuffled epochs."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([_permutation(seed, place // count, count)[place % count] for place in places])


def _noise(shape: torch.Size, seed: int, step: int, slots: range, purpose: str) -> Tensor:
    # one generator per place in the global batch, so that slices of any size agree with the whole
    return torch.stack(
        [torch.randn(shape, generator=generator_of(seed, purpose, step, slot)) for slot in slots]
    )


@dataclass(frozen=True)
class RecoveryBatches:
    """Turns (seed, step) into a worker's batch.

    Attributes:
        data: latents and conditions of all training clips.
        family: knows the noise levels.
        settings: sampling settings of the teacher; one step means one level, from pure noise.
        batch_size: clips per step over all workers.
        seed: root of every random number.
        dropout: share of clips whose conditions are blanked, for classifier-free guidance.
    """

    data: RecoveryData
    family: Family
    settings: SamplingSettings
    batch_size: int
    seed: int
    dropout: float = 0.0

    def batch(self, step: int, rank: int = 0, world: int = 1) -> RecoveryBatch:
        """Slice `rank` of `world` equal ones of the batch of step `step` (from 0)."""
        share = self.batch_size // world
        slots = range(rank * share, (rank + 1) * share)
        index = clip_indices(self.seed, step, self.batch_size, len(self.data))[slots.start : slots.stop]
        levels = generator_of(self.seed, "levels", step)
        sigma_B = self.family.training_sigmas(self.settings, self.batch_size, levels)[
            slots.start : slots.stop
        ]
        renoise_B = renoise_sigmas(self.batch_size, levels)[slots.start : slots.stop]
        dropped_B = (torch.rand(self.batch_size, generator=levels) < self.dropout)[slots.start : slots.stop]
        guidance = self._guidance(levels)
        clean = self.data.latents[index]
        noise = _noise(clean.shape[1:], self.seed, step, slots, "noise")
        return RecoveryBatch(
            clean_BFChw=clean,
            noisy_BFChw=self._noisy(clean, noise, sigma_B),
            sigma_B=sigma_B,
            renoise_BFChw=_noise(clean.shape[1:], self.seed, step, slots, "renoise"),
            renoise_sigma_B=renoise_B,
            conditions=_told(
                _blank(self.data.conditions.select(index), dropped_B),
                None if guidance is None else guidance[slots.start : slots.stop],
            ),
        )

    def _guidance(self, levels: torch.Generator) -> Tensor | None:
        """Guidance scales of the whole batch, where the base model was trained with drawn ones."""
        if not isinstance(self.family, OwnTaskFamily):
            return None
        return self.family.training_guidance(self.settings, self.batch_size, levels)

    def _noisy(self, clean: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        # At the top level sampling starts from noise alone: adding the clip would leak its low frequencies
        # into a prediction that has to do without them.
        one_step = replace(self.settings, steps=1)
        top = self.family.training_sigmas(one_step, 1, generator_of(self.seed, "top")).max()
        inside = (sigma_B < top * (1 - 1e-6)).to(clean.dtype)[:, None, None, None, None]
        return sigma_B[:, None, None, None, None] * noise + inside * clean


def _blank(conditions: Conditions, dropped_B: Tensor) -> Conditions:
    if not dropped_B.any():
        return conditions
    tensors = conditions.tensors
    empty = {name.removeprefix("negative_"): t for name, t in tensors.items() if name.startswith("negative_")}
    if empty:  # a text is blank where it is the empty text's; all else stays
        rows = {name: dropped_B.view(-1, *[1] * (t.ndim - 1)) for name, t in empty.items()}
        return Conditions(tensors | {n: torch.where(rows[n], t, tensors[n]) for n, t in empty.items()})
    blanked = {
        # ids (frame rate and the like) stay: base models drop what is seen, not how it is played
        name: tensor if name.endswith("_ids") else tensor * (~dropped_B).view(-1, *[1] * (tensor.ndim - 1))
        for name, tensor in tensors.items()
    }
    return Conditions(blanked)


def _told(conditions: Conditions, guidance_B: Tensor | None) -> Conditions:
    if guidance_B is None:
        return conditions
    scale = guidance_B.to(conditions.tensors["guidance"])
    return Conditions(conditions.tensors | {"guidance": scale})


def precompute(
    family: Family,
    pipeline: Any,
    clips: Tensor,
    settings: SamplingSettings,
    seed: int,
    folder: Path,
    identity: Any,
    prompts: Sequence[str] | None = None,
) -> None:
    """Encode every training clip once, in shards that survive a kill; nothing is done where all is there.

    Args:
        family: how clips become latents and conditions.
        pipeline: the teacher's pipeline with its autoencoder and image encoder.
        clips: uint8 (n, F, H, W, 3).
        settings: what the conditions are made for.
        seed: of the noise augmentation of the conditions.
        folder: where the shards go.
        identity: JSON-able data that says what the shards were made from.
        prompts: of the clips, for a teacher that needs them.

    Raises:
        DataError: when there are no clips, or `folder` holds shards of something else.
    """
    if not len(clips):
        raise DataError(
            "there are no training clips", expected="at least one clip", fix="run `vdmini prepare`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, {"identity": digest_of(identity), "clips": len(clips), "shard_clips": SHARD_CLIPS})
    starts = [start for start in range(0, len(clips), SHARD_CLIPS) if not _shard(folder, start).exists()]
    for start in track(starts, "encode clips", unit="shard") if starts else ():
        part = clips[start : start + SHARD_CLIPS]
        with torch.no_grad():
            latents = family.encode_clips(pipeline, part)
            seeds = [seed_of(seed, "conditions", start + place) for place in range(len(part))]
            inputs = ClipInputs(
                part[:, 0], None if prompts is None else tuple(prompts[start : start + len(part)])
            )
            given = family.conditions(pipeline, inputs, settings, seeds)
        _save_shard(_shard(folder, start), latents, given)
    write_json(folder / COMPLETE, {"clips": len(clips)})


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "identity.json"
    if path.exists() and read_json(path) != identity:
        raise DataError(
            "the cached latents belong to other clips or another teacher",
            found=str(folder),
            fix="delete that folder and run the stage again",
        )
    write_json(path, identity)


def _shard(folder: Path, start: int) -> Path:
    return folder / f"latents-{start:06d}.safetensors"


def _save_shard(path: Path, latents: Tensor, given: Conditions) -> None:
    tensors = {"latents": latents.float(), **{CONDITION + k: v for k, v in given.tensors.items()}}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary)
    temporary.replace(path)


def load_recovery_data(folder: Path) -> RecoveryData:
    """Read what `precompute` wrote.

    Raises:
        DataError: when it was not finished.
    """
    if not (folder / COMPLETE).exists():
        raise DataError("the latents of the training clips are not complete", found=str(folder))
    shards = list(_read_shards(folder))
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    latents = joined.pop("latents")
    given = {name.removeprefix(CONDITION): tensor for name, tensor in joined.items()}
    return RecoveryData(latents, Conditions(given))


def _read_shards(folder: Path) -> Iterator[dict[str, Tensor]]:
    for path in sorted(folder.glob("latents-*.safetensors")):
        yield load_file(path)
