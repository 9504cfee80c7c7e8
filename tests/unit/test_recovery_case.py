"""What the planner judges: the depth that is meant, the clips and the cut that the parameters name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import svd_toys

from tasks.recovery_cost import check_memory, make_case
from tasks.stage import QuietMonitor, StageJob
from vdmini_core.params import Params


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher and a plan of the paper's cut."""
    root = tmp_path_factory.mktemp("case")
    teacher, student = root / "artifacts" / "teacher" / "pipeline", root / "artifacts" / "prune" / "student"
    svd_toys.tiny_pipeline().save_pretrained(teacher)
    student.mkdir(parents=True)
    make_case(Params(), str(teacher), None).plan.save(student / "plan.json")
    return root


def judged(root: Path, **distill: object) -> list[str]:
    """What `check_memory` notes."""
    params = Params.model_validate({"distill": {"steps": 1, "batch_size": 1, "workers": 1, **distill}})
    monitor = QuietMonitor()
    check_memory(StageJob(root, params, root / "out", root / "work", monitor))
    return monitor.notes


@pytest.mark.parametrize("shares", [{}, {"auto_lora_from": 0.01, "auto_full_from": 0.99, "lora_rank": 4}])
def test_memory_is_checked_at_the_depth_that_auto_means(root: Path, shares: dict[str, Any]) -> None:
    assert judged(root, depth="auto", **shares) == []
    teacher, plan = root / "artifacts/teacher/pipeline", root / "artifacts/prune/student/plan.json"
    params = Params.model_validate({"distill": {"depth": "auto", **shares}})
    assert make_case(params, str(teacher), plan).params.depth == ("lora" if shares else "full")


def test_what_learns_nothing_needs_nothing(root: Path) -> None:
    unlearned = {"auto_lora_from": 0.98, "auto_full_from": 0.99}
    for distill in ({"depth": "none"}, {"depth": "auto", **unlearned}):
        [note] = judged(root, **distill)
        assert note.startswith(f"distill.depth {distill['depth']}: the denoiser learns nothing")
