"""What the recovery trains on: latents and conditions of clips, and batches that need no loader state.

Every batch is a pure function of (seed, step): which clips, which noise, which levels. A worker takes its
slice of it, so a resumed run, or one with another number of workers, sees the same global batches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from vdmini_core.distillation.consistency import OwnTaskFamily
from vdmini_core.distillation.discriminator import renoise_sigmas
from vdmini_core.models.base import Conditions, Family, SamplingSettings


@dataclass(frozen=True)
class RecoveryData:
    """Latents (n, F, C, h, w) of clips, scaled as the denoiser expects, and their conditions, in memory."""

    latents: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return self.latents.shape[0]

    def rows(self, index_B: Tensor) -> RecoveryData:
        """Those of the clips `index_B` (1-d long)."""
        return RecoveryData(self.latents[index_B], self.conditions.select(index_B))


class RecoverySource(Protocol):
    """Where rows come from: memory, shards on disk, or clips that are encoded on the way."""

    def __len__(self) -> int:
        """Training clips there are."""
        ...

    def rows(self, index_B: Tensor) -> RecoveryData:
        """Latents and conditions of the clips `index_B` (1-d long), on the CPU."""
        ...


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
        weight: its clips over those that a worker has on average: a mean over workers of means over clips,
            weighted so, is the mean over all clips.
    """

    clean_BFChw: Tensor
    noisy_BFChw: Tensor
    sigma_B: Tensor
    renoise_BFChw: Tensor
    renoise_sigma_B: Tensor
    conditions: Conditions
    weight: float = 1.0

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> RecoveryBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved, conditions=self.conditions.to(device))

    def is_finite(self) -> bool:
        """Whether latents and conditions are; where they are not, no learning rate helps."""
        tensors = (self.clean_BFChw, self.noisy_BFChw, *self.conditions.tensors.values())
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def split(self, parts: int) -> list[RecoveryBatch]:
        """Slices of the batch in order, as even as can be; single clips where it has fewer than `parts`.

        Their weights add up to that of the batch.
        """
        clips = len(self.sigma_B)
        parts = min(parts, clips)
        if parts == 1:
            return [self]
        return [self._slice(*_bounds(clips, part, parts)) for part in range(parts)]

    def _slice(self, start: int, stop: int) -> RecoveryBatch:
        cut: dict[str, Any] = {name: tensor[start:stop] for name, tensor in self._tensors().items()}
        share = (stop - start) / len(self.sigma_B)
        return replace(self, **cut, conditions=self.conditions.slice(start, stop), weight=self.weight * share)


def _bounds(count: int, place: int, places: int) -> tuple[int, int]:
    """From where to where share `place` of `places` goes, of `count` things."""
    return place * count // places, (place + 1) * count // places


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
        data: latents and conditions of the training clips.
        family: knows the noise levels.
        settings: sampling settings of the teacher; one step means one level, from pure noise.
        batch_size: clips per step over all workers.
        seed: root of every random number.
        dropout: share of clips whose conditions are blanked, for classifier-free guidance.
    """

    data: RecoverySource
    family: Family
    settings: SamplingSettings
    batch_size: int
    seed: int
    dropout: float = 0.0

    def batch(self, step: int, rank: int = 0, world: int = 1) -> RecoveryBatch:
        """Slice `rank` of `world` of the batch of step `step` (from 0), as even as can be."""
        slots = range(*_bounds(self.batch_size, rank, world))
        index = clip_indices(self.seed, step, self.batch_size, len(self.data))[slots.start : slots.stop]
        levels = generator_of(self.seed, "levels", step)
        sigma_B = self.family.training_sigmas(self.settings, self.batch_size, levels)[
            slots.start : slots.stop
        ]
        renoise_B = renoise_sigmas(self.batch_size, levels)[slots.start : slots.stop]
        dropped_B = (torch.rand(self.batch_size, generator=levels) < self.dropout)[slots.start : slots.stop]
        guidance = self._guidance(levels)
        rows = self.data.rows(index)
        clean = rows.latents
        noise = _noise(clean.shape[1:], self.seed, step, slots, "noise")
        return RecoveryBatch(
            clean_BFChw=clean,
            noisy_BFChw=self._noisy(clean, noise, sigma_B),
            sigma_B=sigma_B,
            renoise_BFChw=_noise(clean.shape[1:], self.seed, step, slots, "renoise"),
            renoise_sigma_B=renoise_B,
            conditions=_told(
                _blank(rows.conditions, dropped_B),
                None if guidance is None else guidance[slots.start : slots.stop],
            ),
            weight=len(slots) * world / self.batch_size,
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
    # Ids (frame rate and the like) and numbers (guidance that the model is told, its shift of noise levels)
    # stay: base models drop what is seen, not how it is played.
    seen = {name: t for name, t in tensors.items() if t.ndim > 1 and not name.endswith("_ids")}
    blanked = {name: t * (~dropped_B).view(-1, *[1] * (t.ndim - 1)) for name, t in seen.items()}
    return Conditions(tensors | blanked)


def _told(conditions: Conditions, guidance_B: Tensor | None) -> Conditions:
    if guidance_B is None:
        return conditions
    scale = guidance_B.to(conditions.tensors["guidance"])
    return Conditions(conditions.tensors | {"guidance": scale})
