"""The story as a Prefect flow: videos in, a registered smaller student out.

The flow owns order, retries and what people see while it runs; DVC says which stages are stale.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from flows.execution import Execution, StageReport
from flows.gpu_slots import slots_for
from flows.notices import run_failed
from flows.pages import Pages
from flows.profile_workspace import profile_workspace
from flows.time_limits import COMPRESS_H, flow_seconds
from tasks.stage import STAGES
from vdmini_core.errors import OutsideError, ParamsError, VDMiniError
from vdmini_core.foreign import markdown_line
from vdmini_core.storage_errors import storage_error

# A chart beyond this would bloat the server's database; it is in MLflow and the report anyway.
MAX_IMAGE_BYTES = 400_000


def worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """Retry what the outside world broke; a mistake of the user stays one."""
    try:
        state.result()
    except VDMiniError as error:
        return isinstance(error, OutsideError)
    except Exception as error:
        return storage_error(error) is None  # room does not come by itself
    return False


def bring_up_to_date(execution: Execution, stage: str) -> StageReport:
    """One stage and its page."""
    report = execution.stage(stage)
    if report.result is not None:
        _show(report, Pages())
    return report


def _show(report: StageReport, pages: Pages) -> None:
    """Put a stage's table and charts on its Prefect run page."""
    assert report.result is not None
    outcome, key = report.result.outcome, f"vdmini-{report.stage}"
    if outcome.table:
        table = [
            {name: markdown_line(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
            for row in outcome.table
        ]
        pages.put(create_table_artifact, table=table, key=f"{key}-table", description=outcome.title)
    for index, chart in enumerate(outcome.charts):
        path = report.result.out / chart
        if path.suffix == ".png" and path.is_file() and path.stat().st_size <= MAX_IMAGE_BYTES:
            data = base64.b64encode(path.read_bytes()).decode()
            image = f"data:image/png;base64,{data}"
            pages.put(create_image_artifact, image, key=f"{key}-{index}", description=path.stem)
    if report.result.notes:
        notes = "\n".join(f"- {markdown_line(note)}" for note in report.result.notes)
        pages.put(create_markdown_artifact, notes, key=f"{key}-notes", description="Notes")


def _stage_task(stage: str, retries: int = 0) -> Callable[[Execution], StageReport]:
    @task(
        name=stage,
        description=STAGES[stage].says,
        retries=retries,
        retry_delay_seconds=[2.0, 10.0, 30.0][: max(retries, 1)],
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(execution: Execution) -> StageReport:
        return bring_up_to_date(execution, stage)

    return run


# Retries only where the outside world is touched: the hub, the tracking server, the registry.
prepare = _stage_task("prepare")
teacher = _stage_task("teacher", retries=2)
profile = _stage_task("profile")
plan = _stage_task("plan")
prune = _stage_task("prune")
distill = _stage_task("distill")
evaluate = _stage_task("evaluate")
report = _stage_task("report")
register = _stage_task("register", retries=3)
promote = _stage_task("promote", retries=3)
STORY = (prepare, teacher, profile, plan, prune, distill, evaluate, report, register, promote)


@flow(
    name="compress",
    validate_parameters=False,
    persist_result=False,
    timeout_seconds=flow_seconds(COMPRESS_H),
    on_failure=[run_failed],
    on_crashed=[run_failed],
)
def compress(
    root: str = ".",
    force: bool = False,
    listen: Callable[[str, str], None] | None = None,
    last: str = "promote",
    profile: str | None = None,
    assignments: Sequence[str] = (),
) -> list[StageReport]:
    """Compress a video diffusion model in the project folder `root`.

    Args:
        root: folder with `params.yaml` and `dvc.yaml`.
        force: run every stage, also those that are up to date.
        listen: told (stage, event) as stages start and end.
        last: the story ends with this stage.
        profile: run this profile in a workspace of its own below `root`, which is set to it first.
        assignments: `key=value` on top of the profile.

    Raises:
        ParamsError: for assignments without a profile: they would change the project itself.

    Returns:
        What became of each stage.
    """
    if assignments and profile is None:
        raise ParamsError(
            "assignments belong to a profile's workspace",
            expected="a profile beside them",
            found=", ".join(assignments),
            fix="name a profile, or edit params.yaml",
        )
    folder = Path(root) if profile is None else profile_workspace(Path(root), profile, assignments)
    execution = Execution(
        folder, force=force, listen=listen or (lambda stage, event: None), holding=slots_for
    )
    pages = Pages()
    progress: Any = pages.put(
        create_progress_artifact, 0.0, key="vdmini-progress", description="stages of the story"
    )
    with execution.parent_run(f"compress-{execution.params.register_.name}"):
        story = STORY[: list(STAGES).index(last) + 1]
        for done, step in enumerate(story, start=1):
            step(execution)
            if progress is not None:
                pages.put(update_progress_artifact, progress, 100.0 * done / len(story))
    pages.put(create_markdown_artifact, _summary(execution), key="vdmini-summary", description="What ran")
    return execution.reports


def _summary(execution: Execution) -> str:
    rows = [f"| {r.stage} | {r.fate} | {r.seconds:.1f} s |" for r in execution.reports]
    return "\n".join(["| stage | | time |", "|---|---|---|", *rows])
