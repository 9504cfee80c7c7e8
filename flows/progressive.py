"""Several students from one run, each a little smaller: rounds of the story, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import flow

from flows.compress import compress
from flows.execution import StageReport
from tasks.rounds import Round, prepare_round, rounds_of, write_page
from vdmini_core.params import load_params


@flow(name="progressive", validate_parameters=False, persist_result=False)
def progressive(
    root: str = ".",
    steps: int = 3,
    force: bool = False,
    listen: Callable[[str, str], None] | None = None,
    begin: Callable[[Round], None] | None = None,
) -> tuple[list[StageReport], Path]:
    """Compress the model of the project `root` in `steps` rounds to the budget of its plan.

    Args:
        root: folder with `params.yaml` and `dvc.yaml`.
        steps: how many rounds; each ends with a registered student.
        force: run every stage, also those that are up to date.
        listen: told (stage, event) as stages start and end.
        begin: told of a round before its stages.

    Returns:
        What became of each stage of each round, and the page that compares the students.
    """
    home = Path(root).resolve()
    params = load_params(home / "params.yaml")
    rounds, reports = rounds_of(home, params, steps), []
    for step in rounds:
        if begin is not None:
            begin(step)
        prepare_round(home, step, params)
        reports += compress(root=str(step.folder), force=force, listen=listen, last="register")
    return reports, write_page(home, rounds)
