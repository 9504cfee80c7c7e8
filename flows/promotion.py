"""The gate alone, on demand: for a version that waits, or for a person who insists."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from prefect import flow

from flows.compress import promote as gate
from flows.execution import Execution, StageReport
from flows.notices import run_failed
from flows.profile_workspace import workspace_of
from flows.time_limits import PROMOTE_H, flow_seconds
from tasks.promote import insisting


@flow(
    name="promote",
    validate_parameters=False,
    persist_result=False,
    timeout_seconds=flow_seconds(PROMOTE_H),
    on_failure=[run_failed],
    on_crashed=[run_failed],
)
def promote(root: str = ".", profile: str | None = None, reason: str | None = None) -> StageReport:
    """Ask the gate about the candidate; with a reason, overrule its judgement.

    Args:
        root: project folder.
        profile: of the workspace below it that made the candidate; the project itself where None.
        reason: as for `vdmini promote --force --reason`, kept with the version.

    Returns:
        What became of the stage.
    """
    execution = Execution(workspace_of(Path(root), profile), force=True)  # asked for: it answers each time
    with (
        insisting(reason) if reason else nullcontext(),
        execution.parent_run(f"promote-{execution.params.register_.name}"),
    ):
        return gate(execution)
