"""Rounds of a progressive run: how the budget is divided, what a workspace is told, what the page shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.project import change_params, lay_out
from tasks.rounds import prepare_round, rounds_of, share, sizes
from tasks.versioning import init_repository
from vdmini_core.errors import VDMiniError
from vdmini_core.params import PlanParams, load_params
from vdmini_core.pruning.compose import budgets_left
from vdmini_core.pruning.plan import Plan
from vdmini_core.report.rounds import ONE_SHOT, render_rounds, students_chart


def test_every_round_removes_the_same_share_and_the_last_meets_the_budget() -> None:
    shares = [share(0.512, number, 3) for number in (1, 2, 3)]
    assert shares == [0.8, 0.64, 0.512]
    assert [sizes(count) for count in (1, 2, 3)] == [
        ["small"],
        ["large", "small"],
        ["large", "medium", "small"],
    ]
    assert sizes(4) == ["large", "medium-1", "medium-2", "small"]


def test_budgets_against_the_teacher_become_budgets_against_the_student() -> None:
    first = Plan("auto", (), "x", "svd", 1000, 1000, 900, 800, {}, ())
    params = PlanParams(recipe="auto", max_flops_ratio=0.6, max_params_ratio=0.95)
    left = budgets_left(params, first)
    assert left.max_flops_ratio == pytest.approx(0.75)
    assert left.max_params_ratio == 1.0, "met already: nothing has to go for it"
    assert budgets_left(PlanParams(recipe="paper"), first) == PlanParams(recipe="paper")


def test_a_round_is_a_workspace_with_the_projects_parameters(tmp_path: Path) -> None:
    home = tmp_path / "proj"
    lay_out(home)
    init_repository(home)
    change_params(home, profile="nano", assignments=("plan.recipe=auto", "plan.max_flops_ratio=0.64"))
    params = load_params(home / "params.yaml")
    first, second = rounds_of(home, params, 2)
    prepare_round(home, first, params)
    told = load_params(first.folder / "params.yaml")
    assert told.plan.max_flops_ratio == 0.8 and told.teacher.bundled == "nano"
    assert (first.folder / told.teacher.start).resolve() == home / "teachers" / "start", (
        "nothing to go on from"
    )
    student = first.folder / "artifacts" / "distill" / "student"
    student.mkdir(parents=True)
    prepare_round(home, second, params)
    told = load_params(second.folder / "params.yaml")
    assert (second.folder / told.teacher.start).resolve() == student and not Path(
        told.teacher.start
    ).is_absolute()
    assert (told.plan.max_flops_ratio, told.register_.alias) == (0.64, "small")
    assert told.register_.tags == {"vdmini.round": "2 of 2", "vdmini.size": "small"}
    # a change in the project reaches a round that is there already; the rest stays
    before = (second.folder / "params.yaml").read_bytes()
    prepare_round(home, second, params)
    assert (second.folder / "params.yaml").read_bytes() == before
    change_params(home, assignments=("distill.steps=9",))
    prepare_round(home, second, load_params(home / "params.yaml"))
    assert load_params(second.folder / "params.yaml").distill.steps == 9


@pytest.mark.parametrize("change", [{"recipe": "paper"}, {"recipe": "manual", "units": ("M",)}])
def test_recipes_without_a_budget_have_no_rounds(tmp_path: Path, change: dict[str, Any]) -> None:
    params = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
    fixed = params.model_copy(update={"plan": PlanParams(**change)})
    with pytest.raises(VDMiniError, match="divide a budget"):
        rounds_of(tmp_path, fixed, 3)


def student(name: str, speed: float | None, distance: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "removed": ["D.0.pair.1", "<b>M</b>"],
        "depth": "full",
        "steps": 16,
        "params": 7_000_000,
        "params_ratio": 0.7,
        "flops_ratio": 0.8,
        "speedup": {"unet": speed},
        "fvd_teacher": distance,
        "model": "vdmini-mini",
        "version": "3",
        "report": "../../workspaces/round-1/artifacts/report/index.html",
    }


def test_the_page_has_every_student_and_escapes_names(tmp_path: Path) -> None:
    rows = [student("large", 1.2, 3.5), student("small", 1.6, 8.25), student(ONE_SHOT, 1.6, 9.75)]
    page = render_rounds(rows, {"teacher": {"params": 1e7}}, tmp_path).read_text()
    for text in ("2 students from one run", "8.25", "9.75", "1.60×", "vdmini-mini 3", "workspaces/round-1"):
        assert text in page, text
    assert "<b>M</b>" not in page and "&lt;b&gt;M&lt;/b&gt;" in page
    assert (tmp_path / "students.png").stat().st_size > 5000


def test_a_student_that_was_not_measured_is_left_out_of_the_chart(tmp_path: Path) -> None:
    rows = [student("large", 1.2, 3.5), student("small", None, None)]
    for name, shown in (("one", rows[:1]), ("both", rows)):
        students_chart(shown, tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "both.svg").read_bytes()
