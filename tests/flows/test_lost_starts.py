"""Workers that die while Ray starts them: the next ones get their places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One place for one worker, which dies the first time, as late as it can.
DRIVER = """
import os, sys
from pathlib import Path
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from tasks.ray_runtime import ray_session
from tasks.recovery_backend import ListeningBackend, RecoveryTorchConfig
folder = sys.argv[1]
def die_once():
    marker = Path(folder) / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
class DyingBackend(ListeningBackend):
    def instruct(self, worker_group):
        worker_group.execute(die_once)
        super().instruct(worker_group)
class DyingConfig(RecoveryTorchConfig):
    @property
    def backend_cls(self):
        return DyingBackend
def train():
    (Path(folder) / "trained").touch()
with ray_session(1):
    TorchTrainer(
        train,
        torch_config=DyingConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="lost", storage_path=folder, failure_config=FailureConfig(controller_failure_limit=1)
        ),
    ).fit()
"""


@pytest.mark.timeout(600)
def test_a_worker_that_dies_while_it_starts_gives_its_place_back(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment, timeout=500, check=True)
    assert (tmp_path / "died").exists() and (tmp_path / "trained").exists()
