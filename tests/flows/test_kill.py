"""SIGKILL of the whole run during `distill`; started again it ends with the very same student."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from tests.flows.conftest import VDMINI, environment, make_project, vdmini
from vdmini_core.artifacts import tree_digests

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("story")]


def checkpoints(root: Path) -> list[Path]:
    return list((root / ".vdmini" / "work" / "distill").rglob("checkpoint-*"))


def kill_tree(pid: int) -> None:
    """SIGKILL to the process and everything below it, as a machine that dies would."""
    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def test_a_killed_run_goes_on_and_ends_the_same(finished_project: Path, tmp_path: Path) -> None:
    root = make_project(tmp_path / "proj")
    run = subprocess.Popen(
        [VDMINI, "run"], cwd=root, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 800
    while not checkpoints(root):
        assert run.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.05)
    kill_tree(run.pid)
    run.wait(timeout=20)
    assert not (root / "artifacts" / "distill").exists()
    vdmini(root, "run")
    theirs = tree_digests(finished_project / "artifacts" / "distill")
    assert tree_digests(root / "artifacts" / "distill") == theirs
    assert not (root / ".vdmini" / "work" / "distill").exists()
    assert not [path for path in (root / "artifacts").iterdir() if path.name.startswith(".")]
    assert (root / "artifacts" / "report" / "index.html").is_file()
    left_open = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_runs(
        ["1"], "attributes.status = 'RUNNING'"
    )
    assert not left_open, "runs of the killed process are marked as killed by the next one"
