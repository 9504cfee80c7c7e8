"""The story against the servers of `make services`, started once for the tests of this file, in order."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from flows.server_rules import BLOCK
from flows.services import checks
from flows.services.control import states
from flows.services.setup import Setup
from tasks.stage import REPRODUCIBLE, STAGES
from tests.check_project import ROOT
from tests.flows.conftest import environment, vdmini
from tests.flows.test_promotion import race
from tests.services.team import dump, files_with, mlflow, prefect, team
from vdmini_core.errors import VDMiniError

pytestmark = pytest.mark.services
CANARIES = {
    "AWS_SESSION_TOKEN_OF_SOMEBODY": "canary-8d1f-session",
    "HF_TOKEN": "canary-77aa-hub",
    "PREFECT_API_KEY": "canary-3c90-prefect",
    "VDMINI_WEBHOOK": "https://hooks.invalid/canary-b1b1-webhook",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Path, Setup]]:
    with team() as running:
        yield running


@pytest.fixture(scope="module")
def told(servers: tuple[Path, Setup]) -> tuple[Path, Setup, str]:
    """The project after one whole run and a push, with canaries in its environment; what they printed."""
    root, setup = servers
    settings = {**setup.client_settings(), **CANARIES}
    # In the remote's own settings, too, as a hasty user would keep them.
    (root / ".dvc" / "config.local").write_text(
        "['remote \"own\"']\n    url = s3://dvc/own\n    secret_access_key = canary-5e5e-dvc\n"
    )
    run = vdmini(root, "run", **settings)
    push = dvc(root, setup, "push")
    return root, setup, run.stdout + run.stderr + push


def dvc(root: Path, setup: Setup, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment(**setup.client_settings()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_each_is_signed_in_at_and_listens_here_alone(servers: tuple[Path, Setup]) -> None:
    root, setup = servers
    said = json.loads(vdmini(root, "doctor", "--json", **setup.client_settings()).stdout)
    ours = {row["what"]: row for row in said if "service " in row["what"] or row["what"] in WORDS}
    assert len(ours) == len(WORDS) + 6 and {row["state"] for row in ours.values()} == {"ok"}, ours
    assert "signed in" in ours["MLflow"]["detail"] and "2 nodes" in ours["Ray"]["detail"]
    for name in ("services.json", "team.env", "mlflow/basic_auth.ini"):
        assert stat.S_IMODE((setup.home / name).stat().st_mode) == 0o600, name
    # Whoever reads the list of processes learns no password.
    secrets = set(setup.passwords.values())
    ours_running = [p for p in psutil.process_iter() if _is_of(p, setup)]
    assert len(ours_running) > 6
    for process in ours_running:
        line = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in line], process.name()
        if "ray" in line:  # binds to all addresses, whatever it is told; its token keeps others out
            continue
        for open_door in process.net_connections(kind="inet"):
            if open_door.status == psutil.CONN_LISTEN:
                assert open_door.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (
                    process.name(),
                    open_door,
                )


WORDS = ("MLflow", "Prefect", "Ray", "S3", "DVC remote")


def _is_of(process: psutil.Process, setup: Setup) -> bool:
    """Below the process manager of these services, or Ray's, which leave its group."""
    try:
        line = " ".join(process.cmdline())
        above = " ".join(word for parent in process.parents() for word in parent.cmdline())
    except psutil.Error:
        return False
    return str(setup.home) in line + above or str(setup.run_folder) in line + above


def test_a_wrong_password_is_told_from_a_server_that_is_not_there(servers: tuple[Path, Setup]) -> None:
    _, setup = servers
    wrong: list[tuple[Any, str]] = [
        (lambda: checks.mlflow_at(setup.url("mlflow"), "vdmini", "guess"), "password was refused"),
        (lambda: checks.prefect_at(f"{setup.url('prefect')}/api", "vdmini:guess"), "password was refused"),
        (lambda: checks.s3_buckets({**setup.s3_settings(), "AWS_SECRET_ACCESS_KEY": "guess"}), "keys were"),
        (
            lambda: checks.postgres(Setup(setup.home, setup.ports, setup.passwords | {"postgres": "x"})),
            "no way",
        ),
        (lambda: checks.mlflow_at("http://127.0.0.1:9", "vdmini", "guess"), "no answer"),
        (lambda: checks.ray_at("127.0.0.1:9"), "no answer"),
    ]
    for check, says in wrong:
        with pytest.raises(VDMiniError, match=says) as caught:
            check()
        assert "to do" in str(caught.value) and not any(
            p in str(caught.value) for p in setup.passwords.values()
        )


def test_the_run_is_on_the_pages_of_both_servers(told: tuple[Path, Setup, str]) -> None:
    root, setup, _ = told
    assert [run["state_type"] for run in prefect(setup, "/flow_runs/filter", {})] == ["COMPLETED"]
    names = {run["name"].rsplit("-", 1)[0] for run in prefect(setup, "/task_runs/filter", {})}
    assert names == set(STAGES)
    kinds = {artifact["type"] for artifact in prefect(setup, "/artifacts/filter", {})}
    assert {"table", "image", "markdown", "progress"} <= kinds
    assert not (root / "mlflow.db").exists() and not (root / "mlruns").exists()
    runs = mlflow(setup, "/runs/search", {"experiment_ids": ["1"]})["runs"]
    assert {run["info"]["run_name"] for run in runs} >= set(STAGES)
    found = mlflow(setup, "/registered-models/alias?name=vdmini-nano&alias=candidate")
    assert found["model_version"]["version"] == "1"
    stored = list((setup.home / "s3" / "mlflow").rglob("*.safetensors"))
    assert stored, "the student's weights lie in the bucket"


def test_outputs_come_back_from_the_bucket(told: tuple[Path, Setup, str]) -> None:
    root, setup, _ = told
    before = (root / "artifacts" / "distill" / "manifest.json").read_bytes()
    for stage in REPRODUCIBLE:  # what `register` and `promote` noted is not DVC's
        shutil.rmtree(root / "artifacts" / stage)
    shutil.rmtree(root / ".dvc" / "cache")
    dvc(root, setup, "pull")
    assert (root / "artifacts" / "distill" / "manifest.json").read_bytes() == before
    # What the project no longer names goes, there as well; what it names stays.
    bucket = setup.home / "s3" / "dvc" / "vdmini" / "files"
    kept = _files(bucket)
    (root / "extra.txt").write_text("one")
    dvc(root, setup, "add", "extra.txt")
    dvc(root, setup, "push", "extra.txt")
    assert len(_files(bucket)) == len(kept) + 1
    for name in ("extra.txt", "extra.txt.dvc"):
        (root / name).unlink()
    dvc(root, setup, "gc", "--workspace", "--cloud", "--force")
    assert _files(bucket) == kept


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_no_secret_is_kept_or_said(told: tuple[Path, Setup, str]) -> None:
    root, setup, printed = told
    words = [*CANARIES.values(), "canary-5e5e-dvc", *setup.passwords.values()]
    assert not [word for word in words if word in printed]
    assert not [word for word in words if word in dump(setup)]
    private = {".dvc/config.local", *(f".vdmini/services/{name}" for name in PRIVATE)}
    assert set(files_with(root, [word.encode() for word in words])) <= private
    session = files_with(setup.run_folder, [word.encode() for word in words])
    assert not session, "Ray's logs"


PRIVATE = ("services.json", "team.env", "mlflow/basic_auth.ini")


def test_a_schedule_fires_and_a_run_without_changes_is_short(told: tuple[Path, Setup, str]) -> None:
    root, setup, _ = told
    command = [sys.executable, "-m", "flows.serve", "--root", str(root)]
    with (root / ".vdmini" / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment(**setup.client_settings(), **CANARIES), stdout=log, stderr=log
        )
    try:
        served = _until(lambda: _all_of(prefect(setup, "/deployments/filter", {}), 3), process)
        crons = {one["name"]: [s["schedule"]["cron"] for s in one["schedules"]] for one in served}
        assert crons == {"nightly": ["0 2 * * *"], "weekly": ["0 6 * * 1"], "on-demand": []}
        assert [one["parameters"] for one in served] == [{"root": str(root)}] * 3
        found = next(one for one in served if one["name"] == "nightly")
        # Each minute, not once: the server plans ahead, and on a busy machine it may miss the first.
        soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
        minutely = {"interval": 60, "anchor_date": soon}
        prefect(setup, f"/deployments/{found['id']}/schedules", [{"schedule": minutely, "active": True}])  # type: ignore[arg-type]
        done = _until(
            lambda: [r for r in _scheduled(setup, found["id"]) if r["state_type"] == "COMPLETED"], process
        )
    finally:
        process.terminate()
        process.wait(timeout=60)
    # The server has an address of the webhook by now, and keeps it encrypted.
    assert [block["name"] for block in prefect(setup, "/block_documents/filter", {})] == [BLOCK]
    told_all = dump(setup) + (root / ".vdmini" / "serve.log").read_text()
    assert not [word for word in CANARIES.values() if word in told_all]
    assert done[0]["auto_scheduled"] and done[0]["total_run_time"] < 60
    summary = [a["data"] for a in prefect(setup, "/artifacts/filter", {}) if a["key"] == "vdmini-summary"]
    assert any(text.count("up to date") == len(STAGES) for text in summary), summary


def test_prefect_yaml_is_taken_by_a_real_server(told: tuple[Path, Setup, str]) -> None:
    _, setup, _ = told
    wanted = {d["name"]: d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    prefect(setup, "/work_pools/", {"name": "vdmini", "type": "process"})
    _prefect(setup, "--no-prompt", "deploy", "--all")
    found = [d for d in prefect(setup, "/deployments/filter", {}) if d["work_pool_name"] == "vdmini"]
    assert {d["name"] for d in found} == set(wanted)
    for deployed in found:
        asked = wanted[deployed["name"]]
        assert deployed["entrypoint"] == asked["entrypoint"] and deployed["parameters"] == asked["parameters"]
        schedules = [(s["schedule"]["cron"], s["active"]) for s in deployed["schedules"]]
        assert schedules == [(s["cron"], s["active"]) for s in asked.get("schedules", [])]
        assert (deployed["global_concurrency_limit"] or {}).get("limit") == 1


@pytest.mark.long
def test_a_worker_runs_what_was_deployed(told: tuple[Path, Setup, str]) -> None:
    root, setup, _ = told
    found = prefect(setup, "/deployments/filter", {})
    (gate,) = [d for d in found if d["name"] == "on-demand" and d["work_pool_name"] == "vdmini"]
    parameters = {"root": str(root), "profile": None, "reason": "asked by a worker"}
    run = prefect(setup, f"/deployments/{gate['id']}/create_flow_run", {"parameters": parameters})
    _prefect(setup, "worker", "start", "--pool", "vdmini", "--run-once")
    ended = prefect(setup, f"/flow_runs/{run['id']}")
    assert ended["state_type"] == "COMPLETED", ended["state"]
    champion = mlflow(setup, "/registered-models/alias?name=vdmini-nano&alias=champion")["model_version"]
    assert champion["version"] == "1"
    assert "asked by a worker" in {tag["key"]: tag["value"] for tag in champion["tags"]}["vdmini.forced"]


def _prefect(setup: Setup, *arguments: str) -> None:
    """The command itself, in the checkout."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("prefect")), *arguments],
        cwd=ROOT,
        env=environment(**setup.client_settings()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _all_of(found: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return found if len(found) == count else []


def _answers(setup: Setup) -> bool:
    try:
        checks.s3(setup)
    except VDMiniError:
        return False
    return True


def _scheduled(setup: Setup, deployment: str) -> list[dict[str, Any]]:
    runs = prefect(setup, "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
    assert not [run for run in runs if run["state_type"] in ("FAILED", "CRASHED")]
    return runs


def _until(look: Any, process: subprocess.Popen[bytes], limit_s: float = 300) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(1)
    return found


def test_two_promotions_at_once_on_postgresql(
    servers: tuple[Path, Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, setup = servers
    for name, value in setup.client_settings().items():
        monkeypatch.setenv(name, value)
    MlflowClient(setup.url("mlflow")).create_registered_model("toy")
    race(setup.url("mlflow"), tmp_path / "counter")


def test_what_falls_gets_up_and_what_stops_leaves_nothing(servers: tuple[Path, Setup]) -> None:
    root, setup = servers
    fallen = next(p for p in psutil.process_iter() if _is_of(p, setup) and "rclone" in p.name())
    fallen.kill()
    deadline = time.monotonic() + 60
    while not _answers(setup) or set(states(setup).values()) != {"RUNNING"}:
        assert time.monotonic() < deadline, states(setup)
        time.sleep(0.5)
    vdmini(root, "services", "stop")
    assert not [p for p in psutil.process_iter() if _is_of(p, setup)]
    assert not setup.run_folder.exists() and os.access(setup.env_file, os.R_OK)
