"""What every Ray Train worker does in `distill`: build, resume, step, report. Imported on the workers."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from ray import train
from ray.train.torch import get_device
from torch.distributed.device_mesh import DeviceMesh

from tasks.encoding import EncodeSpec, recovery_source
from tasks.loss_curve import LossCurve
from tasks.recovery_checkpoints import (
    LOSSES,
    Outbox,
    is_complete,
    newest_checkpoint,
    save_checkpoint,
)
from tasks.recovery_stop import Notice, Notices, learning
from tasks.recovery_watch import HISTORY, STARTS, STORAGE, Watch, checkpoint_name
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.distillation.ahead import BatchesAhead
from vdmini_core.distillation.data import RecoveryBatches, seed_of
from vdmini_core.distillation.guards import History
from vdmini_core.distillation.memory_in_use import large_pieces_apart
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.distillation.workers import Average, meet, mesh_over
from vdmini_core.errors import TrainingError, VDMiniError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.denoiser import load_denoiser
from vdmini_core.models.registry import family_of
from vdmini_core.params import DistillParams

FAILED = "failed.json"


@dataclass(frozen=True)
class RecoverySpec:
    """All that a worker is told, as plain data: paths are absolute, on storage that every worker sees."""

    teacher: str
    student: str
    prepared: str
    latents: str
    work: str
    feature_pairs: list[list[str]]
    settings: dict[str, Any]
    params: dict[str, Any]
    seed: int
    threads: int
    sampling_batch: int = 8
    precision: str = "fp32"  # of what is sampled or encoded; `params` has that of the training
    gpus: float = 0.0  # over all workers
    resume_from: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `train_loop_config`."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where a worker stands among the others.

    Attributes:
        device: of this worker.
        rank: of this worker.
        world: number of workers.
        mesh: over which the models are spread, for `parallel: fsdp2`.
        notices: what the workers are told.
        outbox: takes this worker's checkpoints to storage.
    """

    device: torch.device
    rank: int
    world: int
    mesh: DeviceMesh | None
    notices: Notices
    outbox: Outbox


def train_worker(config: dict[str, Any]) -> None:
    """The training function of the `TorchTrainer`, the same on every worker.

    A `TrainingError` comes to every worker at the same step, because it is decided on averaged numbers:
    all go back to the last checkpoint and try again at smaller rates. The last one is written down for the
    driver instead of raised, as Ray's trying again would only meet it again.
    """
    spec = RecoverySpec(**config)
    context, work = train.get_context(), Path(spec.work)
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(spec.threads)
    large_pieces_apart()
    _sign_in(work, rank)
    device = get_device()
    mesh = mesh_over(world, device) if spec.params["parallel"] == "fsdp2" else None
    place = Place(device, rank, world, mesh, Notices(work, rank, world), Outbox(work))
    broken: History | None = None
    try:
        with learning(work, rank):
            while (broken := attempt(spec, place, broken)) is not None:
                place.outbox.wait()
                # FSDP2's hooks hold the broken attempt in circles; the next one needs its memory
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                meet(world)
    except TrainingError as error:
        if rank == 0:
            write_json(work / FAILED, {k: getattr(error, k) for k in ERROR_PARTS})
    finally:
        place.outbox.close()


def attempt(spec: RecoverySpec, place: Place, broken: History | None) -> History | None:
    """Train from the last checkpoint, or the beginning, to the end, or until the workers are told to stop.

    Args:
        spec: what to train.
        place: of this worker.
        broken: what the attempt before returned.

    Returns:
        The history with one more rollback where a step broke, None at the end.

    Raises:
        TrainingError: where no rollback is left.
        NodeDrained: where Ray is to start the workers elsewhere.
    """
    recovery, batches = build(spec, place.device, place.notices.average, place.mesh)
    curve = LossCurve(place.outbox.folder / LOSSES)
    history = resume(recovery, spec, curve, broken)
    if not history.sight:
        example = batches.batch(0, 0, recovery.params.batch_size).to(place.device)
        history.sight = [float(f"{share:.4g}") for share in recovery.sight(example)]
    if place.rank == 0 and broken is None:
        with (Path(spec.work) / STARTS).open("a", encoding="utf-8") as starts:
            starts.write(json.dumps({"step": recovery.step_count}) + "\n")
    try:
        train_loop(recovery, batches, curve, spec, place, history)
    except TrainingError as error:
        history.roll_back(error, recovery.step_count + 1, recovery.params)
        return history
    return None


ERROR_PARTS = ("problem", "expected", "found", "fix")


def build(
    spec: RecoverySpec,
    device: torch.device,
    average: Average | None = None,
    mesh: DeviceMesh | None = None,
) -> tuple[RecoveryStep, RecoveryBatches]:
    """Models from their directories, and the step around them."""
    params, settings = DistillParams.model_validate(spec.params), SamplingSettings(**spec.settings)
    family = family_of(Path(spec.teacher))
    # FSDP2 moves each worker's parts from the files; of whole copies a node would need one for every worker
    teacher, student = (
        load_denoiser(folder, device) if mesh is None else load_denoiser(folder, mapped=True)
        for folder in (spec.teacher, spec.student)
    )
    encoder = EncodeSpec(
        spec.teacher, spec.prepared, spec.settings, spec.seed, str(device), spec.threads, spec.precision
    )
    batches = RecoveryBatches(
        recovery_source(params.inputs, Path(spec.latents), encoder, teacher),
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
        mesh=mesh,
    )
    return recovery, batches


def train_loop(
    recovery: RecoveryStep,
    batches: RecoveryBatches,
    curve: LossCurve,
    spec: RecoverySpec,
    place: Place,
    history: History,
) -> None:
    """Step to the end, sending a checkpoint every `checkpoint_every` steps and at the last one.

    Where the workers are told to stop, they save themselves after the present step and leave. Such a
    checkpoint is none to which a rollback leads: where those lie must not depend on it.
    """
    watch = Watch(spec, recovery, history, place.rank)
    params, work = recovery.params, Path(spec.work)
    live = work / LOSSES if place.rank == 0 else Path(os.devnull)
    if place.rank == 0:  # a worker on a node that was given up may still write into the file it has open
        live.unlink(missing_ok=True)
    ahead = BatchesAhead(batches, params.steps, next(recovery.student.parameters()).device)
    with ahead, live.open("w", encoding="utf-8", buffering=1) as log:
        log.writelines(curve.lines())
        watch.tell()
        spent: list[float] = []
        while recovery.step_count < params.steps:
            began = time.perf_counter()
            batch = ahead.batch(recovery.step_count, place.rank, place.world)
            terms = recovery.step(batch)
            spent.append(time.perf_counter() - began)
            curve.append({"step": recovery.step_count, **{k: float(f"{v:.7g}") for k, v in terms.items()}})
            log.write(json.dumps({**curve.last, "live": watch.vitals(spent)}) + "\n")
            watch.after_step()
            notice = place.notices.after_step() if recovery.step_count < params.steps else None
            if watch.checkpoint_due():
                watch.before_checkpoint()
                history.saved = recovery.step_count
                report(recovery, curve, place, history, watch.best_weights(), notice)
                watch.after_checkpoint()
            elif notice:
                report(recovery, curve, place, history, watch.best_weights(), notice)
            if notice:
                place.notices.leave(notice, recovery.step_count)
                return
    if place.rank == 0 and spent:
        speed = {
            "ms_per_step": round(1000 * median(spent), 1),
            **ahead.waiting(spent),
            **watch.speed(spent),
        }
        write_json(work / "speed.json", speed)


def report(
    recovery: RecoveryStep,
    curve: LossCurve,
    place: Place,
    history: History,
    best: Path | None,
    notice: Notice | None = None,
) -> None:
    """Send a checkpoint: rank 0's, or every worker's parts of it; a barrier, all call it equally often.

    The weights of the `best` student so far come along where they are those of an earlier step.

    One that is saved because the workers have to leave (`notice`) is in storage when this comes back.
    """
    name = checkpoint_name(recovery.step_count)
    if recovery.sharded:
        from tasks.recovery_shards import write_parts

        fill: Any = partial(write_parts, recovery, curve, place.rank, history, best)
    elif place.rank == 0:
        fill = partial(save_checkpoint, recovery.state_dict(), curve, history=history, best=best)
    else:
        fill = None
    place.outbox.send(curve.last, name, fill, stay=notice is not None)


def resume(
    recovery: RecoveryStep, spec: RecoverySpec, curve: LossCurve, broken: History | None = None
) -> History:
    """Load the checkpoint that Ray knows (or the driver found), its loss curve too; the history up to it.

    After a rollback it is this run's own last checkpoint, at the rates that the rollback left.
    """
    if broken is not None:
        folder = Path(spec.work) / STORAGE / checkpoint_name(broken.saved)
        if broken.saved and not is_complete(folder):  # two that were saved in haste have taken its place
            folder = newest_checkpoint(folder.parent) or folder
        history = _restore(recovery, folder, curve) if broken.saved else History()
        history.rollbacks = broken.rollbacks
        recovery.rate_scale = history.rate_scale
        return history
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            return _restore(recovery, Path(directory), curve)
    return _restore(recovery, Path(spec.resume_from), curve) if spec.resume_from else History()


def _restore(recovery: RecoveryStep, folder: Path, curve: LossCurve) -> History:
    from tasks.recovery_shards import restore

    restore(recovery, folder)
    history = History(**read_json(folder / HISTORY))
    recovery.rate_scale = history.rate_scale
    curve.start_from(folder / LOSSES)
    return history


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
