"""What a training worker does beside its steps: live figures, sample videos, validation, exported students.

Only rank 0 writes and measures. All workers come through the same calls, because gathering the averaged
weights may need every one of them.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vdmini_core.artifacts import read_json, write_json
from vdmini_core.distillation.cost.devices import peak_flops
from vdmini_core.distillation.depth import merged_weights
from vdmini_core.distillation.guards import History
from vdmini_core.distillation.memory_in_use import memory_in_use
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.sharding import whole_state
from vdmini_core.distillation.utilisation import step_flops
from vdmini_core.errors import VDMiniError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.denoiser import WEIGHTS, load_denoiser
from vdmini_core.models.precision import DTYPES
from vdmini_core.models.registry import family_of, load_pipeline

if TYPE_CHECKING:
    from tasks.recovery_worker import RecoverySpec
    from vdmini_core.distillation.validation import Examiner

# Below the stage's scratch folder.
STORAGE = Path("ray") / "recovery"
HISTORY, INPUTS, SAMPLES, STUDENTS = "history.json", "validation.safetensors", "samples", "students"
STARTS = "starts.jsonl"  # a line for every time the workers were started
RECENT = 10  # steps over which the rate is taken


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint of a step."""
    return f"checkpoint-{step:08d}"


def student_folder(work: Path, step: int) -> Path:
    """Pipeline directory of the averaged student of a step."""
    return work / STUDENTS / f"step-{step:08d}"


def weights_file(student: Path) -> Path:
    """The denoiser's weights in a pipeline directory of `export_student`."""
    return student / family_of(student).denoiser_name / f"{WEIGHTS}.safetensors"


def averaged_weights(recovery: RecoveryStep, rank: int) -> dict[str, Tensor]:
    """The whole state of the averaged student on rank 0; every worker calls it."""
    if recovery.skeleton is not None:
        return whole_state(recovery.skeleton, recovery.ema.tensors, keep=rank == 0)
    state = {**recovery.student.state_dict(), **recovery.ema.tensors}
    return merged_weights(recovery.student, state) if recovery.params.depth == "lora" else state


@dataclass
class Watch:
    """Eyes on one attempt of a recovery.

    Attributes:
        spec: what the worker was told.
        recovery: what learns.
        history: gets the validations.
        rank: of this worker.
    """

    spec: RecoverySpec
    recovery: RecoveryStep
    history: History
    rank: int
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.work, self.first = Path(self.spec.work), self.recovery.step_count
        self.device = next(self.recovery.student.parameters()).device
        self.settings = SamplingSettings(**self.spec.settings)

    def tell(self) -> None:
        """Show the driver the history; what is kept of it lies in the checkpoints."""
        if self.rank == 0:
            write_json(self.work / HISTORY, self.history.to_dict())

    def checkpoint_due(self) -> bool:
        """A checkpoint is written every `checkpoint_every` steps, after the last, and with a validation."""
        step, params = self.recovery.step_count, self.recovery.params
        return step % params.checkpoint_every == 0 or step == params.steps or self._validation_due()

    def after_step(self) -> None:
        """Write sample videos where it is time."""
        every = self.recovery.params.sample_every
        if not every or self.recovery.step_count % every or not self.recovery.params.sample_clips:
            return
        weights = averaged_weights(self.recovery, self.rank)
        if self.rank == 0:
            count, step = self.recovery.params.sample_clips, self.recovery.step_count
            self.examiner.write_films(self._student(weights), count, self.work / SAMPLES, step)

    def before_checkpoint(self) -> None:
        """Measure the averaged student where it is time, and write it as a pipeline directory."""
        weights = averaged_weights(self.recovery, self.rank)
        if self.rank:
            return
        step = self.recovery.step_count
        if self._validation_due():
            count = self.recovery.params.validate_clips
            self.history.validations.append(
                {"step": step, **self.examiner.measure(self._student(weights), count)}
            )
        export_student(weights, Path(self.spec.student), student_folder(self.work, step))

    def after_checkpoint(self) -> None:
        """Remove students that no checkpoint needs."""
        if self.rank == 0:
            drop_students(self.work, self.recovery.params.select_by, self.history)
            self.tell()

    def best_weights(self) -> Path | None:
        """File of the best student so far; None where it is the present one, or the best is not kept."""
        params = self.recovery.params
        step = self.history.best(params.select_by) if params.select == "best" else None
        if self.rank or step is None or step == self.recovery.step_count:
            return None
        return weights_file(student_folder(self.work, step))

    def _validation_due(self) -> bool:
        step, params = self.recovery.step_count, self.recovery.params
        every = params.validate_every
        return bool(every) and (step % every == 0 or step == params.steps)

    @cached_property
    def examiner(self) -> Examiner:
        """Samples and measures; made when first needed."""
        from vdmini_core.distillation.validation import Examiner
        from vdmini_core.profiling.sensitivity import ProfileInputs

        pipeline = load_pipeline(Path(self.spec.teacher), dtype=DTYPES[self.spec.precision])
        family = family_of(pipeline)
        pipeline.register_modules(**{family.denoiser_name: self._blank})  # the teacher is in memory already
        inputs = ProfileInputs.load(
            self.work / INPUTS, self.settings, self.spec.sampling_batch, self.spec.seed, "cpu"
        )
        return Examiner(pipeline, family, inputs, str(self.device))

    @cached_property
    def _blank(self) -> nn.Module:
        return load_denoiser(Path(self.spec.student), dtype=DTYPES[self.spec.precision])

    def _student(self, weights: dict[str, Tensor]) -> nn.Module:
        self._blank.load_state_dict(weights)
        return self._blank

    def vitals(self, spent: Sequence[float]) -> dict[str, float]:
        """Live figures after a step, of this worker's clock and memory; empty on all but rank 0.

        Args:
            spent: seconds of each step of this attempt so far.
        """
        if self.rank:
            return {}
        done = self.recovery.step_count - self.first
        left = self.recovery.params.steps - self.recovery.step_count
        norms = {f"grad_norm/{name}": norm for name, norm in self.recovery.part_norms.items()}
        return {**norms, **self.speed(spent[-RECENT:]), "seconds_left": self._elapsed() / done * left}

    def speed(self, spent: Sequence[float]) -> dict[str, float]:
        """Clips a second over all workers, memory of rank 0 (MiB), and utilisation of the GPUs."""
        seconds = median(spent)
        clips = self.recovery.params.batch_size / seconds
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"clips_per_s": round(clips, 3), "memory/rss_peak_mib": round(peak_kib / 1024, 1)}
        if (in_use := memory_in_use()) is not None:
            found["memory/in_use_mib"] = round(in_use, 3)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
            found["memory/cuda_peak_mib"] = round(peak, 1)
            if self._peak_flops:
                found["mfu"] = round(clips * self._clip_flops / (self.spec.gpus * self._peak_flops), 4)
        return found

    def _elapsed(self) -> float:
        return time.perf_counter() - self.began

    @cached_property
    def _peak_flops(self) -> float | None:
        return peak_flops(torch.cuda.get_device_name(self.device), self.recovery.params.precision)

    @cached_property
    def _clip_flops(self) -> int:
        recovery = self.recovery
        models = (recovery.student, recovery.teacher)
        weights = recovery.task_weights
        judges = recovery.judges
        taught = bool("mca" in judges or recovery.pairs or weights["teacher"] or weights["consistency"])
        consistent = bool(weights["consistency"] and recovery.params.lambda_task)
        points = tuple(recovery.points)
        flops = partial(step_flops, taught=taught, consistent=consistent, judges=len(judges))
        return flops(*models, points, self.settings)


def export_student(weights: dict[str, Tensor], source: Path, folder: Path) -> None:
    """Write a pipeline directory that any tool loads: its own denoiser, links to all else in `source`.

    Appears whole or not at all; one of the same step is replaced.
    """
    partial = folder.with_name(f".{folder.name}.tmp")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    name = family_of(source).denoiser_name
    (partial / name).mkdir(parents=True)
    for part in source.iterdir():
        if part.name != name:
            (partial / part.name).symlink_to(part, target_is_directory=part.is_dir())
    shutil.copyfile(source / name / "config.json", partial / name / "config.json")
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    save_file(tensors, partial / name / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
    partial.rename(folder)


def drop_students(work: Path, select_by: str, live: History) -> None:
    """Remove the students that belong to no checkpoint and are not the best that one of them knows.

    `live` is the history up to now: its checkpoint may still be on its way.
    """
    known = [live]
    for path in (work / STORAGE).glob("checkpoint-*"):
        try:
            known.append(History(**read_json(path / HISTORY)))
        except (VDMiniError, OSError, TypeError):
            continue  # being removed by Ray, or not whole yet
    steps = {step for history in known for step in (history.saved, history.best(select_by)) if step}
    needed = {student_folder(work, step) for step in steps}
    for folder in (work / STUDENTS).glob("step-*"):
        if folder not in needed:
            shutil.rmtree(folder, ignore_errors=True)
