"""Clips -> what the recovery trains on: latents and conditions, each clip by itself.

Convolution and matrix kernels give other last bits in other batches. Here every clip goes through the
autoencoder and the encoders alone, with a seed that depends on its number in the split: which batch, shard
or worker it is in does not matter, so that latents made beforehand and latents made on the way are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdmini_core.data.clip_source import ClipSource
from vdmini_core.distillation.data import RecoveryData, seed_of
from vdmini_core.errors import DataError
from vdmini_core.models.base import Conditions, Family, SamplingSettings
from vdmini_core.models.inputs import ClipInputs


@dataclass(frozen=True)
class ClipEncoder:
    """Encodes clips of the training split.

    Attributes:
        family: how clips become latents (the posterior's mode) and conditions.
        pipeline: the teacher's, with its autoencoder and encoders.
        settings: what the conditions are made for.
        seed: root of the seeds of the conditions.
        prompts: of all clips of the split, for a teacher that needs them.
    """

    family: Family
    pipeline: Any
    settings: SamplingSettings
    seed: int
    prompts: Sequence[str] | None = None

    def encode(self, clips: ClipSource, indices: Sequence[int]) -> RecoveryData:
        """Latents (B, F, C, h, w), float32, and conditions of the clips `indices`, on the CPU.

        Raises:
            DataError: naming a clip whose latents or conditions are not finite: every step that meets it
                would fail, whatever the learning rate.
        """
        rows = [self._encode_one(clips.read([index]), index) for index in indices]
        return RecoveryData(
            torch.cat([row.latents for row in rows]),
            Conditions(
                {
                    name: torch.cat([row.conditions.tensors[name] for row in rows])
                    for name in rows[0].conditions.tensors
                }
            ),
        )

    @torch.no_grad()
    def _encode_one(self, clip_1FHWC: Tensor, index: int) -> RecoveryData:
        seeds = [seed_of(self.seed, "conditions", index)]
        inputs = ClipInputs(clip_1FHWC[:, 0], None if self.prompts is None else (self.prompts[index],))
        given = self.family.conditions(self.pipeline, inputs, self.settings, seeds)
        latents = self.family.encode_clips(self.pipeline, clip_1FHWC)
        row = RecoveryData(latents.float().cpu(), _not_half(given.to("cpu")))
        named = {"latents": row.latents, **row.conditions.tensors}
        if broken := [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]:
            raise DataError(
                f"training clip {index} is encoded to values that are not finite: {', '.join(broken)}",
                expected="finite numbers from the teacher's autoencoder and encoders",
                fix="use sampling.precision=fp32 where it was fp16 or bf16; `index.json` of prepare names "
                "the clip's video",
            )
        return row


def _not_half(conditions: Conditions) -> Conditions:
    """Conditions that were made in half precision, in the float32 that the recovery computes in."""
    return Conditions(
        {
            name: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
            for name, t in conditions.tensors.items()
        }
    )


@dataclass(frozen=True)
class EncodedClips:
    """`RecoverySource` that encodes clips when they are asked for: nothing is kept."""

    encoder: ClipEncoder
    clips: ClipSource

    def __len__(self) -> int:
        return len(self.clips)

    def rows(self, index_B: Tensor) -> RecoveryData:
        """Latents and conditions of these clips."""
        return self.encoder.encode(self.clips, index_B.tolist())
