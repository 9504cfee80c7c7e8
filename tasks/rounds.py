"""Progressive compression: prune a little, recover, profile again, until the budget is met.

Round k is a workspace, `workspaces/round-k`, that goes on from the student of round k - 1
(`teacher.start`); its parameters are the project's but for what `settings_of` says. So a round is an
ordinary project: DVC knows what is stale, a killed round goes on, and either driver can run it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.project import change_params, lay_out, start_from, workspace_folder
from tasks.stage import finished
from tasks.versioning import init_repository
from vdmini_core.artifacts import read_json, staged_output, write_json
from vdmini_core.errors import VDMiniError
from vdmini_core.params import FIXED_RECIPES, Params

BUDGETS = ("max_flops_ratio", "max_params_ratio")
SHOWN = ("fvd_teacher", "fvd_real", "mse_teacher", "content_teacher", "motion_teacher")


@dataclass(frozen=True)
class Round:
    """One of `count` steps to the budget.

    Attributes:
        number: from 1.
        count: how many there are.
        size: name of its student, `large` for the first, `small` for the last.
        folder: its workspace.
    """

    number: int
    count: int
    size: str
    folder: Path


def rounds_of(home: Path, params: Params, count: int) -> list[Round]:
    """The rounds of a project.

    Raises:
        VDMiniError: for a recipe that follows no budget, or a budget that cannot be divided.
    """
    plan = params.plan
    if plan.recipe in FIXED_RECIPES or plan.max_latency_ratio is not None:
        raise VDMiniError(
            "the rounds of `vdmini progressive` divide a budget of FLOPs or parameters",
            expected="plan.recipe auto with plan.max_flops_ratio or plan.max_params_ratio",
            found=f"recipe {plan.recipe}" + (", max_latency_ratio" if plan.max_latency_ratio else ""),
            fix="vdmini progressive --set plan.recipe=auto --set plan.max_flops_ratio=0.6",
        )
    return [
        Round(number, count, size, workspace_folder(home, f"round-{number}"))
        for number, size in enumerate(sizes(count), start=1)
    ]


def sizes(count: int) -> list[str]:
    """Names of the students, the largest first."""
    if count == 1:
        return ["small"]
    between = ["medium"] if count == 3 else [f"medium-{i}" for i in range(1, count - 1)]
    return ["large", *between, "small"]


def share(limit: float, number: int, count: int) -> float:
    """Budget of a round against the teacher: every round removes the same share of what it finds."""
    return limit if number == count else round(limit ** (number / count), 4)


def settings_of(step: Round, params: Params) -> dict[str, Any]:
    """Keys of `params.yaml` in which a round differs from its project."""
    budgets = {
        f"plan.{name}": share(limit, step.number, step.count)
        for name in BUDGETS
        if (limit := getattr(params.plan, name)) is not None
    }
    before = step.folder.parent / f"round-{step.number - 1}" / "artifacts" / "distill" / "student"
    return {
        **budgets,
        **({"teacher.start": str(before.resolve())} if step.number > 1 else {}),
        "register.alias": step.size,
        "register.tags": {"vdmini.round": f"{step.number} of {step.count}", "vdmini.size": step.size},
        "report.title": f"{params.report.title}, round {step.number} of {step.count}: {step.size}",
    }


def prepare_round(home: Path, step: Round, params: Params) -> None:
    """Lay out a round's workspace, or bring its parameters in step with the project's."""
    if (step.folder / ".dvc").is_dir():
        start_from(step.folder, home)
    else:
        lay_out(step.folder, like=home)
        init_repository(step.folder, shared_cache=home / ".dvc" / "cache")
    settings = settings_of(step, params)
    change_params(step.folder, assignments=tuple(f"{k}={json.dumps(v)}" for k, v in settings.items()))


def write_page(home: Path, steps: Sequence[Round]) -> Path:
    """Write `artifacts/rounds/`: every student in numbers, on a chart, and on a page.

    Beside the rounds stands the student of the project's own run, where that was evaluated on the same
    teacher and clips.
    """
    from vdmini_core.report.rounds import render_rounds

    out, last = home / "artifacts" / "rounds", steps[-1].folder
    page = out / "index.html"
    students = [_student(step.folder, step.size, page) for step in steps]
    if (home / "artifacts" / "evaluate" / "metrics.json").is_file() and _measured_alike(home, last):
        students.append(_student(home, "one shot", page))
    with staged_output(out) as folder:
        write_json(folder / "students.json", students)
        render_rounds(students, read_json(last / "artifacts" / "evaluate" / "metrics.json"), folder)
    return page


def _measured_alike(first: Path, second: Path) -> bool:
    facts = []
    for root in (first, second):
        metrics = read_json(root / "artifacts" / "evaluate" / "metrics.json")
        facts.append([finished(root, "teacher")["metrics"]["fingerprint"], metrics.get("passport")])
    return bool(facts[0] == facts[1])


def _student(root: Path, name: str, page: Path) -> dict[str, Any]:
    artifacts = root / "artifacts"
    metrics = read_json(artifacts / "evaluate" / "metrics.json")
    timing = read_json(artifacts / "evaluate" / "timing.json")
    row, register = metrics["recovered"], artifacts / "register"
    registered = read_json(register / "registration.json") if register.is_dir() else {}
    return {
        "name": name,
        "removed": read_json(artifacts / "distill" / "student" / "plan.json")["removed"],
        "depth": finished(root, "distill")["metrics"].get("depth"),
        "steps": finished(root, "distill")["metrics"].get("steps"),
        "params_ratio": metrics["params_ratio"],
        "flops_ratio": metrics["flops_ratio"],
        "speedup": timing["speedup"],
        "params": row["params"],
        **{key: row.get(key) for name in SHOWN for key in (name, f"{name}_low", f"{name}_high")},
        "pruned_fvd_teacher": metrics["pruned"].get("fvd_teacher"),
        "model": registered.get("name"),
        "version": read_json(register / "timing.json")["version"] if registered else None,
        "report": Path(os.path.relpath(artifacts / "report" / "index.html", page.parent)).as_posix(),
    }
