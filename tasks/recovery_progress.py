"""The driver while Ray trains: one thread trains, this one, which owns the run pages, forwards the losses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tasks.ray_runtime import end_training
from tasks.stage import StageJob
from vdmini_core.errors import TrainingError
from vdmini_core.storage_errors import storage_error

POLL_S = 0.5


def train_watched(job: StageJob, train: Callable[[], Any]) -> None:
    """Run `train` in a thread, forward the losses from here, raise what it raised.

    Raises:
        TrainingError: for what the workers failed of; another `VDMiniError` where it was the storage.
    """
    with _progress(job) as forward:
        raised = run_beside(train, forward)
    if raised is None:
        return
    if plain := storage_error(raised):
        raise plain from raised
    if any(words in str(raised).lower() for words in ("out of memory", "low on memory")):
        raise TrainingError(
            "the recovery's workers ran out of memory",
            found=_last_line(raised),
            fix="`vdmini distill --dry-run` counts what they need and names what would make it fit: "
            "distill.accumulation, activation_checkpointing, precision or parallel: fsdp2",
        ) from raised
    raise TrainingError(
        "the recovery's workers failed",
        found=_last_line(raised),
        fix="run again: it goes on from the last checkpoint; distill.max_failures allows more failures",
    ) from raised


def run_beside(train: Callable[[], Any], forward: Callable[[], None]) -> BaseException | None:
    """Run `train`, which waits for Ray, in a thread, and `forward` again and again in this one.

    Where this thread is stopped (Ctrl-C, an error of `forward`), the training ends, and with it the other
    thread: a session of Ray that ends while a thread waits in its native code takes the process down.

    Returns:
        What `train` raised.
    """
    raised: list[BaseException] = []
    # Not `Thread.join`: one that Ctrl-C interrupts takes the running thread for a dead one (CPython 3.11).
    ended = threading.Event()

    def target() -> None:
        try:
            train()
        except BaseException as error:
            raised.append(error)
        finally:
            ended.set()

    threading.Thread(target=target, name="ray-train", daemon=True).start()
    try:
        while not ended.wait(POLL_S):
            forward()
    except BaseException:
        end_training(ended)
        raise
    return raised[0] if raised else None


def _last_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[-1]


@contextmanager
def _progress(job: StageJob) -> Iterator[Callable[[], None]]:
    """A bar with rate and time left, and a function that forwards the rows that are new."""
    from tqdm.auto import tqdm

    from tasks.recovery_checkpoints import RowReader
    from tasks.recovery_view import LiveView

    last, total, bar = 0, job.params.distill.steps, None
    (job.work / "losses.jsonl").unlink(missing_ok=True)
    view, reader = LiveView(job), RowReader(job.work / "losses.jsonl")
    tqdm.write(f"distill: starting {job.params.distill.workers} Ray workers", file=sys.stderr)

    def forward() -> None:
        nonlocal last, bar
        last = view.forward(last)
        # rows up to `last` were seen before a worker was lost; the same numbers come again
        if not (new := reader.after(last)):
            return
        if bar is None:  # only now, so that the rate leaves out Ray's start
            bar = tqdm(total=total, initial=new[-1]["step"], desc="distill", unit="step", mininterval=0.5)
        for row in new:
            live = row.pop("live", {})
            losses = {f"loss/{k}": v for k, v in row.items() if k != "step"}
            job.monitor.metrics({**losses, **live}, row["step"])
        last = new[-1]["step"]
        bar.set_postfix(total=f"{new[-1]['total']:.4g}", task=f"{new[-1]['task']:.4g}", refresh=False)
        bar.update(last - bar.n)

    try:
        yield forward
        forward()
    finally:
        if bar is not None:
            bar.close()
