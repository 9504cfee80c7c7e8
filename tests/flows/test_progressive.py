"""Two rounds of nano without training: each student is the one before cut further, and registered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.tracking import connect
from tests.flows.conftest import make_project, vdmini
from vdmini_core.artifacts import read_json
from vdmini_core.models.registry import fingerprint, load_pipeline
from vdmini_core.pruning.plan import Plan

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_server")]


def test_rounds_go_on_from_each_other_and_a_second_start_does_nothing(tmp_path: Path) -> None:
    root = make_project(
        tmp_path / "proj", "plan.recipe=auto", "plan.max_flops_ratio=0.7", "distill.depth=none"
    )
    told = json.loads(vdmini(root, "progressive", "--steps", "2", "--json").stdout)
    first, second = (root / "workspaces" / f"round-{number}" / "artifacts" for number in (1, 2))
    large, small = (Plan.load(folder / "distill" / "student" / "plan.json") for folder in (first, second))
    teacher = load_pipeline(second / "teacher" / "pipeline").unet
    assert large.teacher_fingerprint == small.teacher_fingerprint == fingerprint(teacher)
    assert set(large.removed) < set(small.removed) and large.flops_ratio <= 0.8367
    assert small.flops_ratio <= 0.7
    before, after = (load_pipeline(folder / "distill" / "student").unet for folder in (first, second))
    step = Plan.load(second / "plan" / "plan.json")
    assert step.teacher_fingerprint == fingerprint(before), "the second round profiles and cuts the first's"
    assert sum(p.numel() for p in after.parameters()) == small.expected_params < large.expected_params
    assert [row["name"] for row in told["students"]] == ["large", "small"]
    assert Path(told["report"]).is_file() and all((Path(told["report"]).parent / row["report"]).is_file()
                                                  for row in told["students"])  # fmt: skip
    client = connect(root)
    tags = [client.get_model_version_by_alias("vdmini-nano", size).tags for size in ("large", "small")]
    assert [tag["vdmini.round"] for tag in tags] == ["1 of 2", "2 of 2"]
    runs = {path: path.read_bytes() for folder in (first, second) for path in folder.glob("*/run.json")}
    assert second / "evaluate" / "run.json" in runs
    again = json.loads(vdmini(root, "progressive", "--steps", "2", "--json").stdout)
    assert again == told and all(path.read_bytes() == kept for path, kept in runs.items())
    assert read_json(second / "evaluate" / "metrics.json")["teacher"]["params"] == small.teacher_params
