"""What the planner judges: the depth that is meant, the clips and the cut that the parameters name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import svd_toys

from tasks.monitor import QuietMonitor
from tasks.project import preview_params, template_folder
from tasks.recovery_cost import check_memory
from tasks.recovery_dry_run import Wanted, make_case, wanted_case
from tasks.stage import StageJob
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


def wanted(root: Path, profile: str | None, *assignments: str, **named: Any) -> Any:
    """The case of a command in the template project."""
    params = preview_params(template_folder(), profile=profile, assignments=assignments)
    return wanted_case(root, params, Wanted(profile=profile, assignments=assignments, **named))[0]


def test_a_profile_names_teacher_clips_and_cut(root: Path) -> None:
    case = wanted(root, "t2v-turbo-v2", "plan.recipe=larger")  # not the teacher that lies in the project
    assert (case.family.name, case.plan.recipe) == ("videocrafter", "larger")
    assert (case.settings.frames, case.settings.height, case.settings.width) == (16, 320, 512)
    plan = root / "artifacts/prune/student/plan.json"
    teacher = str(root / "artifacts/teacher/pipeline")
    fitted = wanted(root, "nano", teacher=teacher, plan=plan, frames=3, size=(32, 48))
    assert fitted.plan.recipe == "paper"
    assert (fitted.settings.frames, fitted.settings.height, fitted.settings.width) == (3, 32, 48)
    nano = preview_params(template_folder(), profile="nano").prepare
    assert wanted(root, "nano", teacher=teacher).settings.frames == nano.frames


def test_a_project_s_own_models_go_before_what_its_parameters_name(root: Path) -> None:
    teacher = root / "artifacts/teacher/pipeline"
    case = wanted(root, None)
    assert case.settings == make_case(Params(), str(teacher), None).settings
    assert (
        case.plan.recipe == "paper" and case.params.steps == preview_params(template_folder()).distill.steps
    )
    assert wanted(root, None, "plan.recipe=larger").plan.recipe == "larger"
