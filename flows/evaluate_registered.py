"""The champion against fresh data, week by week: is it still as good as when it was registered?"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.compress import worth_retrying
from flows.gpu_slots import slots_for
from flows.notices import quality_fell, run_failed
from flows.pages import Pages
from flows.profile_workspace import workspace_of
from flows.time_limits import EVALUATE_H, flow_seconds
from tasks.rescore import Rescore, rescore
from vdmini_core.foreign import markdown_line
from vdmini_core.params import load_params


@task(
    name="rescore",
    retries=2,  # what was sampled before stays in the scratch folder
    retry_delay_seconds=[10.0, 60.0],
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def rescore_task(root: Path, uri: str, week: str | None, videos: Path | None, force: bool) -> Rescore:
    """Measure on fresh clips; holds the GPU of stage `evaluate`."""
    with slots_for("evaluate", load_params(root / "params.yaml")):
        return rescore(root, uri, week=week, videos=videos, force=force, tell=quality_fell)


@flow(
    name="evaluate-registered",
    validate_parameters=False,
    persist_result=False,
    timeout_seconds=flow_seconds(EVALUATE_H),
    on_failure=[run_failed],
    on_crashed=[run_failed],
)
def evaluate_registered(
    root: str = ".",
    profile: str | None = None,
    model: str | None = None,
    week: str | None = None,
    videos: str | None = None,
    force: bool = False,
) -> Rescore:
    """Measure a registered version on data it has not seen; a notice goes out where it got worse.

    Args:
        root: project folder.
        profile: of the workspace below it that made the version; the project itself where None.
        model: `models:/NAME@champion` or `models:/NAME/3`; the champion of the parameters where None.
        week: ISO week whose number is the seed of procedural clips; this week where None.
        videos: folder of videos, where the version's own has another place now.
        force: measure again what was measured this week.

    Returns:
        The result, which is on an MLflow run and on the version, too.
    """
    folder = workspace_of(Path(root), profile)
    params = load_params(folder / "params.yaml")
    uri = model or f"models:/{params.register_.name}@{params.promote.alias}"
    result = rescore_task(folder, uri, week, None if videos is None else Path(videos), force)
    text = markdown_line(result.text)
    Pages().put(create_markdown_artifact, text, key="vdmini-rescored", description="On fresh data")
    return result
