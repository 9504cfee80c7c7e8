"""Where the U-Net's training clips come from: a stored set, or new ones drawn for every step.

Legend: B clips, F frames, C latent channels, h and w latent cells, E image embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from diffusers import StableVideoDiffusionPipeline
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.teacher.one_step import LatentClips, image_embeddings
from vdmini_core.teacher.vae_start import PatchBasis, patch_latents

NEW_CLIPS = 2**31  # of the train split, so many that a training never meets one twice


@dataclass(frozen=True)
class Batch:
    """Scaled latents (B, F, C, h, w) and image embeddings (B, 1, E)."""

    latents: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Draw:
    """A step's clips, their unit noise, shaped as their latents, and noise levels (B,); None: pure noise."""

    batch: Batch
    noise: Tensor
    sigma: Tensor | None = None

    def to(self, device: torch.device) -> Draw:
        """The same there."""
        batch = Batch(self.batch.latents.to(device), self.batch.embeddings.to(device))
        return Draw(batch, self.noise.to(device), None if self.sigma is None else self.sigma.to(device))


def drawn_ahead(draw: Callable[[int], Draw], steps: range, workers: int) -> Iterator[Draw]:
    """`draw` of every step in order, ahead of time in `workers` processes, or when needed with 0."""
    if workers == 0:
        return map(draw, steps)
    loader = DataLoader(
        cast("Dataset[Draw]", _Drawing(draw)),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4,
        multiprocessing_context="fork",  # the scenes' and the encoder's tables are there already
        generator=torch.Generator(),  # leaves the caller's random numbers alone
    )
    return iter(loader)


@dataclass(frozen=True)
class _Drawing:
    draw: Callable[[int], Draw]

    def __getitem__(self, step: int) -> Draw:
        return self.draw(step)


class ClipSource(Protocol):
    """Draws training batches; equal generators give equal batches."""

    @property
    def weights(self) -> Tensor:
        """How much the pixels depend on each latent channel (C,), see `LatentClips`."""

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """`size` clips."""

    def windows(self, size: int, generator: torch.Generator) -> Batch:
        """`size` clips of half the height and width, where things have their usual size."""


@dataclass(frozen=True)
class StoredClips:
    """Clips encoded once."""

    clips: LatentClips

    @property
    def weights(self) -> Tensor:
        """As the clips'."""
        return self.clips.weights

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """`size` clips at random, with replacement."""
        index = torch.randint(len(self.clips.latents), (size,), generator=generator)
        return Batch(self.clips.latents[index].float(), self.clips.embeddings[index])

    def windows(self, size: int, generator: torch.Generator) -> Batch:
        """Random windows of stored clips."""
        whole = self.batch(size, generator)
        height, width = (n // 2 for n in whole.latents.shape[-2:])
        top, left = (int(torch.randint(n + 1, (), generator=generator)) for n in (height, width))
        return replace(whole, latents=whole.latents[..., top : top + height, left : left + width])


@dataclass(frozen=True)
class NewClips:
    """Procedural clips, drawn when they are needed and encoded in closed form."""

    pipeline: StableVideoDiffusionPipeline
    spec: ProceduralSpec
    basis: PatchBasis
    weights: Tensor
    seed: int

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """`size` new clips."""
        return self._draw(self.spec, size, generator)

    def windows(self, size: int, generator: torch.Generator) -> Batch:
        """`size` new clips of a smaller frame."""
        spec = self.spec
        small = replace(spec, height=spec.height // 2, width=spec.width // 2, scale=spec.pixels_per_unit)
        return self._draw(small, size, generator)

    def _draw(self, spec: ProceduralSpec, size: int, generator: torch.Generator) -> Batch:
        first = split_seeds("train", 1, self.seed)[0]
        seeds = torch.randint(NEW_CLIPS, (size,), generator=generator).tolist()
        clips = render_clips(spec, [first + seed for seed in seeds])
        return Batch(patch_latents(clips, self.basis), image_embeddings(self.pipeline, clips))
