"""Several runs at once: in one checkout they take turns, beside one server they keep apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tasks.project import change_params
from tasks.stage import REPRODUCIBLE, STAGES
from tasks.tracking import connect
from tests.flows.conftest import VDMINI, dvc_status, environment, make_project, prefect_server, vdmini
from tests.services.serving import free_port, server
from vdmini_core.artifacts import read_json, tree_digests

__all__ = ["prefect_server"]  # the fixture
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.usefixtures("prefect_server")]
MODEL = "vdmini-nano"
OTHER = "distill.lambda_icd=0.3"  # from `distill` on all is made anew
OWN = {"timing.json", "run.json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("once") / "proj")
    vdmini(root, "run")
    return root


def begin(root: Path, *command: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=root, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> str:
    out, said = process.communicate(timeout=1200)
    assert process.returncode == 0, out[-2000:] + said[-4000:]
    return out


def outputs(root: Path) -> dict[str, dict[str, str]]:
    """Hashes of all that is no note of time or host."""
    return {
        stage: {
            name: digest
            for name, digest in tree_digests(root / "artifacts" / stage).items()
            if Path(name).name not in OWN
        }
        for stage in REPRODUCIBLE
        if stage != "report"  # shows latencies
    }


def test_two_runs_and_dvc_in_one_checkout_make_everything_once(made: Path, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    for root in (together, alone):
        shutil.copytree(made, root)
        change_params(root, assignments=(OTHER,))
    runs = [begin(together, str(VDMINI), "run", "--json") for _ in range(2)]
    time.sleep(15)  # they are at work by then
    repro = begin(together, sys.executable, "-m", "dvc", "repro")
    fates = [{row["stage"]: row["fate"] for row in json.loads(ended(run))["stages"]} for run in runs]
    said = repro.communicate(timeout=1200)[1]
    assert repro.returncode == 0 or "is busy, it is being blocked by" in said, said
    assert set(fates[0]) == set(fates[1]) == set(STAGES)
    for stage in STAGES:
        assert [fate[stage] for fate in fates].count("ran") <= 1, (stage, fates)
    vdmini(alone, "run")
    assert outputs(together) == outputs(alone)
    client = connect(together)
    found = client.search_model_versions(f"name = '{MODEL}'")
    assert sorted(int(version.version) for version in found) == [1, 2]
    finished = Counter(
        run.info.run_name
        for run in client.search_runs(["1"], "attributes.status = 'FINISHED'", max_results=100)
    )
    assert (finished["distill"], finished["register"]) == (2, 2)  # one of before, one of now
    assert {run["fate"] for run in json.loads(vdmini(together, "run", "--json").stdout)["stages"]} == {
        "up to date"
    }
    assert dvc_status(together) == {}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    url = f"http://127.0.0.1:{port}"
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with server(command, f"{url}/health", folder, **quiet):
        yield url


def test_two_projects_beside_one_server_keep_apart(made: Path, tracking: str, tmp_path: Path) -> None:
    """The same model name, one MLflow, one Prefect: two versions, each with its own project's student."""
    roots = {name: tmp_path / name for name in ("one", "two")}
    for root, weight in zip(roots.values(), (0.2, 0.4), strict=True):
        shutil.copytree(made, root)
        change_params(root, assignments=(f"distill.lambda_icd={weight}",))
    runs = {
        name: begin(root, str(VDMINI), "run", "--json", MLFLOW_TRACKING_URI=tracking)
        for name, root in roots.items()
    }
    for run in runs.values():
        ended(run)
    client = MlflowClient(tracking)
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{MODEL}'")}
    assert set(versions) == {"1", "2"}
    registered = {}
    for name, root in roots.items():
        mine = str(read_json(root / "artifacts" / "register" / "timing.json")["version"])
        registered[name] = mine
        evidence = json.loads(versions[mine].tags["vdmini.evidence"])["metrics"]
        ours = read_json(root / "artifacts" / "evaluate" / "metrics.json")
        assert evidence["recovered"]["fvd_teacher"] == ours["recovered"]["fvd_teacher"], name
        folder = Path(
            client.download_artifacts(versions[mine].run_id, "recipe", str(tmp_path))
            if versions[mine].run_id
            else ""
        )
        assert f"lambda_icd: {0.2 if name == 'one' else 0.4}" in (folder / "params.yaml").read_text()
        shutil.rmtree(folder)
    assert sorted(registered.values()) == ["1", "2"]
    candidate = client.get_model_version_by_alias(MODEL, "candidate")
    assert str(candidate.version) in versions
