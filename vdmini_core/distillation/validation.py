"""Students in the middle of their recovery, looked at: sampled beside the teacher, and measured against it.

Noise and conditions are those of the teacher's own samples, made once (`ProfileInputs`), and both are decoded
by the teacher's autoencoder: all that differs is the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.data.video import write_mp4
from vdmini_core.distillation.guards import film_name
from vdmini_core.metrics.showcase import side_by_side
from vdmini_core.models.base import Family
from vdmini_core.profiling.sensitivity import COLUMNS, ProfileInputs, damage, sample_all


class Examiner:
    """Samples a student on held-out clips and compares.

    Args:
        pipeline: the teacher's; its denoiser is not used and may be gone.
        family: of teacher and student.
        inputs: held-out conditions and the teacher's samples, all of them decoded.
        device: where to sample; student and autoencoder are there for that time alone.
    """

    def __init__(self, pipeline: Any, family: Family, inputs: ProfileInputs, device: str) -> None:
        self.pipeline, self.family, self.inputs, self.device = pipeline, family, inputs, device

    def sample(self, student: nn.Module, count: int) -> tuple[Tensor, Tensor]:
        """Latents (n, F, C, h, w) and clips uint8 (n, F, H, W, 3) of the first `count` conditions."""
        rows, training = self.inputs.rows(0, count), student.training
        borrowed = [(part, next(part.parameters()).device) for part in (student, self.pipeline.vae)]
        for part, _ in borrowed:
            part.to(self.device).eval()
        with torch.no_grad():
            given = (rows.noise.to(self.device), rows.conditions.to(self.device))
            sampled = (self.pipeline, self.family, student, *given, rows.settings, rows.batch_size)
            latents = sample_all(*sampled)
            clips = self.family.decode_latents(self.pipeline, latents, rows.settings)
        for part, home in borrowed:
            part.to(home)
        student.train(training)
        return latents.cpu(), clips.cpu()

    def measure(self, student: nn.Module, count: int) -> dict[str, float]:
        """`fvd`, `content`, `motion`, `paired_mse` to the teacher's samples, each with `_low` and `_high`."""
        rows = self.inputs.rows(0, count)
        latents, clips = self.sample(student, count)
        return damage(latents, clips, rows, self._extractors)

    def write_films(self, student: nn.Module, count: int, folder: Path, step: int) -> list[Path]:
        """Write `film_name(step, clip)`, teacher and student side by side, each whole or not at all.

        The first one comes into its place last: where it is, all are.
        """
        _, clips = self.sample(student, count)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for index, clip in enumerate(clips):
            films = {"teacher": self.inputs.clips[index].cpu().numpy(), f"student, step {step}": clip.numpy()}
            written.append(folder / film_name(step, index))
            write_mp4(_partial(written[-1]), side_by_side(films), self.inputs.settings.fps)
        for film in reversed(written):
            _partial(film).replace(film)
        return written

    @cached_property
    def _extractors(self) -> Mapping[str, Any]:
        from vdmini_core.metrics import load_extractor

        return {name: load_extractor(name, device=self.device) for name in COLUMNS}


def _partial(film: Path) -> Path:
    return film.with_name(f".{film.name}.tmp")
