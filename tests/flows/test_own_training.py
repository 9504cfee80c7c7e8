"""`vdmini teacher --train`: killed and started again it ends with the same teacher, seen live in MLflow."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.chaos.hook.chaos_tree import MARK, kill_tree
from tests.flows.conftest import VDMINI, environment, make_project, vdmini
from vdmini_core.artifacts import read_json, tree_digests

pytestmark = pytest.mark.services
SMALL = ("batch_size=1", "window_batch_size=1")
TRAINING = ("size=nano", "vae_steps=3", "steps=12", "probe_every=12", "checkpoint_every=4", *SMALL)
SETTINGS = tuple(f"teacher.train.{setting}" for setting in TRAINING)


@pytest.mark.long  # tests/unit/test_teacher_training.py resumes one too, without the command and MLflow
def test_a_teacher_trained_here_survives_a_kill(tmp_path: Path) -> None:
    whole = make_project(tmp_path / "whole", *SETTINGS)
    vdmini(whole, "prepare")
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    vdmini(whole, "teacher", "--train")
    run = subprocess.Popen(
        [VDMINI, "teacher", "--train"],
        cwd=killed,
        env=environment(**{MARK: str(tmp_path)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list((killed / ".vdmini" / "work" / "teacher").rglob("unet.pt")):
        assert run.poll() is None, "the training ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)
    kill_tree(str(tmp_path))
    assert run.wait(timeout=20) == -signal.SIGKILL
    vdmini(killed, "teacher")
    assert tree_digests(killed / "artifacts" / "teacher") == tree_digests(whole / "artifacts" / "teacher")
    assert "mse_ratio" in read_json(whole / "artifacts" / "teacher" / "training.json")
    client = MlflowClient(f"sqlite:///{whole / 'mlflow.db'}")
    stage = client.search_runs(["1"], "tags.`vdmini.stage` = 'teacher'")[0]
    assert {"unet/loss", "unet/ratio"} <= set(stage.data.metrics)
    assert [file.path for file in client.list_artifacts(stage.info.run_id, "live")]
