"""The whole training of a teacher, from clips to a pipeline: what it trains on, and in which order.

`python -m vdmini_core.teacher` and the stage `teacher` both follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from numpy.typing import NDArray

from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.teacher import loop, vae_start
from vdmini_core.teacher.clip_source import ClipSource, NewClips, StoredClips
from vdmini_core.teacher.measure import decoded_samples
from vdmini_core.teacher.one_step import LatentClips, encode_clips
from vdmini_core.teacher.training import TrainConfig, train_unet
from vdmini_core.teacher.vae_training import BASIS_CLIPS, VaeTrainConfig, train_vae

Clips = NDArray[np.uint8]
# Called after a number of steps with held-out clips and what the network makes of them, both in 0..1.
OnPictures = Callable[[int, NDArray[np.float32], NDArray[np.float32]], None]
HELD_OUT = 16  # clips measured while training
SHOWN = 4  # of these, clips shown
STORED = 256  # clips encoded once where they cannot be encoded in closed form


class TrainingData(Protocol):
    """What a teacher learns from."""

    def vae_clips(self) -> Clips:
        """Clips (n, F, H, W, 3) for the autoencoder; its encoder's basis comes from the first ones."""

    def held_out(self, count: int) -> Clips:
        """Clips that training never sees."""

    def source(self, pipeline: StableVideoDiffusionPipeline, held_out: LatentClips) -> ClipSource:
        """The U-Net's batches."""


@dataclass(frozen=True)
class ProceduralData:
    """Drawn clips, new ones for every step. The autoencoder sees the hard ones, which show more."""

    spec: ProceduralSpec
    seed: int
    count: int = 2000

    def vae_clips(self) -> Clips:
        """`count` clips of level hard."""
        return self._hard(self.count)

    def held_out(self, count: int) -> Clips:
        """Of the validation split."""
        return render_clips(self.spec, split_seeds("validation", count, self.seed))

    def source(self, pipeline: StableVideoDiffusionPipeline, held_out: LatentClips) -> ClipSource:
        """New clips where the encoder is known in closed form, else a stored set."""
        vae = pipeline.vae
        if not vae_start.has_room(vae):
            clips = render_clips(self.spec, split_seeds("train", STORED, self.seed))
            return StoredClips(encode_clips(pipeline, clips))
        return NewClips(pipeline, self.spec, self.basis(vae), held_out.weights, self.seed)

    def basis(self, vae: AutoencoderKLTemporalDecoder) -> vae_start.PatchBasis:
        """The basis that `train_vae` gives the encoder, from the same clips."""
        side = 2 ** (len(vae.config.block_out_channels) - 1)
        return vae_start.patch_basis(
            self._hard(min(BASIS_CLIPS, self.count)), side, vae.config.latent_channels
        )

    def _hard(self, count: int) -> Clips:
        spec = self.spec
        hard = ProceduralSpec(spec.frames, spec.height, spec.width, spec.fps, "hard", spec.scale)
        return render_clips(hard, split_seeds("train", count, self.seed))


@dataclass(frozen=True)
class StoredData:
    """Prepared clips, e.g. of the user's own videos."""

    train: Clips
    validation: Clips

    def vae_clips(self) -> Clips:
        """The training clips."""
        return self.train

    def held_out(self, count: int) -> Clips:
        """The first validation clips."""
        return self.validation[:count]

    def source(self, pipeline: StableVideoDiffusionPipeline, held_out: LatentClips) -> ClipSource:
        """The training clips, encoded once."""
        return StoredClips(encode_clips(pipeline, self.train))


def train_autoencoder(
    pipeline: StableVideoDiffusionPipeline,
    data: TrainingData,
    config: VaeTrainConfig,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
) -> dict[str, Any]:
    """Train the pipeline's autoencoder, resuming from `workdir`, or load it where that is done."""
    done = workdir / "vae"
    if (done / "config.json").is_file():
        pipeline.register_modules(
            vae=AutoencoderKLTemporalDecoder.from_pretrained(done, use_safetensors=True).eval()
        )
        return {}
    result = train_vae(pipeline.vae, data.vae_clips(), config, workdir, on_log)
    loop.save_whole(done, pipeline.vae.save_pretrained)
    return result


def train_generator(
    pipeline: StableVideoDiffusionPipeline,
    data: TrainingData,
    config: TrainConfig,
    workdir: Path,
    on_log: loop.LogFunction | None = None,
    on_pictures: OnPictures | None = None,
    fresh: bool = True,
) -> dict[str, Any]:
    """Train the U-Net of a pipeline with a trained autoencoder, resuming from `workdir`.

    Without `fresh` the U-Net is trained on as it is.
    """
    clips = data.held_out(HELD_OUT)
    held_out = encode_clips(pipeline, clips)

    def show(step: int) -> None:
        if on_pictures is not None:
            real = clips[:SHOWN].astype(np.float32) / np.float32(255)
            on_pictures(step, real, decoded_samples(pipeline, held_out, SHOWN))

    return train_unet(
        pipeline, data.source(pipeline, held_out), config, workdir, on_log, held_out, show, fresh
    )
