"""MLflow: one parent run per pipeline execution, a nested run per stage.

The stages know only `Monitor`; everything MLflow lives here. Without a configured server the store is a
SQLite file and a folder beside `.vdmini` in the project, so that nothing has to be started.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import mlflow
import mlflow.artifacts
import psutil
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME

from tasks.once import once
from tasks.stage import StageOutcome
from tasks.tracking_store import make_store
from tasks.unfinished_models import drop_unregistered
from vdmini_core.artifacts import read_json, write_json

for _chatty in ("mlflow.store.db.utils", "alembic.runtime.migration"):  # tells of every table of a new store
    logging.getLogger(_chatty).setLevel(logging.WARNING)

PROCESS_TAG = "vdmini.process"
REQUEST_TAG = "vdmini.request"  # tells a run from all others before its id has arrived
CLOCK_SLACK_MS = 2000  # the start of a process is derived from the boot time, which clock updates shift
PARENT_RUN_ENV = "VDMINI_PARENT_RUN_ID"
EXPERIMENT_ENV = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "vdmini"
# Directories too large or too many-filed to copy into the tracking store with every stage run: they are
# versioned by DVC, and the student is logged once, by `register`.
NOT_LOGGED = frozenset({"pipeline", "student", "vbench"})
MAX_LOGGED_BYTES = 32 * 2**20


def project_home(root: Path) -> Path:
    """The project a folder belongs to: workspaces share one tracking store with the project they live in."""
    if root.parent.name == "workspaces" and (root.parent.parent / "dvc.yaml").is_file():
        return root.parent.parent
    return root


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` where set, else a SQLite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_home(root) / 'mlflow.db'}"


def connect(root: Path) -> MlflowClient:
    """A client for the project's tracking store and registry; says so where a server has to be waited for."""
    # It logs a database's error with its traceback before it raises it: told once, in our words, is enough.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        make_store(project_home(root) / "mlflow.db")
    uri = tracking_uri(root)
    if silent := _silent_server(uri):
        sys.stderr.write(f"MLflow at {silent} does not answer: waiting for it, some minutes at most\n")
    return MlflowClient(uri)


def _silent_server(uri: str) -> str | None:
    """Host and port (never the account) of a server at which nobody listens: MLflow itself says nothing."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in getproxies():
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=3).close()
    except OSError:
        return f"{parts.hostname}:{port}"
    return None


def fetch_model(root: Path, source: str, place: Path) -> Path:
    """Bring the files of a logged model to a folder in `place`.

    For `models:/ID` MLflow asks the store that is set for the process, whatever it is told.
    """
    with store_of_the_process(root):
        folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(place)))
    # MLflow's own note in the copy, of the name it was asked by: no file of the model.
    (folder / REGISTERED_MODEL_META_FILE_NAME).unlink(missing_ok=True)
    return folder


@contextmanager
def store_of_the_process(root: Path) -> Iterator[None]:
    """Within, the project's store is the one that MLflow asks where no client is handed over.

    Without it that is the one of the working directory, which need not be the project's. MLflow writes its
    choice into the environment too, and would lead every later call, of whatever project, to this store:
    so what was there before comes back.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri(root))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # nothing set: MLflow reads the environment again
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def experiment_id(client: MlflowClient, root: Path) -> str:
    """The experiment's id, made on first use; local artifacts go to `mlruns/` of the project."""
    name = os.environ.get(EXPERIMENT_ENV, DEFAULT_EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri(root).startswith("sqlite:")
    location = (project_home(root) / "mlruns" / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another run has made it meanwhile
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class MLflowMonitor:
    """Live metrics of one stage's run; a sentence becomes a line of `notes.txt`."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id
        self.notes: list[str] = []
        self._lost = False

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Log one number now."""
        self.metrics({name: value}, step)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Log several numbers of one step now."""
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step or 0) for name, value in values.items()]
        with self._forgiven():
            self._client.log_batch(self.run_id, metrics=batch)

    def picture(self, path: Path) -> None:
        """Add a picture to the run now, under `live/`."""
        with self._forgiven():
            self._client.log_artifact(self.run_id, str(path), "live")

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        """A live curve with a gap is better than a training that ends over it."""
        try:
            yield
        except (MlflowException, OSError) as error:
            if not self._lost:
                self.note(f"some live values did not reach MLflow: {str(error).splitlines()[0]}")
            self._lost = True

    def note(self, text: str) -> None:
        """Keep a sentence for the run page and the end of the run."""
        self.notes.append(text)


@dataclass
class StagePage:
    """A stage's open MLflow run."""

    client: MlflowClient
    run_id: str
    parent_id: str
    monitor: MLflowMonitor = field(init=False)

    def __post_init__(self) -> None:
        self.monitor = MLflowMonitor(self.client, self.run_id)

    @property
    def notes(self) -> list[str]:
        """What the stage said."""
        return self.monitor.notes

    def describe(self) -> dict[str, Any]:
        """Ids for `run.json`."""
        return {"mlflow_run_id": self.run_id, "mlflow_parent_run_id": self.parent_id}

    def finish(self, out: Path, outcome: StageOutcome) -> None:
        """Log final metrics and the outputs worth looking at."""
        numbers = {k: v for k, v in flatten(outcome.metrics).items() if isinstance(v, int | float)}
        if numbers:
            self.monitor.metrics(numbers)
        if self.notes:
            self.client.log_text(self.run_id, "\n".join(self.notes) + "\n", "notes.txt")
        for path in sorted(out.iterdir()):
            if path.name not in NOT_LOGGED and _size(path) <= MAX_LOGGED_BYTES:
                target = path.name if path.is_dir() else None
                if path.is_dir():
                    self.client.log_artifacts(self.run_id, str(path), target)
                else:
                    self.client.log_artifact(self.run_id, str(path))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(item.stat().st_size for item in files if item.is_file())


class MLflowTracker:
    """Opens nested runs; the parent comes from the flow, or is shared by all stages of one `dvc repro`."""

    def __init__(self, root: Path, name: str = "vdmini", keep_open: bool = False) -> None:
        self.root, self.name, self.keep_open = root.resolve(), name, keep_open
        self._opened: str | None = None
        self.client = connect(self.root)
        self.experiment = experiment_id(self.client, self.root)

    def open_parent(
        self, name: str, tags: dict[str, str] | None = None, owner: psutil.Process | None = None
    ) -> str:
        """Create a parent run and return its id; `owner` (default: this process) keeps it open."""
        self.close_abandoned()
        told = {MLFLOW_SOURCE_NAME: "vdmini", PROCESS_TAG: process_name(owner), **(tags or {})}
        return self._new_run(name, told)

    def _new_run(self, name: str, tags: dict[str, str]) -> str:
        """Create a run and return its id: one run, though the server may have to be asked again."""
        mark = uuid.uuid4().hex

        def look() -> str | None:
            found = self.client.search_runs([self.experiment], f"tags.`{REQUEST_TAG}` = '{mark}'")
            return str(found[0].info.run_id) if found else None

        def send() -> str:
            made = self.client.create_run(self.experiment, run_name=name, tags={**tags, REQUEST_TAG: mark})
            return str(made.info.run_id)

        return once(send, look)

    def close_abandoned(self) -> list[str]:
        """Mark runs whose process on this machine is gone as killed; returns their ids."""
        machine = process_name().split(":")[0]
        running = self.client.search_runs(
            [self.experiment], f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{machine}:%'"
        )
        gone = [run.info.run_id for run in running if not is_alive(run.data.tags[PROCESS_TAG])]
        for run_id in gone:
            for each in (run_id, *self._registering(run_id)):
                drop_unregistered(self.client, self.experiment, each)
            with redirect_stdout(sys.stderr):
                self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
        return gone

    def _registering(self, parent: str) -> list[str]:
        """Runs of `register` below a run: MLflow ends them with the model, before there is a version."""
        of = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and tags.`vdmini.stage` = 'register'"
        return [run.info.run_id for run in self.client.search_runs([self.experiment], of)]

    def close(self, run_id: str, ok: bool) -> None:
        """Mark a run as finished or failed."""
        status = RunStatus.FINISHED if ok else RunStatus.FAILED
        # MLflow prints links for servers; standard output is for `--json`.
        with redirect_stdout(sys.stderr):
            self.client.set_terminated(run_id, RunStatus.to_string(status))

    def parent(self) -> str:
        """The parent run of this execution, made where none exists yet."""
        given = os.environ.get(PARENT_RUN_ENV)
        if given:
            return given
        driver = _driving_process()
        if driver is not None:
            return self._shared_parent(driver)
        if self._opened is None:
            self._opened = self.open_parent(self.name, {"vdmini.driver": "flow" if self.keep_open else "cli"})
        return self._opened

    def finish(self, ok: bool) -> None:
        """Close the parent run, if a stage opened one."""
        if self._opened is not None:
            self.close(self._opened, ok)

    def _shared_parent(self, driver: psutil.Process) -> str:
        # Every stage of one `dvc repro` is a process of its own: the repro process is what they share.
        folder = self.root / ".vdmini" / "executions"
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / f"{driver.pid}-{int(driver.create_time() * 1000)}.json"
        if note.is_file():
            run_id = str(read_json(note)["parent_run_id"])
            self.client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            return run_id
        for old in (*folder.glob("*.json"), *folder.glob(".*.tmp")):
            if not psutil.pid_exists(int(old.name.removeprefix(".").split("-", 1)[0])):
                old.unlink(missing_ok=True)
        run_id = self.open_parent("dvc-repro", {"vdmini.driver": "dvc"}, driver)
        write_json(note, {"parent_run_id": run_id})
        return run_id

    @contextmanager
    def __call__(self, stage: str, params: dict[str, Any]) -> Iterator[StagePage]:
        """Run page of one stage; a failure is marked on it and on the parent."""
        parent_id = self.parent()
        tags = {
            MLFLOW_PARENT_RUN_ID: parent_id,
            MLFLOW_SOURCE_NAME: f"tasks/{stage}.py",
            "vdmini.stage": stage,
            PROCESS_TAG: process_name(),
        }
        page = StagePage(self.client, self._new_run(stage, tags), parent_id)
        listed = [
            Param(k, json.dumps(v) if not isinstance(v, str) else v) for k, v in flatten(params).items()
        ]
        self.client.log_batch(page.run_id, params=listed, tags=[RunTag(MLFLOW_RUN_NAME, stage)])
        ok = False
        try:
            yield page
            ok = True
        finally:
            self.close(page.run_id, ok)
            if PARENT_RUN_ENV not in os.environ and not self.keep_open:
                self.close(parent_id, ok)


def process_name(process: psutil.Process | None = None) -> str:
    """Machine, pid and start of a process: tells whether it still runs. The machine's name is only hashed."""
    process = process or psutil.Process()
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:12]
    return f"{machine}:{process.pid}:{int(process.create_time() * 1000)}"


def is_alive(name: str) -> bool:
    """Whether a process named by `process_name` on this machine still runs."""
    _, pid, started = name.split(":")
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() * 1000 - int(started)) < CLOCK_SLACK_MS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _driving_process() -> psutil.Process | None:
    """The `dvc` process above this one, if `dvc repro` runs the stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    try:
        for process in psutil.Process().parents():
            line = process.cmdline()
            if any(Path(word).name in ("dvc", "dvc.exe") or word == "dvc" for word in line[:3]):
                return process
    except psutil.Error:
        return None
    return None
