"""Who runs which file of tests, where several processes share them."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

WHOLE_RUNS = ("tests/flows/", "tests/services/")
OF_FINISHED = (
    "test_compress.py",
    "test_registered.py",
    "test_kills.py",
    "test_two_runs.py",
    "test_ctrl_c.py",
)
# Minutes each: begun last, one of them would keep a worker busy while the other has nothing left.
LONGEST = (
    *("finished_project", "test_team.py", "test_distill.py", "test_progressive.py", "test_own_material.py"),
    *("test_text_to_video.py", "test_promotion.py", "test_encoding.py", "test_own_training.py"),
)


class FilesByKind(LoadFileScheduling):
    """One worker begins with the unit tests, the others with whole runs; then all take what is left.

    Whole runs start many processes and wait for them: two at once on two cores starve each other (Ray gives
    up nodes that do not answer in time), beside unit tests they do not. Files that read the one finished
    project go to the worker that has made it.
    """

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return f"{WHOLE_RUNS[0]}finished_project" if scope.endswith(OF_FINISHED) else scope

    def _assign_work_unit(self, node: WorkerController) -> None:
        for_runs = node is not self.nodes[0]
        mine = [scope for scope in self.workqueue if scope.startswith(WHOLE_RUNS) == for_runs]
        if mine := mine or list(self.workqueue):
            self.workqueue.move_to_end(min(mine, key=_turn), last=False)
        super()._assign_work_unit(node)


def _turn(scope: str) -> int:
    """The longest first; all others as they come."""
    return next((turn for turn, name in enumerate(LONGEST) if scope.endswith(name)), len(LONGEST))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesByKind:
    """Whatever `--dist` says: fixtures of a file or of a project are made once that way."""
    return FilesByKind(config, log)
