"""Helpers of a run that a signal to the run's process group does not reach: the run itself ends them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)


@contextmanager
def started_apart(*, end_with_thread: bool = False) -> Iterator[None]:
    """Processes that a library starts within lead groups of their own.

    Ctrl-C, `timeout` and Slurm signal a whole group. With Prefect's server or Ray's gone too, a run can
    neither save its step nor say that it was stopped. Neither library has a setting for it, so
    `Popen` is lent one for the moment; what they ask for themselves stays.

    Args:
        end_with_thread: they get SIGTERM when the thread that calls this ends, however it does (Linux alone).
    """
    plain: Any = subprocess.Popen.__init__
    wanted: dict[str, Any] = {"process_group": 0}
    if end_with_thread:
        with suppress(OSError, AttributeError):
            wanted["preexec_fn"] = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)

    def lent(self: Any, *args: Any, **asked: Any) -> None:
        plain(self, *args, **wanted | asked)

    subprocess.Popen.__init__ = lent  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = plain  # type: ignore[method-assign]
