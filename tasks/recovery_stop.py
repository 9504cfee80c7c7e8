"""A recovery that is told to stop (SIGTERM to its driver or a worker, a drained node) saves itself first.

Spot machines and batch systems give a warning before they take a machine away. The workers must leave after
the same step, so what one of them was told travels with the gradients that are averaged in every step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vdmini_core.artifacts import read_json, write_json
from vdmini_core.distillation.workers import Average, Ballot, average_over
from vdmini_core.errors import TrainingError

# In the scratch folder: what the driver tells the workers, and what they answer.
STOP, STOPPED = "stop.json", "stopped.json"
DRAIN_EVERY_S = 5.0  # as often as Ray Train's own watcher looks
Notice = Literal["stop", "move"]

_told = threading.Event()
_learning = threading.Event()


class NodeDrained(RuntimeError):
    """The workers are saved and leave a node that will be taken away; Ray starts them elsewhere."""


def listen() -> None:
    """Remember SIGTERM while this process learns, instead of ending by it; called in its main thread.

    A second one, or one at another time, does what it did before.
    """
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        if _learning.is_set() and not _told.is_set():
            _told.set()
            return
        signal.signal(number, before)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, note)


class Notices:
    """What the workers were told, known to all of them after the same step.

    Args:
        work: the stage's scratch folder, where the driver leaves word.
        rank: of this worker.
        world: number of workers.
    """

    def __init__(self, work: Path, rank: int, world: int) -> None:
        self._work, self._rank = work, rank
        self._looked = time.monotonic()
        self._ballot = Ballot(average_over(world), self._mine)

    @property
    def average(self) -> Average | None:
        """Averaging over the workers, for the step; takes the notices along."""
        return self._ballot.average

    def _mine(self) -> tuple[bool, bool]:
        first = self._rank == 0
        stop = _told.is_set() or (first and (self._work / STOP).exists())
        return stop, first and time.monotonic() - self._looked > DRAIN_EVERY_S

    def after_step(self) -> Notice | None:
        """`stop`: save and end; `move`: save and let Ray start the workers on other nodes; else None."""
        stop, look = self._ballot.result()
        if stop:
            return "stop"
        if not look:
            return None
        from ray import train

        self._looked = time.monotonic()
        # Ray asks all workers at once, which costs a round of messages: not in every step
        return "move" if train.get_preemption_info() is not None else None

    def leave(self, notice: Notice, step: int) -> None:
        """End this worker's part after `step`, which is in storage.

        Raises:
            NodeDrained: where Ray is to start the workers again.
        """
        if notice == "move":
            raise NodeDrained(f"saved at step {step}: a node is drained")
        if self._rank == 0:
            told = "the driver" if (self._work / STOP).exists() else "a worker"
            write_json(self._work / STOPPED, {"step": step, "found": f"SIGTERM to {told}"})


@contextmanager
def learning(work: Path, rank: int) -> Iterator[None]:
    """While a worker learns, SIGTERM is remembered (`listen`)."""
    if rank == 0:
        (work / STOPPED).unlink(missing_ok=True)
    _told.clear()
    _learning.set()
    try:
        yield
    finally:
        _learning.clear()
        _told.clear()


@contextmanager
def passed_on(work: Path) -> Iterator[None]:
    """In the driver: SIGTERM is passed on to the workers once, a second one ends the process as before.

    Signals reach the main thread alone; a driver that runs in another one ends by SIGTERM as before.
    """
    for name in (STOP, STOPPED):
        (work / name).unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def note(number: int, frame: Any) -> None:
        signal.signal(number, before)
        write_json(work / STOP, {"pid": os.getpid()})
        sys.stderr.write("\ndistill: told to stop; saving at the end of this step\n")

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_if_stopped(work: Path, steps: int) -> None:
    """End the stage where its workers were told to stop.

    Raises:
        TrainingError: saying how far it is and how to go on.
    """
    if not (work / STOPPED).is_file():
        return
    stopped = read_json(work / STOPPED)
    raise TrainingError(
        f"the recovery was told to stop and is saved at step {stopped['step']} of {steps}",
        found=stopped["found"],
        fix="start it again: it goes on from there, and the student will have the same bytes",
    )
