"""Claims about MLflow runs and the gate after a kill: nothing is left open, and a promotion stays one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mlflow.entities import RunStatus

from tasks.monitor import QuietMonitor
from tasks.promote import DECISION_TAG, run
from tasks.stage import StageJob
from tasks.tracking import MLflowTracker, is_alive, process_name
from vdmini_core.artifacts import read_json
from vdmini_core.params import parse_params

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tasks.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), keep_open=True)
with tracker("prepare", {"seed": 0}) as page:
    print(tracker.parent(), page.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def status(tracker: MLflowTracker, run_id: str) -> str:
    return RunStatus.to_string(RunStatus.from_string(tracker.client.get_run(run_id).info.status))


def test_runs_of_a_killed_process_are_closed_by_the_next_one(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    lost = done.stdout.split()
    assert done.returncode == -9 and len(lost) == 2, done.stderr
    tracker = MLflowTracker(tmp_path)
    assert [status(tracker, run_id) for run_id in lost] == ["RUNNING", "RUNNING"]
    mine = tracker.open_parent("next")
    assert [status(tracker, run_id) for run_id in lost] == ["KILLED", "KILLED"]
    assert status(tracker, mine) == "RUNNING"
    assert tracker.close_abandoned() == []


KILLED_REGISTER = """
import mlflow, os, signal, sys
from pathlib import Path
from tasks.tracking import MLflowTracker, tracking_uri
mlflow.set_tracking_uri(tracking_uri(Path(sys.argv[1])))  # the one that is asked for `models:/ID`
tracker = MLflowTracker(Path(sys.argv[1]), keep_open=True)
with tracker("register", {"seed": 0}) as page:
    models = [tracker.client.create_logged_model(tracker.experiment, f"m{n}", page.run_id) for n in (1, 2)]
    for model in models:
        tracker.client.finalize_logged_model(model.model_id, "READY")
    tracker.client.create_registered_model("toy")
    tracker.client.create_model_version("toy", f"models:/{models[0].model_id}", page.run_id)
    tracker.client.set_terminated(page.run_id, "FINISHED")  # as MLflow does when it has logged a model
    print(*[model.model_id for model in models], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_model_that_no_version_names_goes_though_its_run_has_ended(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_REGISTER, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    named, lost = done.stdout.split()
    tracker = MLflowTracker(tmp_path)

    def left() -> set[str]:
        return {model.model_id for model in tracker.client.search_logged_models([tracker.experiment])}

    assert left() == {named, lost}
    tracker.open_parent("next")
    assert left() == {named}


def test_a_process_is_known_by_its_start_not_its_number() -> None:
    machine, pid, started = process_name().split(":")
    assert is_alive(f"{machine}:{pid}:{started}")
    assert not is_alive(f"{machine}:{pid}:{int(started) - 60_000}")


def test_a_promotion_killed_before_it_was_written_down_is_told_again(tmp_path: Path) -> None:
    params = parse_params({"register": {"name": "toy"}})
    client = MLflowTracker(tmp_path).client
    client.create_registered_model("toy")
    version = client.create_model_version("toy", "file:///nowhere").version
    client.set_registered_model_alias("toy", "candidate", version)
    client.set_registered_model_alias("toy", "champion", version)
    told = {"outcome": "promote", "reasons": ["there is no champion yet"]}
    client.set_model_version_tag("toy", version, DECISION_TAG, json.dumps(told))
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    outcome = run(StageJob(tmp_path, params, tmp_path / "out", tmp_path / "work", QuietMonitor()))
    assert read_json(tmp_path / "out" / "decision.json") == told
    assert outcome.metrics["outcome"] == "promote"
    assert client.get_model_version_by_alias("toy", "champion").version == version
