"""`distill` on Ray: whatever is killed, the student has the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from tasks.loss_curve import LossCurve
from tasks.recovery_checkpoints import (
    COMPLETE,
    is_complete,
    newest_checkpoint,
    read_rows,
    save_checkpoint,
    step_of,
)
from tasks.recovery_mirror import CHECKPOINTS
from tasks.recovery_worker import end_leftovers
from tests.flows.stuck import end_of
from tests.services.s3_store import s3_store
from tests.services.s3_store import settings as s3_settings
from vdmini_core.artifacts import read_json, tree_digests, write_json
from vdmini_core.data.clips import save_clips
from vdmini_core.distillation.guards import History
from vdmini_core.models.registry import family_of, fingerprint, load_pipeline, load_settings, save_pipeline
from vdmini_core.params import PlanParams
from vdmini_core.pruning.recipes import make_plan
from vdmini_core.pruning.surgery import apply_plan
from vdmini_core.teacher.architecture import build_pipeline

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 12, 3
PATIENCE_S = 500  # seconds suffice on an idle machine
# Small steps: Adam moves a weight whose gradient is nothing but rounding as far as any other, so that with
# 5e-4 the rounding of another order of sums grows to 1e-3 in the loss within ten steps, with these to 5e-6.
DISTILL = {
    **{"steps": STEPS, "batch_size": 2, "workers": 2, "checkpoint_every": EVERY, "warmup_steps": 2},
    **{"learning_rate": 5e-5, "head_learning_rate": 5e-5},
}
DRIVER = """
import sys
from pathlib import Path
import torch
from tasks.distill import run
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from vdmini_core.artifacts import write_json
from vdmini_core.params import Params
root, name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
out, work = root / name / "out", root / name / "work"
out.mkdir(parents=True, exist_ok=True), work.mkdir(parents=True, exist_ok=True)
monitor = QuietMonitor()
params = Params.model_validate({"base": {"threads": 1}, "distill": eval(sys.argv[3])})
outcome = run(StageJob(root, params, out, work, monitor))
steps = sorted({step for _, _, step in monitor.values})
write_json(root / name / "told.json", {"metrics": outcome.metrics, "notes": monitor.notes, "steps": steps})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts that `distill` reads: noise clips, a random nano teacher, the paper's cut of it."""
    root = tmp_path_factory.mktemp("distill")
    prepare, teacher, prune = (root / "artifacts" / stage for stage in ("prepare", "teacher", "prune"))
    for folder in (prepare, teacher, prune):
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {})
    pipeline = build_pipeline("nano", 0)
    save_pipeline(pipeline, teacher / "pipeline", None)
    settings = replace(load_settings(teacher / "pipeline"), steps=1, guidance=1.0)
    save_pipeline(pipeline, teacher / "pipeline", settings)
    shape = (6, settings.frames, settings.height, settings.width, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for split in ("train", "validation"):
        save_clips(prepare, split, clips, shape)
    family: Any = family_of(pipeline)
    units = family.units(pipeline.unet, settings)
    plan = make_plan(PlanParams(recipe="paper"), family, pipeline.unet, units, None, settings, 0)
    pipeline.unet = apply_plan(pipeline.unet, plan, family)
    save_pipeline(pipeline, prune / "student", settings)
    plan.save(prune / "student" / "plan.json")
    return root


def start(project: Path, name: str, stderr: Any = None, **changes: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(project), name, repr({**DISTILL, **changes})]
    return subprocess.Popen(command, start_new_session=True, env=environment, cwd=project, stderr=stderr)


def stop(driver: subprocess.Popen[bytes]) -> None:
    """Nothing of a driver that a failing test leaves behind goes on."""
    if driver.poll() is None:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def finish(project: Path, name: str, **changes: object) -> dict[str, Any]:
    driver = start(project, name, **changes)
    try:
        assert driver.wait(timeout=PATIENCE_S) == 0
    finally:
        stop(driver)
    told: dict[str, Any] = read_json(project / name / "told.json")
    return told


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def whole(project: Path) -> dict[str, Any]:
    """One run that nothing disturbs."""
    return finish(project, "whole")


@pytest.mark.timeout(1200)
def test_a_whole_run_leaves_student_plan_and_losses(project: Path, whole: dict[str, Any]) -> None:
    out = project / "whole" / "out"
    rows = read_rows(out / "losses.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) == whole["steps"]
    keys = {"step", "total", "task", "icd", "mca_generator", "mca_discriminator", "grad_norm", "lr"}
    assert set(rows[0]) == keys and whole["metrics"]["final_task"] < rows[0]["task"]
    assert (out / "losses.svg").exists() and (out / "student" / "plan.json").exists()
    before = fingerprint(load_pipeline(project / "artifacts" / "prune" / "student").unet)
    assert fingerprint(load_pipeline(out / "student").unet) != before


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fsdp2_told_to_stop_saves_the_step_and_goes_on_from_it(
    project: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Averaging workers are the measure: their losses are those of workers that hold parts."""
    errors, losses = tmp_path / "errors.txt", project / "parts" / "work" / "losses.jsonl"
    with errors.open("wb") as sink:
        driver = start(project, "parts", stderr=sink, parallel="fsdp2")
        try:
            wait_for(lambda: len(read_rows(losses)) >= EVERY + 1 or driver.poll() is not None, PATIENCE_S)
            os.kill(read_json(losses.parent / "workers" / "1.json")["pid"], signal.SIGTERM)
            assert driver.wait(timeout=PATIENCE_S) == 1
        finally:
            stop(driver)
    found = newest_checkpoint(losses.parent / "ray" / "recovery")
    assert found is not None and list((found / "shards").iterdir())
    step = step_of(found)
    assert f"is saved at step {step} of {STEPS}" in errors.read_text() and EVERY < step < STEPS
    assert finish(project, "parts", parallel="fsdp2")["notes"] == [f"distill went on from step {step}"]
    rows, wanted = (read_rows(project / name / "out" / "losses.jsonl") for name in ("parts", "whole"))
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, abs=1e-4, rel=1e-3), row["step"]


@contextmanager
def cluster_of(*cpus: int) -> Iterator[Cluster]:
    """A head that does no work, and nodes."""
    # A node that refuses connections is given up after 1.5 s; one that is only slow is not.
    checks = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
    config = {**checks, "health_check_failure_threshold": 3}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": config},
    )
    try:
        for count in cpus:
            add_node(nodes, count)
        yield nodes
    finally:
        nodes.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, each of which can carry the run alone."""
    with cluster_of(DISTILL["workers"], DISTILL["workers"]) as nodes:
        yield nodes


def add_node(nodes: Cluster, cpus: int) -> None:
    """Ray gives a node's agent 15 s to start, too few on a busy machine: it is asked up to three times."""
    for left in (2, 1, 0):
        try:
            nodes.add_node(num_cpus=cpus)
            return
        except Exception:
            if not left:
                raise


def start_stage(root: Path, address: str, told: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": address,
        "MLFLOW_TRACKING_URI": f"sqlite:///{root.parent / 'mlflow.db'}",  # one for all: making it takes long
        "DVC_STAGE": "distill",  # as `dvc repro` calls it: no repository is needed
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # for `end_of`
    }
    command = [sys.executable, "-m", "flows.cli", "distill", "--json"]
    with told.open("wb") as sink, errors_of(told).open("ab") as errors:
        return subprocess.Popen(
            command, cwd=root, env=environment, stdout=sink, stderr=errors, start_new_session=True
        )


def errors_of(told: Path) -> Path:
    return told.with_suffix(".err")


def reached(root: Path, step: int) -> Path | None:
    """The losses of a run that has done `step` steps."""
    paths = root.glob(".vdmini/work/distill/*/losses.jsonl")
    return next((path for path in paths if len(read_rows(path)) >= step), None)


def reached_or_ended(root: Path, step: int, driver: subprocess.Popen[bytes]) -> Path | bool:
    """The losses of a run that has done `step` steps, or True when it ended before."""
    return reached(root, step) or driver.poll() is not None


def victim_of(work: Path, driver: psutil.Process, kind: str) -> psutil.Process:
    if kind == "driver":
        return driver
    worker = psutil.Process(read_json(work / "workers" / "1.json")["pid"])
    found = worker if kind == "worker" else worker.parent()
    assert found is not None and ("raylet" in found.name()) == (kind == "raylet")
    return found


# One after the other in one run; the lost node leaves one. Two more steps at least stay to be done after the
# last, whatever the poll costs; and the first driver never gets as far as the node's step: its losses stay.
KILLED = {"worker": (1, 3), "driver": (4, 6), "raylet": (8, 9)}


@pytest.mark.timeout(1800)
def test_sigkill_of_a_worker_the_driver_and_a_node_gives_the_same_bytes(
    project: Path, whole: dict[str, Any], cluster: Cluster
) -> None:
    root, told = project / "killed", project / "killed.json"
    shutil.copytree(project / "artifacts", root / "artifacts")
    changes = {"base": {"threads": 1}, "distill": DISTILL}
    write_json(root / "params.yaml", changes)
    driver = start_stage(root, cluster.address, told)
    children: list[int] = []
    drawn = {kind: random.SystemRandom().randint(*between) for kind, between in KILLED.items()}
    print(f"killed at steps {drawn}")  # pytest shows it where the test fails
    try:
        for kind, step in drawn.items():
            lines = wait_for(partial(reached_or_ended, root, step, driver), PATIENCE_S)
            assert isinstance(lines, Path), f"ended before its {kind} was killed"
            victim_of(lines.parent, psutil.Process(driver.pid), kind).kill()
            if kind == "driver":
                assert driver.wait(PATIENCE_S) == -signal.SIGKILL
                assert not (root / "artifacts" / "distill").exists()
                children = [read_json(path)["pid"] for path in (lines.parent / "workers").glob("*.json")]
                # as the error of a run that failed too often says; it goes on all the same
                changes["distill"] = {**DISTILL, "max_failures": 9}
                write_json(root / "params.yaml", changes)
                driver = start_stage(root, cluster.address, told)
        assert end_of(driver, PATIENCE_S, cluster.address, errors_of(told)) == 0
    finally:
        stop(driver)
        print(errors_of(told).read_text(encoding="utf-8", errors="replace")[-8000:])
    assert tree_digests(root / "artifacts" / "distill") == tree_digests(project / "whole" / "out")
    notes = read_json(told)["notes"]
    assert any(note.startswith("distill went on from step") for note in notes)
    assert any(note.startswith("distill lost workers and started them again") for note in notes)
    assert children and not [pid for pid in children if running(pid)]


WAITING_DRIVER = """
import asyncio, os, signal, threading
import ray
from tasks.ray_runtime import ray_session
from tasks.recovery_progress import run_beside
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's processes ignore it
with ray_session(1):
    @ray.remote(num_cpus=0)
    class TrainController:
        async def start(self):
            pass
        async def wait(self):
            await asyncio.sleep(1000)
    endless, over = TrainController.remote(), threading.Event()
    ray.get(endless.start.remote())
    def train():
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            ray.get(endless.wait.remote())
        finally:
            over.set()
    try:
        run_beside(train, lambda: None)
    except KeyboardInterrupt:
        left = over.is_set()
raise SystemExit(5 if left else 6)
"""


def test_a_driver_that_leaves_ends_its_waiting_thread_first(cluster: Cluster) -> None:
    """A session of Ray that ends under a waiting thread crashes the process, once in two times."""
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    driver = subprocess.run([sys.executable, "-c", WAITING_DRIVER], env=environment, timeout=PATIENCE_S)
    assert driver.returncode == 5


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fewer_workers_with_uneven_shares_go_on_when_a_node_is_lost(project: Path) -> None:
    """Three workers with a clip each; then two, with one and two clips. One with three is the measure."""
    root, told = project / "elastic", project / "elastic.json"
    shutil.copytree(project / "artifacts", root / "artifacts")
    changes = {**DISTILL, "batch_size": 3, "workers": 3, "min_workers": 1}
    write_json(root / "params.yaml", {"base": {"threads": 1}, "distill": changes})
    with cluster_of(2, 1) as nodes:
        driver = start_stage(root, nodes.address, told)
        try:
            lines = wait_for(partial(reached_or_ended, root, EVERY + 1, driver), PATIENCE_S)
            assert isinstance(lines, Path), "ended before a node was killed"
            workers = [psutil.Process(read_json(p)["pid"]) for p in (lines.parent / "workers").glob("*.json")]
            raylets = Counter(worker.parent() for worker in workers)
            assert sorted(raylets.values()) == [1, 2]
            next(raylet for raylet, count in raylets.items() if raylet and count == 1).kill()
            assert end_of(driver, PATIENCE_S, nodes.address, errors_of(told)) == 0
        finally:
            stop(driver)
    notes = read_json(told)["notes"]
    assert any(note.startswith("distill lost workers and started them again 1 time") for note in notes)
    finish(project, "three", batch_size=3, workers=1)
    wanted = read_rows(project / "three" / "out" / "losses.jsonl")
    for row, other in zip(read_rows(root / "artifacts/distill/losses.jsonl"), wanted, strict=True):
        assert row == pytest.approx(other, abs=1e-4, rel=1e-3), row["step"]


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long  # the same by the worker's own function, without Ray: tests/unit/test_recovery_guards.py
@pytest.mark.timeout(1200)
def test_divergence_ends_the_run_once_with_advice(project: Path, tmp_path: Path) -> None:
    """Rolled back once, to no avail: so that Ray's retries are not spent on it."""
    errors = tmp_path / "errors.txt"
    changes = {"learning_rate": 0.99, "max_grad_norm": 1e9, "steps": 40, "rollbacks": 1, "workers": 1}
    with errors.open("wb") as sink:
        driver = start(project, "wild", stderr=sink, **changes, rollback_rate_scale=0.99)
        try:
            assert driver.wait(timeout=PATIENCE_S) == 1
        finally:
            stop(driver)
    text = errors.read_text()
    assert "TrainingError" in text and "lower distill.learning_rate" in text
    assert "rolled back 1 time at step" in text
    assert not (project / "wild" / "out" / "student").exists()


def test_a_torn_checkpoint_does_not_count(tmp_path: Path) -> None:
    curve = LossCurve(tmp_path / "curve.jsonl")
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step:08d}").mkdir()
        state = {"step": step, "x": torch.zeros(9)}
        save_checkpoint(state, curve, tmp_path / f"checkpoint-{step:08d}", History(saved=step))
    newest = tmp_path / "checkpoint-00000006"
    assert newest_checkpoint(tmp_path) == newest
    (newest / "state.pt").write_bytes(b"torn")
    assert not is_complete(newest) and newest_checkpoint(tmp_path) == tmp_path / "checkpoint-00000003"
    (tmp_path / "checkpoint-00000003" / COMPLETE).unlink()
    assert newest_checkpoint(tmp_path) is None


def test_leftover_workers_are_ended_and_nobody_else(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine, other = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
    (tmp_path / "workers").mkdir()
    write_json(
        tmp_path / "workers" / "0.json", {"pid": mine.pid, "started": psutil.Process(mine.pid).create_time()}
    )
    write_json(tmp_path / "workers" / "1.json", {"pid": other.pid, "started": 1.0})
    try:
        end_leftovers(tmp_path)
        assert not psutil.pid_exists(mine.pid) and other.poll() is None
    finally:
        for sleeping in (mine, other):
            sleeping.kill()
            sleeping.wait()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_machine_that_has_nothing_goes_on_from_the_checkpoint_in_s3(
    project: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store" / "runs").mkdir(parents=True)
    with s3_store(tmp_path / "store") as address:
        for name, value in {**s3_settings(address, tmp_path), CHECKPOINTS: "s3://runs/nano"}.items():
            monkeypatch.setenv(name, value)
        driver = start(project, "moved")
        try:
            wait_for(lambda: list((tmp_path / "store").rglob(COMPLETE)), PATIENCE_S)
        finally:
            stop(driver)
        end_leftovers(project / "moved" / "work")
        shutil.rmtree(project / "moved")
        told = finish(project, "moved")
    assert any("came from s3://runs/nano/work" in note for note in told["notes"])
    assert any(note.startswith("distill went on from step") for note in told["notes"])
    assert tree_digests(project / "moved" / "out") == tree_digests(project / "whole" / "out")
