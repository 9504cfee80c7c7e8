"""The nano story from text: prompts in, distances out, a registered model that answers a prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.project import change_params, lay_out
from tasks.stage import STAGES
from tasks.versioning import init_repository
from tests.flows.conftest import environment, vdmini
from vdmini_core.artifacts import read_json
from vdmini_core.data.prompts import load_prompts

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_server")]


@pytest.mark.parametrize("profile", ["nano-t2v", pytest.param("nano-dit", marks=pytest.mark.long)])
def test_prompts_go_in_and_a_registered_model_comes_out(profile: str, tmp_path: Path) -> None:
    root = tmp_path / "proj"
    lay_out(root)
    init_repository(root)
    change_params(root, profile=profile, assignments=("distill.workers=1", "distill.steps=4"))
    vdmini(root, "run")
    artifacts = root / "artifacts"
    assert all((artifacts / stage / "manifest.json").is_file() for stage in STAGES)
    metrics, prompts = (
        read_json(artifacts / "evaluate" / "metrics.json"),
        load_prompts(artifacts / "prepare", "test"),
    )
    assert metrics["starts_from"] == ["prompts"] and metrics["prompts"] == list(prompts[:2])
    assert metrics["recovered"]["fvd_teacher"] > 0 and metrics["flops_ratio"] < 1
    assert "trajectory_error" not in metrics["recovered"]
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert all(f"<q>{prompt}</q>" in page for prompt in prompts[:2]) and "The same prompt" in page
    assert "U-Net" not in page
    rows = [json.loads(line) for line in (artifacts / "distill" / "losses.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["task"] > 0 and row["icd"] > 0 for row in rows)
    code = (
        "import base64, mlflow\n"
        f"mlflow.set_tracking_uri('sqlite:///{root / 'mlflow.db'}')\n"
        f"model = mlflow.pyfunc.load_model('models:/vdmini-{profile}@candidate')\n"
        "answer = model.predict({'prompt': 'A red disc moves up.', 'seed': 1})\n"
        "assert base64.b64decode(answer[0]['video'])[4:8] == b'ftyp'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
