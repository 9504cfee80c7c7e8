"""What every Ray Train worker does in `distill`: build, resume, step, report. Imported on the workers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist
from ray import train
from ray.train.torch import get_device
from torch import Tensor

from vdmini_core.artifacts import read_json, write_json
from vdmini_core.distillation.data import RecoveryBatches, load_recovery_data, seed_of
from vdmini_core.distillation.recovery_step import Average, RecoveryStep
from vdmini_core.errors import TrainingError, VDMiniError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.registry import family_of, load_pipeline
from vdmini_core.params import DistillParams

STATE, LOSSES, COMPLETE, FAILED = "state.pt", "losses.jsonl", "complete.json", "failed.json"


@dataclass(frozen=True)
class RecoverySpec:
    """All that a worker is told, as plain data: paths are absolute, on storage that every worker sees."""

    teacher: str
    student: str
    latents: str
    work: str
    feature_pairs: list[list[str]]
    settings: dict[str, Any]
    params: dict[str, Any]
    seed: int
    threads: int
    resume_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `train_loop_config`."""
        return asdict(self)


def train_worker(config: dict[str, Any]) -> None:
    """The training function of the `TorchTrainer`, the same on every worker.

    A `TrainingError` comes to every worker at the same step, because it is decided on averaged numbers;
    it is written down for the driver instead of raised, as trying again would only meet it again.
    """
    spec = RecoverySpec(**config)
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(spec.threads)
    _sign_in(Path(spec.work), rank)
    recovery, batches = build(spec, get_device(), average_over(world))
    rows = resume(recovery, spec)
    try:
        train_loop(recovery, batches, rows, spec, rank, world)
    except TrainingError as error:
        if rank == 0:
            write_json(Path(spec.work) / FAILED, {k: getattr(error, k) for k in ERROR_PARTS})


ERROR_PARTS = ("problem", "expected", "found", "fix")


def build(
    spec: RecoverySpec, device: torch.device, average: Average | None = None
) -> tuple[RecoveryStep, RecoveryBatches]:
    """Models from their directories, and the step around them."""
    params, settings = DistillParams.model_validate(spec.params), SamplingSettings(**spec.settings)
    family = family_of(Path(spec.teacher))
    teacher, student = (
        getattr(load_pipeline(Path(folder)), family.denoiser_name).to(device)
        for folder in (spec.teacher, spec.student)
    )
    batches = RecoveryBatches(
        load_recovery_data(Path(spec.latents)),
        family,
        settings,
        params.batch_size,
        spec.seed,
        params.conditioning_dropout,
    )
    recovery = RecoveryStep(
        family,
        student,
        teacher,
        [(pair[0], pair[1]) for pair in spec.feature_pairs],
        params,
        batches.batch(0, 0, params.batch_size).to(device),
        one_step=settings.steps == 1,
        seed=seed_of(spec.seed, "heads") % 2**31,
        average=average,
        settings=settings,
    )
    return recovery, batches


def average_over(world: int) -> Average | None:
    """Averaging of tensors over workers: one all-reduce of everything flattened, once per step."""
    if world == 1:
        return None

    def average(tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= world
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    return average


def train_loop(
    recovery: RecoveryStep,
    batches: RecoveryBatches,
    rows: list[dict[str, Any]],
    spec: RecoverySpec,
    rank: int,
    world: int,
) -> None:
    """Step to the end, reporting a checkpoint every `checkpoint_every` steps and at the last one."""
    params, device = recovery.params, next(recovery.student.parameters()).device
    live = Path(spec.work) / LOSSES if rank == 0 else Path(os.devnull)
    with live.open("w", encoding="utf-8", buffering=1) as log:
        log.writelines(json.dumps(row) + "\n" for row in rows)
        spent: list[float] = []
        while recovery.step_count < params.steps:
            began = time.perf_counter()
            batch = batches.batch(recovery.step_count, rank, world).to(device)
            terms = recovery.step(batch)
            spent.append(time.perf_counter() - began)
            rows.append({"step": recovery.step_count, **{k: float(f"{v:.7g}") for k, v in terms.items()}})
            log.write(json.dumps(rows[-1]) + "\n")
            if recovery.step_count % params.checkpoint_every == 0 or recovery.step_count == params.steps:
                report(recovery, rows, Path(spec.work), rank)
    if rank == 0 and spent:
        write_json(Path(spec.work) / "speed.json", {"ms_per_step": round(1000 * median(spent), 1)})


def report(recovery: RecoveryStep, rows: list[dict[str, Any]], work: Path, rank: int) -> None:
    """Hand Ray a checkpoint (rank 0) or nothing (the others); a barrier, so all call it equally often."""
    if rank:
        train.report(rows[-1])
        return
    folder = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=work))
    try:
        save_checkpoint(recovery.state_dict(), rows, folder)
        checkpoint = train.Checkpoint.from_directory(folder)
        name = f"checkpoint-{recovery.step_count:08d}"
        train.report(rows[-1], checkpoint=checkpoint, checkpoint_dir_name=name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_checkpoint(state: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> None:
    """Write state, loss curve so far, and the sizes by which a torn copy is told from a whole one."""
    torch.save(state, folder / STATE)
    (folder / LOSSES).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sizes = {name: (folder / name).stat().st_size for name in (STATE, LOSSES)}
    write_json(folder / COMPLETE, {"step": state["step"], "sizes": sizes})


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is there in full."""
    try:
        sizes = read_json(folder / COMPLETE)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (VDMiniError, OSError, KeyError, TypeError):
        return False


def newest_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint below a run's storage folder."""
    return next((p for p in sorted(run.glob("checkpoint-*"), reverse=True) if is_complete(p)), None)


def load_state(folder: Path) -> dict[str, Any]:
    """Tensors and numbers of a checkpoint, on the CPU; nothing in it is executed."""
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `losses.jsonl`; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def resume(recovery: RecoveryStep, spec: RecoverySpec) -> list[dict[str, Any]]:
    """Load the checkpoint that Ray knows (or the driver found) and return the loss curve up to it."""
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            return _restore(recovery, Path(directory))
    return _restore(recovery, Path(spec.resume_from)) if spec.resume_from else []


def _restore(recovery: RecoveryStep, folder: Path) -> list[dict[str, Any]]:
    recovery.load_state_dict(load_state(folder))
    return read_rows(folder / LOSSES)


def _sign_in(work: Path, rank: int) -> None:
    folder = work / "workers"
    folder.mkdir(exist_ok=True)
    process = psutil.Process()
    write_json(folder / f"{rank}.json", {"pid": process.pid, "started": process.create_time()})


def end_leftovers(work: Path, patience_s: float = 10.0) -> None:
    """End the workers of a killed driver that still run: they would write where this run writes.

    Ray's own processes follow their driver into death; a worker in the middle of a step takes a moment.
    Only processes whose start time is the recorded one are touched.
    """
    left = [process for path in sorted((work / "workers").glob("*.json")) if (process := _alive(path))]
    psutil.wait_procs(left, timeout=min(2.0, patience_s))
    for process in left:
        if process.is_running():
            process.kill()
    psutil.wait_procs(left, timeout=patience_s)
    shutil.rmtree(work / "workers", ignore_errors=True)


def _alive(path: Path) -> psutil.Process | None:
    try:
        entry = read_json(path)
        process = psutil.Process(entry["pid"])
        return process if abs(process.create_time() - entry["started"]) < 0.5 else None
    except (VDMiniError, psutil.Error):
        return None
