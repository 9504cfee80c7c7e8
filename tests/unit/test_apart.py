"""Helpers of a run are out of reach of a signal to its group, and end with it all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from ray._private.services import ConsolePopen

from tasks.apart import started_apart

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.parametrize("popen", [subprocess.Popen, ConsolePopen])
def test_what_is_started_within_leads_a_group_of_its_own(popen: Any) -> None:
    plain = subprocess.Popen.__init__
    with started_apart():
        helper = popen(SLEEP)
    try:
        assert os.getpgid(helper.pid) == helper.pid != os.getpgid(0)
        assert subprocess.Popen.__init__ is plain
    finally:
        helper.kill()
        helper.wait()


def test_what_a_library_asks_for_stays_and_an_error_leaves_nothing_changed() -> None:
    plain = subprocess.Popen.__init__
    with pytest.raises(ZeroDivisionError), started_apart(end_with_thread=True):
        helper = subprocess.Popen(SLEEP, process_group=None, preexec_fn=None)
        1 / 0  # noqa: B018
    assert subprocess.Popen.__init__ is plain and os.getpgid(helper.pid) == os.getpgid(0)
    helper.kill()
    helper.wait()


def test_killed_it_leaves_no_helper() -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "from tasks.apart import started_apart\n"
        "with started_apart(end_with_thread=True):\n"
        f"    print(subprocess.Popen({SLEEP!r}).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(run.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(run.stdout))
