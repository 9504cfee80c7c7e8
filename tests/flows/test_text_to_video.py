"""The nano story from text: prompts in, distances out, a registered model that answers a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.project import change_params, lay_out
from tasks.stage import STAGES
from tasks.versioning import init_repository
from tests.flows.conftest import vdmini
from tests.services.serving import frames_of, videos_served
from vdmini_core.artifacts import read_json
from vdmini_core.data.prompts import load_prompts
from vdmini_core.models.registry import load_settings

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
    asked = [{"prompt": "A red disc moves up.", "seed": 1}, {"prompt": "A blue square stands.", "seed": 1}]
    uri, store = f"models:/vdmini-{profile}@candidate", f"sqlite:///{root / 'mlflow.db'}"
    first, second = videos_served(uri, store, tmp_path, asked)
    assert frames_of(first, tmp_path / "v.mp4")[0] == load_settings(artifacts / "teacher" / "pipeline").frames
    assert first != second
