"""`distill`: the cut student learns from the teacher again, on Ray Train (V2).

The driver encodes the clips once, starts a `TorchTrainer`, shows the losses while they come and writes
the recovered student. After a kill, a trainer with the same storage path and name finds its checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import read_json, write_json
from vdmini_core.errors import TrainingError

if TYPE_CHECKING:
    from tasks.recovery_worker import RecoverySpec
    from vdmini_core.distillation.depth import Depth
    from vdmini_core.distillation.guards import History

BEGUN = "begun.json"
KEPT_CHECKPOINTS = 2
# The others wait in a collective while rank 0 samples and measures; a lost worker is seen by Ray at once.
PATIENCE_S = 6 * 3600
# Workers that fail before they train, or for whom there is no room for a minute; Ray would try without end.
FAILED_STARTS = 60
TAIL = 0.1  # share of the last steps over which the final terms are averaged
# Read by Ray when its parts are imported or started; what the user has set stays.
RAY_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run(job: StageJob) -> StageOutcome:
    """Recover the student of `prune` with the ICMD loss; resumes where a killed run stopped.

    Raises:
        TrainingError: when it cannot fit into memory, the loss is not finite or diverges, or the workers
            fail too often.
    """
    from vdmini_core.distillation.depth import depth_for
    from vdmini_core.pruning.plan import Plan

    depth = depth_for(job.params.distill, Plan.load(job.artifact("prune") / "student" / "plan.json"))
    if job.params.distill.depth == "auto":
        job.monitor.note(f"distill.depth auto: {depth}")
    return pass_on(job) if depth == "none" else recover(job, depth)


def pass_on(job: StageJob) -> StageOutcome:
    """Depth `none`: the pruned student as it is; a cut VAE decoder learns all the same."""
    from tasks.decoder_recovery import recover_vae_decoder
    from vdmini_core.models.registry import load_pipeline, load_settings, save_pipeline

    source, target = job.artifact("prune") / "student", job.out / "student"
    shutil.copytree(source, target)
    pipeline = load_pipeline(source)
    decoder = recover_vae_decoder(job, pipeline)
    if decoder:
        save_pipeline(pipeline, target, load_settings(source, pipeline))
    job.monitor.note("distill.depth none: the pruned student is passed on, its denoiser learned nothing")
    return StageOutcome({"depth": "none", "steps": 0, **decoder}, title="No recovery")


def recover(job: StageJob, depth: Depth) -> StageOutcome:
    """Train at `depth` on Ray and write the student."""
    from tasks.recovery_checkpoints import clear_outboxes, newest_checkpoint, read_rows, step_of
    from tasks.recovery_cost import check_memory
    from tasks.recovery_mirror import checkpoint_mirror
    from tasks.recovery_view import bring_best_back, kept_metrics, read_history
    from tasks.recovery_watch import STORAGE
    from tasks.recovery_worker import end_leftovers
    from vdmini_core.distillation.optim import adamw8bit

    if job.params.distill.optimizer == "adamw8bit":
        adamw8bit()  # what is not installed is said before anything is started
    end_leftovers(job.work)
    clear_outboxes(job.work.resolve())
    check_memory(job)
    spec = make_spec(job, depth)
    storage = job.work.resolve() / STORAGE
    mirror = checkpoint_mirror(job.work.name, storage, job.monitor.note)
    if mirror:
        mirror.fetch()
    found = newest_checkpoint(storage)
    if found is not None:
        bring_best_back(job, found, depth)
    resumed = step_of(found)
    started = time.perf_counter()
    if resumed < job.params.distill.steps:
        if resumed:
            job.monitor.note(f"distill went on from step {resumed}{_with_others(job)}")
        write_json(job.work / BEGUN, _split_over(job))
        with _ray_settings(), mirror.running() if mirror else nullcontext():
            fit(job, spec, storage, found)
    found = newest_checkpoint(storage)
    if found is None or step_of(found) < job.params.distill.steps:
        raise TrainingError(
            "the recovery ended without its last checkpoint",
            found=str(storage),
            fix="run again: it goes on from the one there is",
        )
    seconds = time.perf_counter() - started
    rows = read_rows(found / "losses.jsonl")
    history = read_history(found)
    decoder = export(job, found, rows, history, depth)
    timing = timing_of(job, seconds, job.params.distill.steps - resumed)
    kept = kept_metrics(history, history.kept(job.params.distill))
    return outcome(job, rows, timing, {"depth": depth, **kept, **decoder})


def _split_over(job: StageJob) -> dict[str, int]:
    """What decides how a batch is summed up, and so the last bits of a step."""
    params = job.params.distill
    return {"workers": params.workers, "accumulation": params.accumulation}


def _with_others(job: StageJob) -> str:
    """What to say where the steps before were computed by another number of workers."""
    path = job.work / BEGUN
    before, now = read_json(path) if path.is_file() else {}, _split_over(job)
    other = [
        f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]
    return f" ({', '.join(other)}: the same training but for rounding)" if other else ""


def make_spec(job: StageJob, depth: Depth = "full") -> RecoverySpec:
    """Encode the training clips where that is to be done, and say what the workers need."""
    from tasks.encoding import encode_inputs
    from tasks.recovery_view import prepare_held_out
    from tasks.recovery_worker import RecoverySpec
    from vdmini_core.models.registry import load_settings
    from vdmini_core.pruning.plan import Plan

    teacher, student = job.artifact("teacher") / "pipeline", job.artifact("prune") / "student"
    settings = load_settings(teacher)
    prepare_held_out(job)
    return RecoverySpec(
        teacher=str(teacher.resolve()),
        student=str(student.resolve()),
        prepared=str(job.artifact("prepare").resolve()),
        latents=str(encode_inputs(job, settings)),
        work=str(job.work.resolve()),
        feature_pairs=[list(pair) for pair in Plan.load(student / "plan.json").feature_pairs],
        settings=asdict(settings),
        params=job.params.distill.model_dump(mode="json") | {"depth": depth},
        seed=job.params.base.seed,
        threads=job.worker_threads(job.params.distill.workers),
        sampling_batch=job.params.sampling.batch_size,
        precision=job.params.sampling.precision,
    )


def fit(job: StageJob, spec: RecoverySpec, storage: Path, found: Path | None) -> None:
    """Train on Ray while this thread, which owns the run pages, forwards the losses."""
    from tasks.ray_runtime import ray_session
    from tasks.recovery_progress import train_watched
    from tasks.recovery_stop import passed_on, raise_if_stopped
    from tasks.recovery_view import note_restarts
    from tasks.recovery_watch import STARTS

    spec = replace(spec, resume_from=str(found) if found else None)
    _mend_snapshot(storage, found)
    (job.work / "failed.json").unlink(missing_ok=True)
    (job.work / STARTS).unlink(missing_ok=True)
    with ray_session(num_cpus=job.params.distill.workers):
        _demand_the_clusters_device(job)
        trainer = make_trainer(job, spec, storage)
        with passed_on(job.work):
            train_watched(job, trainer.fit)
    note_restarts(job)
    if (job.work / "failed.json").exists():
        raise TrainingError(**read_json(job.work / "failed.json"))
    raise_if_stopped(job.work, job.params.distill.steps)


def _demand_the_clusters_device(job: StageJob) -> None:
    """Refuse to train on the CPUs of a cluster with GPUs because its driver has none.

    Raises:
        TrainingError: then.
    """
    import ray

    from tasks.models import device_of

    asked = (job.params.base.device, device_of(job))
    gpus = ray.cluster_resources().get("GPU", 0)
    if os.environ.get("RAY_ADDRESS") and asked == ("auto", "cpu") and gpus:
        raise TrainingError(
            "base.device: auto means the driver's device, and the driver has no GPU",
            expected="a driver on a node with a GPU, as it encodes, samples and measures too",
            found=f"no GPU here, {gpus:g} in the cluster",
            fix="start the run on a node with a GPU, or set base.device to cpu to train on CPUs",
        )


def make_trainer(job: StageJob, spec: RecoverySpec, storage: Path) -> Any:
    """The `TorchTrainer`: same storage path and name find the checkpoints of a killed run."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api import config as ray_config

    from tasks.models import device_of
    from tasks.recovery_backend import RecoveryTorchConfig, recover

    params, gpu = job.params.distill, device_of(job) == "cuda"
    share = _gpu_share(params.workers) if gpu else 0.0
    if params.parallel == "fsdp2" and 0 < share < 1:
        raise TrainingError(
            "parts of a student on one GPU save nothing",
            expected=f"a GPU for each of {params.workers} workers",
            fix="set distill.workers to the number of GPUs, or distill.parallel to ddp",
        )
    spec = replace(spec, gpus=share * params.workers)
    trainer: Any = TorchTrainer  # typed for V1's configs, which V2 refuses
    return trainer(
        recover,
        train_loop_config=spec.to_dict(),
        torch_config=RecoveryTorchConfig(backend="nccl" if share == 1 else "gloo", timeout_s=PATIENCE_S),
        scaling_config=ray_config.ScalingConfig(
            num_workers=(params.min_workers, params.workers) if params.min_workers else params.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": share} if gpu else {"CPU": 1},
        ),
        run_config=ray_config.RunConfig(
            name=storage.name,
            storage_path=str(storage.parent),
            failure_config=ray_config.FailureConfig(
                max_failures=params.max_failures, controller_failure_limit=FAILED_STARTS
            ),
            checkpoint_config=ray_config.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            worker_runtime_env={"env_vars": worker_environment(job)},
            logging_config=ray_config.LoggingConfig(log_level="ERROR"),
        ),
    )


def worker_environment(job: StageJob) -> dict[str, str]:
    """Workers find this package wherever they start, and use as many threads as the params say."""
    from tasks.ray_runtime import python_path

    threads = str(job.worker_threads(job.params.distill.workers))
    return {
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }


def _gpu_share(workers: int) -> float:
    """GPUs per worker: a whole one where there are enough, else a part of one (over gloo then)."""
    from tasks.ray_runtime import gpus_for

    return min(1.0, gpus_for(workers) / workers)


def _mend_snapshot(storage: Path, found: Path | None) -> None:
    """Drop Ray's list of checkpoints where a kill has torn it, or it lacks the newest one, `found`.

    It is not written in one piece, and a checkpoint is whole in storage before it is listed. The workers are
    told the newest one anyway (`resume_from`).
    """
    path = storage / "checkpoint_manager_snapshot.json"
    if not path.exists():
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["checkpoint_results"]
        names = [entry["checkpoint_dir_name"] for entry in listed]
    except (ValueError, KeyError, TypeError):
        names = [""]
    whole = all(name and (storage / name).is_dir() for name in names)
    if not whole or (found is not None and found.name not in names):
        path.unlink()


@contextmanager
def _ray_settings() -> Iterator[None]:
    """Quiet, quick Ray for the time of the training; the environment is as before afterwards."""
    added = [name for name in RAY_SETTINGS if name not in os.environ]
    os.environ.update({name: RAY_SETTINGS[name] for name in added})
    level = logging.getLogger("ray").level
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("ray").setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def export(
    job: StageJob, checkpoint: Path, rows: list[dict[str, Any]], history: History, depth: Depth = "full"
) -> dict[str, float]:
    """Write the recovered student (averaged weights), its plan, the loss curve and what else was seen.

    Returns:
        Metrics of the VAE decoder's recovery, which comes first where the decoder was cut.
    """
    from tasks.decoder_recovery import recover_vae_decoder
    from tasks.recovery_shards import load_averaged
    from tasks.recovery_view import load_kept, write_evidence
    from vdmini_core.models.registry import family_of, load_pipeline, load_settings, save_pipeline
    from vdmini_core.report.charts import loss_chart

    source, target = job.artifact("prune") / "student", job.out / "student"
    pipeline = load_pipeline(source)
    denoiser = getattr(pipeline, family_of(pipeline).denoiser_name)
    load_averaged(checkpoint, denoiser, job.params.distill.model_copy(update={"depth": depth}))
    write_evidence(job, history, denoiser, load_kept(job, history, denoiser))
    decoder = recover_vae_decoder(job, pipeline)
    save_pipeline(pipeline, target, load_settings(source, pipeline))
    shutil.copyfile(source / "plan.json", target / "plan.json")
    shutil.copyfile(checkpoint / "losses.jsonl", job.out / "losses.jsonl")
    loss_chart(rows, job.out / "losses.svg")
    loss_chart(rows, job.out / "losses.png")
    return decoder


def timing_of(job: StageJob, seconds: float, steps: int) -> dict[str, Any]:
    """What the training took: with Ray's start, and per step without it."""
    speed = job.work / "speed.json"
    return {
        "seconds": round(seconds, 2),
        "steps_this_run": steps,
        "workers": job.params.distill.workers,
        "threads_per_worker": job.worker_threads(job.params.distill.workers),
        **(read_json(speed) if speed.exists() else {}),
    }


def outcome(
    job: StageJob, rows: list[dict[str, Any]], timing: dict[str, Any], more: dict[str, Any]
) -> StageOutcome:
    """Terms averaged over the end of the curve, beside the first ones."""
    tail = rows[-max(1, round(TAIL * len(rows))) :]
    names = [name for name in rows[-1] if name not in ("step", "lr")]
    final = {f"final_{name}": float(f"{sum(r[name] for r in tail) / len(tail):.6g}") for name in names}
    first = rows[: len(tail)]
    table = [
        {
            "term": name,
            "first steps": round(sum(row[name] for row in first) / len(first), 5),
            "last steps": round(final[f"final_{name}"], 5),
        }
        for name in names
    ]
    metrics: dict[str, Any] = {"steps": len(rows), **final, **more}
    return StageOutcome(metrics, ("losses.png",), timing, table, "Loss terms of the recovery")
