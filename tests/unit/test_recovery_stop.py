"""How workers hear of a stop and agree on it, and how checkpoints travel while they go on. No Ray."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from torch import Tensor

from tasks.recovery_checkpoints import Outbox
from tasks.recovery_stop import STOP, STOPPED, NodeDrained, Notices, learning, listen, passed_on
from vdmini_core.artifacts import read_json
from vdmini_core.distillation.workers import Ballot


@pytest.fixture
def before() -> Iterator[list[int]]:
    """SIGTERM's handler, and what it has heard; put back afterwards."""
    heard: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, old)


def test_what_one_worker_wants_all_know_and_the_averages_are_as_before() -> None:
    """Two workers in one process: the other one's tensors are given."""
    others = [torch.tensor([3.0, 5.0]), torch.tensor(7.0), torch.tensor([0.0, 1.0])]

    def average(tensors: Sequence[Tensor]) -> None:
        for mine, other in zip(tensors, others, strict=True):
            mine.add_(other).div_(2)

    mine = [False, False]
    ballot, tensors = Ballot(average, lambda: mine), [torch.tensor([1.0, 1.0]), torch.tensor(1.0)]
    assert ballot.average is not None
    ballot.average(tensors)
    assert [t.tolist() for t in tensors] == [[2.0, 3.0], 4.0] and ballot.result() == (False, True)
    mine[0] = True
    assert ballot.result() == (False, True)  # of the last averaging: the others do not know it yet
    alone = Ballot(None, lambda: mine)
    assert alone.average is None and alone.result() == (True, False)


def test_a_worker_remembers_the_first_sigterm_while_it_learns(tmp_path: Path, before: list[int]) -> None:
    listen()
    notices = Notices(tmp_path, 0, 1)
    with learning(tmp_path, 0):
        assert notices.after_step() is None
        signal.raise_signal(signal.SIGTERM)
        assert notices.after_step() == "stop" and not before
        notices.leave("stop", 5)
        assert read_json(tmp_path / STOPPED) == {"step": 5, "found": "SIGTERM to a worker"}
        signal.raise_signal(signal.SIGTERM)
    assert before == [signal.SIGTERM]
    listen()
    signal.raise_signal(signal.SIGTERM)  # it learns no more
    assert before == [signal.SIGTERM] * 2


def test_the_driver_passes_the_first_sigterm_on(tmp_path: Path, before: list[int]) -> None:
    (tmp_path / STOP).write_text("{}")  # of a run before
    with passed_on(tmp_path):
        assert not (tmp_path / STOP).exists()
        signal.raise_signal(signal.SIGTERM)
        assert (tmp_path / STOP).exists() and not before
        assert Notices(tmp_path, 0, 1).after_step() == "stop"
        signal.raise_signal(signal.SIGTERM)
    assert before == [signal.SIGTERM]


def test_a_drained_node_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[str] = []
    monkeypatch.setattr("tasks.recovery_stop.DRAIN_EVERY_S", -1.0)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: drained or None)
    notices = Notices(tmp_path, 0, 1)
    assert notices.after_step() is None
    drained.append("node")
    assert notices.after_step() == "move"
    with pytest.raises(NodeDrained, match="step 7"):
        notices.leave("move", 7)


def test_a_checkpoint_travels_while_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "here"))
    storage, gate = tmp_path / "storage", threading.Event()
    (tmp_path / "here").mkdir()

    def report(metrics: object, checkpoint: Any, checkpoint_dir_name: str, **how: Any) -> None:
        def copy() -> None:
            gate.wait()
            shutil.copytree(checkpoint.path, storage / checkpoint_dir_name)
            shutil.rmtree(checkpoint.path)

        waits = how["checkpoint_upload_mode"] is ray.train.CheckpointUploadMode.SYNC
        copy() if waits else threading.Thread(target=copy, daemon=True).start()

    monkeypatch.setattr(ray.train, "report", report)
    Outbox(tmp_path)  # of a worker that was killed, and of one that lives
    (killed,) = (tmp_path / "here").iterdir()
    dead = killed.rename(killed.with_name(killed.name.replace(f"-{os.getpid()}-", "-4194305-")))
    alive, box = Outbox(tmp_path), Outbox(tmp_path)
    assert not dead.exists() and len(list((tmp_path / "here").iterdir())) == 2
    box.send({}, "first", lambda folder: (folder / "state").write_text("1"))
    assert not storage.exists()
    gate.set()
    box.send({}, "second", lambda folder: (folder / "state").write_text("2"))
    assert (storage / "first" / "state").read_text() == "1"  # one at a time
    box.send({}, "third", lambda folder: (folder / "state").write_text("3"), stay=True)
    assert (storage / "third").is_dir() and (storage / "second").is_dir()
    for each in (alive, box):
        each.close()
    assert not list((tmp_path / "here").iterdir())
