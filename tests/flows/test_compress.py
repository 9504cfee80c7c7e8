"""The whole nano story by both drivers, killed and not: same hashes, nothing twice, all in MLflow."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.stage import REPRODUCIBLE, STAGES
from tasks.tracking import connect
from tests.chaos.hook.chaos_tree import MARK, kill_tree
from tests.flows.conftest import dvc_status, environment, make_project, vdmini
from vdmini_core.artifacts import read_json, tree_digests

DVC = Path(sys.executable).with_name("dvc")
pytestmark = pytest.mark.services


def hashes(root: Path) -> dict[str, str]:
    """Every output but the volatile files, the rendered report and what belongs to the outside world."""
    found = {}
    for stage in REPRODUCIBLE:
        if stage != "report":
            found |= {f"{stage}/{k}": v for k, v in tree_digests(root / "artifacts" / stage).items()}
            manifest = read_json(root / "artifacts" / stage / "manifest.json")
            found[f"{stage}/manifest"] = json.dumps(manifest, sort_keys=True)
    return found


def forget(root: Path, stages: tuple[str, ...]) -> None:
    """Outputs of `stages`, in the workspace and in DVC's cache; the other stages stay as DVC knows them."""
    cache = root / ".dvc" / "cache"
    shutil.rmtree(cache / "runs")
    locked = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    kept = {digest for stage in locked if stage not in stages for digest in _objects(cache, locked[stage])}
    for stage in stages:
        shutil.rmtree(root / "artifacts" / stage)
        for digest in _objects(cache, locked[stage]) - kept:
            _object(cache, digest).unlink(missing_ok=True)


def _objects(cache: Path, stage: dict[str, Any]) -> set[str]:
    """Hashes of a stage's folders and of the files in them, as its part of `dvc.lock` names them."""
    folders = {out["md5"] for out in stage["outs"]}
    return folders | {entry["md5"] for folder in folders for entry in read_json(_object(cache, folder))}


def _object(cache: Path, digest: str) -> Path:
    return cache / "files" / "md5" / digest[:2] / digest[2:]


def test_the_run_leaves_every_output_and_a_clean_dvc_status(finished_project: Path) -> None:
    for stage in STAGES:
        assert (finished_project / "artifacts" / stage / "manifest.json").is_file(), stage
    assert dvc_status(finished_project) == {}
    assert not list((finished_project / "artifacts").glob(".*"))


def test_a_second_run_does_nothing(finished_project: Path) -> None:
    summary = json.loads(vdmini(finished_project, "run", "--json").stdout)
    assert {row["fate"] for row in summary["stages"]} == {"up to date"}


def test_dvc_compares_by_tables_that_have_what_its_pipeline_file_names(finished_project: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(finished_project)) as repo:
        ((path, found),) = repo.metrics.show()[""]["data"].items()
    assert path == "artifacts/report/tables/metrics.json"
    figures, source = found["data"], read_json(finished_project / "artifacts" / "evaluate" / "metrics.json")
    assert figures["recovered"]["fvd_real"] == source["recovered"]["fvd_real"]
    named = yaml.safe_load((finished_project / "dvc.yaml").read_text())["plots"]
    for plot in (plot for entry in named for plot in entry.values()):
        ((table, columns),) = plot["y"].items()
        with (finished_project / table).open() as file:
            rows = list(csv.DictReader(file))
        wanted = [plot["x"], *([columns] if isinstance(columns, str) else columns)]
        assert rows and all(row[column] != "" for row in rows for column in wanted), table


@pytest.mark.usefixtures("prefect_server")
def test_the_other_driver_killed_and_started_again_gives_the_same_bytes(
    finished_project: Path, tmp_path: Path
) -> None:
    """SIGKILL of everything during `distill` of `dvc repro`; started again it ends with the same files.

    The stages before are the flow's. `make chaos` has whole stories under both drivers.
    """
    other, anew = tmp_path / "repro", ("distill", "evaluate", "report")
    shutil.copytree(finished_project, other)
    forget(other, anew)  # what the flow has made is not to be brought back
    connected = connect(other)
    known = {run.info.run_id for run in connected.search_runs(["1"], max_results=100)}
    again = [DVC, "repro"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    mark = str(tmp_path)
    repro = subprocess.Popen(again, cwd=other, env=environment(**{MARK: mark}), **quiet)
    deadline = time.monotonic() + 800
    while not list((other / ".vdmini" / "work" / "distill").rglob("checkpoint-*")):
        assert repro.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.05)
    kill_tree(mark)
    repro.wait(timeout=20)
    assert not (other / "artifacts" / "distill").exists()
    done = subprocess.run(again, cwd=other, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stage for stage in REPRODUCIBLE if f"Running stage '{stage}'" in done.stdout} == set(anew)
    assert hashes(other) == hashes(finished_project)
    assert not (other / ".vdmini" / "work" / "distill").exists()
    assert not [path for path in (other / "artifacts").iterdir() if path.name.startswith(".")]
    # The flow goes on where the other driver stopped, and plain `dvc repro` had its MLflow parent run.
    assert {r["fate"] for r in json.loads(vdmini(other, "run", "--json").stdout)["stages"][:8]} == {
        "up to date"
    }
    runs = [run for run in connected.search_runs(["1"], max_results=100) if run.info.run_id not in known]
    parents = {run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags}
    below = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") in parents}
    assert below >= set(anew)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}, "the killed ones are closed"


def test_metrics_have_every_row(finished_project: Path) -> None:
    metrics = read_json(finished_project / "artifacts" / "evaluate" / "metrics.json")
    for row in ("teacher", "pruned", "recovered", "repeat_first_frame", "real"):
        assert "fvd_real" in metrics[row]
        assert row == "teacher" or {"fvd_teacher", "mse_teacher"} <= set(metrics[row])
    assert {"params", "flops"} <= set(metrics["recovered"])
    assert 0 < metrics["params_ratio"] < 1
    assert 0 < metrics["flops_ratio"] < 1
    timing = read_json(finished_project / "artifacts" / "evaluate" / "timing.json")
    assert set(timing["speedup"]) >= {"unet", "vae_decoder", "end_to_end"}
    assert set(timing["latency_ms"]) >= {"teacher", "pruned", "recovered"}


def test_one_parent_run_with_a_nested_run_per_stage(finished_project: Path) -> None:
    client = connect(finished_project)
    runs = client.search_runs(["1"], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert set(children) == set(STAGES)
    assert "task" in " ".join(children["distill"].data.metrics)
    assert children["plan"].data.params["plan.recipe"] == "paper"


@pytest.mark.usefixtures("prefect_server")
def test_a_changed_parameter_runs_the_stages_that_read_it(finished_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished_project, root)
    done = vdmini(root, "run", "--set", "report.videos=1", "--json")
    fates = {row["stage"]: row["fate"] for row in json.loads(done.stdout)["stages"]}
    assert {name for name, fate in fates.items() if fate != "up to date"} == {"report"}
    assert fates["report"] == "ran"
    assert "report.videos: 2 -> 1" in done.stderr


def test_deleted_outputs_come_back_without_running(finished_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished_project, root)
    before = hashes(root)
    shutil.rmtree(root / "artifacts" / "teacher")
    assert json.loads(vdmini(root, "teacher", "--json").stdout)["fate"] == "restored"
    assert hashes(root) == before


def test_a_workspace_is_a_project_of_its_own(tmp_path: Path) -> None:
    root = make_project(tmp_path / "proj")
    before = (root / "params.yaml").read_text()
    change = ("--workspace", "other", "--set", "base.seed=5")
    assert json.loads(vdmini(root, "prepare", *change, "--json").stdout)["stage"] == "prepare"
    assert json.loads(vdmini(root, "prepare", *change, "--json").stdout)["fate"] == "up to date"
    assert (root / "workspaces" / "other" / "artifacts" / "prepare" / "manifest.json").is_file()
    assert (root / "params.yaml").read_text() == before
    assert not (root / "artifacts").exists()
    assert any((root / ".dvc" / "cache" / "files").iterdir()), "the cache is the project's"


@pytest.mark.usefixtures("prefect_server")
def test_a_mistake_of_the_user_has_no_traceback(finished_project: Path, tmp_path: Path) -> None:
    root = make_project(tmp_path / "bad", "teacher.source=path", "teacher.path=nowhere")
    done = vdmini(root, "run", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "teacher" in done.stderr
    assert vdmini(root, "run", "--bogus", check=False).returncode == 2
