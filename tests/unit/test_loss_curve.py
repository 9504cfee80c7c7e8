"""Claims: the curve of a recovery is on disk, row by row, and memory does not grow with it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from tasks.loss_curve import LossCurve
from tasks.recovery_checkpoints import read_rows


def row(step: int) -> dict[str, float]:
    return {"step": step, **{f"term_{n}": step / (n + 3) for n in range(12)}}


def test_it_goes_on_from_a_checkpoint_and_is_copied_whole(tmp_path: Path) -> None:
    first = LossCurve(tmp_path / "first")
    assert first.last == {} and list(first.lines()) == []
    for step in (1, 2, 3):
        first.append(row(step))
    first.copy_to(tmp_path / "losses.jsonl")
    first.append(row(4))  # not in the checkpoint: it is made again
    second = LossCurve(tmp_path / "second")
    second.start_from(tmp_path / "losses.jsonl")
    assert second.last == row(3)
    second.append(row(4))
    second.copy_to(tmp_path / "again.jsonl")
    first.copy_to(tmp_path / "whole.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert read_rows(tmp_path / "whole.jsonl") == [row(step) for step in (1, 2, 3, 4)]
    assert [json.loads(line)["step"] for line in second.lines()] == [1, 2, 3, 4]
    assert list(LossCurve(tmp_path / "second").lines()) == [], "a new attempt begins anew"


def test_memory_does_not_grow_with_it(tmp_path: Path) -> None:
    curve = LossCurve(tmp_path / "curve")
    curve.append(row(0))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(2000):
        curve.append(row(step))
    curve.copy_to(tmp_path / "losses.jsonl")
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # as a list it was 2000 x 0.6 kB, and half as much again while it was written
    assert now - before < 20_000 and most - before < 300_000
