"""Ctrl-C signals all processes of a terminal's group: the run says that it was stopped, and ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tasks.project import change_params
from tests.chaos.hook.chaos_tree import MARK, tree
from tests.flows.conftest import SERVED, VDMINI, environment

pytestmark = pytest.mark.services


def test_a_run_with_its_own_server_ends_by_ctrl_c(
    finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SERVED, raising=False)  # it starts its own Prefect server
    root, told = tmp_path / "stopped", tmp_path / "told.txt"
    shutil.copytree(finished_project, root)
    change_params(root, assignments=("distill.steps=40",))
    with told.open("w") as out:
        run = subprocess.Popen(
            [str(VDMINI), "run"],
            cwd=root,
            env=environment(**{MARK: str(tmp_path)}),
            stdout=out,
            stderr=out,
            start_new_session=True,
            # pytest's processes ignore it, and what they start would inherit that
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 300
    while not list((root / ".vdmini" / "work" / "distill").rglob("checkpoint-*")):
        assert run.poll() is None and time.monotonic() < deadline, told.read_text()
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=90) == 130, told.read_text()
    assert told.read_text().endswith("stopped; run the same command again to go on\n")
    deadline = time.monotonic() + 30
    while tree(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tree(str(tmp_path)) == set()
