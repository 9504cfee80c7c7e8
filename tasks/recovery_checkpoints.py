"""Checkpoints of a recovery: written between steps, sent to storage during the next ones, whole or torn."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from tasks.loss_curve import LossCurve
from tasks.recovery_watch import HISTORY
from vdmini_core.artifacts import digest_of, read_json, write_json
from vdmini_core.distillation.guards import History
from vdmini_core.errors import VDMiniError

STATE, LOSSES, BEST, COMPLETE = "state.pt", "losses.jsonl", "best.safetensors", "complete.json"
LOOK_S = 0.02


class Outbox:
    """One worker's checkpoints on their way to storage.

    A checkpoint is written into the temporary folder of the worker's own machine (`TMPDIR`) while the
    training waits, and copied from there to the run's storage by a thread of Ray while it goes on. There is
    one on its way at a time: storage that is slower than the training slows it down in the end, instead of
    filling the machine. What a killed worker left here is removed by the next one on the same machine.

    Args:
        work: the stage's scratch folder, by which workers of one run know their own.

    Attributes:
        folder: this worker's temporary one.
    """

    def __init__(self, work: Path) -> None:
        clear_outboxes(work)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_prefix(work)}{os.getpid()}-"))
        self._sent: Path | None = None

    def send(
        self,
        metrics: dict[str, Any],
        name: str,
        fill: Callable[[Path], object] | None = None,
        *,
        stay: bool = False,
    ) -> None:
        """Report a step to Ray, with a checkpoint where there is `fill`; a barrier, all workers call it.

        Args:
            metrics: of the step.
            name: of the checkpoint's folder in storage.
            fill: writes this worker's files into an empty folder; None: it has none.
            stay: come back only when the checkpoint is in storage.
        """
        from ray import train

        self.wait()
        mode = train.CheckpointUploadMode.SYNC if stay else train.CheckpointUploadMode.ASYNC
        if fill is None:
            train.report(metrics, checkpoint_upload_mode=mode)
            return
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fill(folder)
        train.report(
            metrics,
            checkpoint=train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode,
            delete_local_checkpoint_after_upload=True,
        )
        self._sent = folder

    def wait(self) -> None:
        """Until this worker's last checkpoint is in storage; Ray then removes it here.

        Where the copy fails, Ray ends the worker.
        """
        while self._sent is not None and self._sent.exists():
            time.sleep(LOOK_S)
        self._sent = None

    def close(self) -> None:
        """Wait, and remove the temporary folder."""
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def clear_outboxes(work: Path) -> None:
    """Remove what killed workers of the stage with this scratch folder left on this machine."""
    for old in Path(tempfile.gettempdir()).glob(f"{_prefix(work)}*"):
        if not psutil.pid_exists(int(old.name.split("-")[2])):
            shutil.rmtree(old, ignore_errors=True)


def _prefix(work: Path) -> str:
    return f"vdmini-{digest_of(str(work))[:12]}-"


def save_checkpoint(
    state: dict[str, Any],
    curve: LossCurve,
    folder: Path,
    history: History,
    more: dict[str, int] | None = None,
    best: Path | None = None,
) -> None:
    """Write state, curve and history so far, and the sizes by which a torn copy is told from a whole one.

    Args:
        state: of the recovery.
        curve: its losses so far.
        folder: an empty one.
        history: up to this step.
        more: sizes of other files that belong to the checkpoint.
        best: weights of the best student, where it is one of an earlier step: they come along, so that a
            machine that has the checkpoint alone can keep it.
    """
    torch.save(state, folder / STATE)
    curve.copy_to(folder / LOSSES)
    write_json(folder / HISTORY, history.to_dict())
    if best is not None:
        link_or_copy(best, folder / BEST)
    names = (STATE, LOSSES, HISTORY, *([BEST] if best is not None else []))
    sizes = {name: (folder / name).stat().st_size for name in names}
    write_json(folder / COMPLETE, {"step": state["step"], "sizes": {**sizes, **(more or {})}})


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes without a copy where both lie on one file system; neither is ever written to again."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is there in full."""
    try:
        sizes = read_json(folder / COMPLETE)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (VDMiniError, OSError, KeyError, TypeError):
        return False


def newest_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint below a run's storage folder."""
    return next((p for p in sorted(run.glob("checkpoint-*"), reverse=True) if is_complete(p)), None)


def step_of(checkpoint: Path | None) -> int:
    """Steps done at a checkpoint; 0 for none."""
    return int(read_json(checkpoint / COMPLETE)["step"]) if checkpoint else 0


def load_state(folder: Path) -> dict[str, Any]:
    """Tensors and numbers of a checkpoint, on the CPU; nothing in it is executed."""
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `losses.jsonl`; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


class RowReader:
    """Follows a `losses.jsonl` that another process writes: what was read is not read again.

    Workers that start again, or go back, write the file anew. So the last row that was read is looked at each
    time: where another one stands in its place, everything is.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._row, self._end = path, b"", 0

    def after(self, step: int) -> list[dict[str, Any]]:
        """Rows of the file whose step is a later one, in order."""
        try:
            with self._path.open("rb") as file:
                known = bool(self._row) and json.loads(self._row)["step"] == step
                file.seek(self._end - len(self._row) if known else 0)
                text = file.read()
                if known and not text.startswith(self._row):
                    known = False
                    file.seek(0)
                    text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        if lines:
            self._end = (self._end - len(self._row) if known else 0) + len(whole)
            self._row = lines[-1]
        return [row for line in lines[known:] if (row := json.loads(line))["step"] > step]
