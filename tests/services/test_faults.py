"""One nano run during which every server of `make services` is away for a while: it ends as any run does.

S3 refuses every third request all the time; MLflow is down for 30 s from the start of `profile`, Prefect is
restarted in `distill`, PostgreSQL in `register`. Before that a process that holds a GPU's slot is killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flows.gpu_slots import LIMIT
from flows.services.control import halt, restart
from flows.services.setup import FILE, Setup, write_private
from tasks.stage import STAGES
from tests.check_project import ROOT
from tests.flows.conftest import VDMINI, environment, vdmini
from tests.services.slow_down import SlowDown, slow_down
from tests.services.team import mlflow, prefect, team
from vdmini_core.artifacts import read_json, tree_digests

pytestmark = [pytest.mark.services, pytest.mark.long, pytest.mark.timeout(3600)]
DOWN_S = 30
MODEL = "vdmini-nano"


@dataclass
class Survivor:
    """The run, what it said, and what stood in its way."""

    root: Path
    setup: Setup
    proxy: SlowDown
    summary: dict[str, Any]
    faults: list[str]
    zombie: str

    def stage(self, name: str) -> dict[str, Any]:
        return next(row for row in self.summary["stages"] if row["stage"] == name)


@pytest.fixture(scope="module")
def survivor() -> Iterator[Survivor]:
    with team() as (root, made), slow_down(made.ports["s3"]) as proxy:
        setup = _behind(made, proxy)
        restart(setup, "mlflow")  # it is told where S3 is when it starts
        faults: dict[str, Callable[[], None]] = {
            "profile": lambda: _away(setup, "mlflow", DOWN_S),
            "distill": lambda: _away(setup, "prefect"),
            "register": lambda: _away(setup, "postgres"),
        }
        zombie = _dies_with_a_gpu(setup)
        summary, met = _run(root, setup, faults)
        yield Survivor(root, setup, proxy, summary, met, zombie)


def _behind(setup: Setup, proxy: SlowDown) -> Setup:
    """The same services, with S3 where the proxy is; S3 itself runs on where it was."""
    behind = replace(setup, ports=setup.ports | {"s3": proxy.port})
    told = {"ports": behind.ports, "passwords": behind.passwords}
    write_private(behind.home / FILE, json.dumps(told))
    return behind


def _dies_with_a_gpu(setup: Setup) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.services.lent_gpus"],
        cwd=ROOT,
        env=environment(**setup.client_settings()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stdout + done.stderr
    return done.stdout.strip()


def _away(setup: Setup, name: str, seconds: float = 0) -> None:
    halt(setup, name)
    time.sleep(seconds)
    restart(setup, name)


def _run(root: Path, setup: Setup, faults: dict[str, Callable[[], None]]) -> tuple[dict[str, Any], list[str]]:
    """`vdmini run`; a stage's fault begins when the run says that it starts the stage."""
    process = subprocess.Popen(
        [str(VDMINI), "run", "--json"],
        cwd=root,
        env=environment(**setup.client_settings()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    out: list[str] = []
    reader = Thread(target=lambda stream: out.append(stream.read()), args=(process.stdout,))
    reader.start()
    said, met, threads = [], [], []
    try:
        for line in process.stderr:
            said.append(line)
            stage = line.split(" ")[0]
            if stage in faults and stage not in met:
                met.append(stage)
                threads.append(Thread(target=faults[stage]))
                threads[-1].start()
    finally:
        if process.poll() is None and len(met) < len(faults):
            process.kill()
        for thread in [*threads, reader]:
            thread.join()
    assert process.wait(timeout=60) == 0, "".join(said)[-6000:]
    return json.loads(out[0]), met


def test_the_run_completes_and_each_fault_was_met(survivor: Survivor) -> None:
    assert [row["fate"] for row in survivor.summary["stages"]] == ["ran"] * len(STAGES)
    assert survivor.faults == ["profile", "distill", "register"]
    assert survivor.stage("profile")["seconds"] > DOWN_S, "it waited for MLflow"
    assert survivor.proxy.refused > 5
    found = prefect(survivor.setup, "/flow_runs/filter", {})
    (flow_run,) = [run for run in found if run["id"] != survivor.zombie]
    assert flow_run["state_type"] == "COMPLETED"
    tasks = prefect(survivor.setup, "/task_runs/filter", {})
    assert Counter(run["name"].rsplit("-", 1)[0] for run in tasks) == dict.fromkeys(STAGES, 1)
    assert {run["state_type"] for run in tasks} == {"COMPLETED"}


def test_the_pages_have_no_gap(survivor: Survivor) -> None:
    artifacts = prefect(survivor.setup, "/artifacts/filter", {})
    keys = {artifact["key"] for artifact in artifacts}
    assert {"vdmini-distill-0", "vdmini-profile-table", "vdmini-promote-table", "vdmini-summary"} <= keys
    progress = next(a for a in artifacts if a["key"] == "vdmini-progress")
    assert progress["data"] == 100.0
    (run,) = [run for run in _runs(survivor.setup) if run["info"]["run_name"] == "distill"]
    path = f"/metrics/get-history?run_id={run['info']['run_id']}&metric_key=loss%2Ftask"
    steps = {int(row["step"]) for row in mlflow(survivor.setup, path)["metrics"]}
    assert len(steps) == 6, "every step of the recovery"


def test_one_version_and_one_finished_run_of_each_stage(survivor: Survivor) -> None:
    found = mlflow(survivor.setup, f"/model-versions/search?filter=name%3D%27{MODEL}%27")["model_versions"]
    assert [version["version"] for version in found] == ["1"]
    alias = mlflow(survivor.setup, f"/registered-models/alias?name={MODEL}&alias=candidate")
    assert alias["model_version"]["version"] == "1"
    runs = _runs(survivor.setup)
    finished = Counter(r["info"]["run_name"] for r in runs if r["info"]["status"] == "FINISHED")
    assert finished == {**dict.fromkeys(STAGES, 1), f"compress-{MODEL}": 1}
    retried = sum(run["run_count"] - 1 for run in prefect(survivor.setup, "/task_runs/filter", {}))
    assert len(runs) - sum(finished.values()) <= retried
    assert "RUNNING" not in {run["info"]["status"] for run in runs}


def _runs(setup: Setup) -> list[dict[str, Any]]:
    return mlflow(setup, "/runs/search", {"experiment_ids": ["1"], "max_results": 100})["runs"]


def test_nothing_is_lost_in_the_bucket(survivor: Survivor, tmp_path: Path) -> None:
    root, settings = survivor.root, survivor.setup.client_settings()
    fetch = (
        "import sys, mlflow; print(mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", fetch, f"models:/{MODEL}@candidate", str(tmp_path)],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=True,
    )
    student = Path(done.stdout.strip().splitlines()[-1]) / "artifacts" / "student"
    assert tree_digests(student) == tree_digests(root / "artifacts" / "distill" / "student")
    push = [sys.executable, "-m", "dvc", "push"]
    done = subprocess.run(push, cwd=root, env=environment(**settings), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status = [*push[:-1], "status", "--cloud", "--json"]
    done = subprocess.run(
        status, cwd=root, env=environment(**settings), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {}


def test_what_was_lent_to_a_process_that_died_is_free_and_its_run_has_ended(survivor: Survivor) -> None:
    """Its lease outlived a restart of the server, and ended."""
    deadline = time.monotonic() + 270
    while (limit := prefect(survivor.setup, f"/v2/concurrency_limits/{LIMIT}"))["active_slots"]:
        assert time.monotonic() < deadline, limit
        time.sleep(1)
    assert limit["limit"] == 2
    run = prefect(survivor.setup, f"/flow_runs/{survivor.zombie}")
    assert run["state_type"] == "CRASHED" and "no heartbeat" in run["state"]["message"]


def test_the_next_run_finds_everything_done(survivor: Survivor) -> None:
    done = vdmini(survivor.root, "run", "--json", **survivor.setup.client_settings())
    assert {row["fate"] for row in json.loads(done.stdout)["stages"]} == {"up to date"}
    assert read_json(survivor.root / "artifacts" / "register" / "timing.json")["version"] == "1"
