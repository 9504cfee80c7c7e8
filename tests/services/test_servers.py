"""The same story against real servers: a Prefect server and an MLflow server, by configuration alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.stage import STAGES
from tests.flows.conftest import environment, make_project, vdmini

pytestmark = pytest.mark.services
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], health: str, folder: Path, **extra: str) -> Iterator[None]:
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(**extra), stdout=log, stderr=log)
        try:
            _wait_for(health, process, folder / "server.log")
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def post(url: str, data: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(data).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_run_is_on_the_pages_of_both_servers(tmp_path: Path) -> None:
    prefect, mlflow = free_port(), free_port()
    (tmp_path / "p").mkdir()
    (tmp_path / "m").mkdir()
    api, tracking = f"http://127.0.0.1:{prefect}/api", f"http://127.0.0.1:{mlflow}"
    prefect_server = server(
        [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(prefect)],
        *(f"{api}/health", tmp_path / "p"),
        PREFECT_HOME=str(tmp_path / "p"),
    )
    mlflow_server = server(
        [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"],
        *(f"{tracking}/health", tmp_path / "m"),
    )
    with prefect_server, mlflow_server:
        root = make_project(tmp_path / "proj", "profile.granularity=block")
        vdmini(root, "run", PREFECT_API_URL=api, MLFLOW_TRACKING_URI=tracking)
        flows = post(f"{api}/flow_runs/filter", {})
        assert [run["state_type"] for run in flows] == ["COMPLETED"]
        names = {run["name"].rsplit("-", 1)[0] for run in post(f"{api}/task_runs/filter", {})}
        assert names == set(STAGES)
        kinds = {artifact["type"] for artifact in post(f"{api}/artifacts/filter", {})}
        assert {"table", "image", "markdown", "progress"} <= kinds
        assert not (root / "mlflow.db").exists()
        runs = post(f"{tracking}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})["runs"]  # type: ignore[call-overload]
        assert {run["info"]["run_name"] for run in runs} >= set(STAGES)
        with urllib.request.urlopen(
            f"{tracking}/api/2.0/mlflow/registered-models/alias?name=vdmini-nano&alias=candidate", timeout=30
        ) as answer:
            assert json.load(answer)["model_version"]["version"] == "1"
        _the_nightly_schedule_is_served(root, api)


def _the_nightly_schedule_is_served(root: Path, api: str) -> None:
    command = [sys.executable, "-m", "flows.serve", "--root", str(root)]
    process = subprocess.Popen(
        command, cwd=root, env=environment(PREFECT_API_URL=api), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (found := post(f"{api}/deployments/filter", {})):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert [(item["name"], item["schedules"][0]["schedule"]["cron"]) for item in found] == [
        ("nightly", "0 2 * * *")
    ]
    assert found[0]["parameters"] == {"root": str(root)}
