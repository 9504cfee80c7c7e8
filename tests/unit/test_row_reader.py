"""The loss curve is followed as it grows, and as it is written anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.recovery_checkpoints import RowReader


def written(steps: range, mark: str = "") -> str:
    return "".join(json.dumps({"step": step, "total": 0.5, "mark": mark}) + "\n" for step in steps)


def steps_of(rows: list[dict[str, object]]) -> list[object]:
    return [row["step"] for row in rows]


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "losses.jsonl"
    reader = RowReader(path)
    assert reader.after(0) == []
    path.write_text(written(range(1, 1001)) + '{"step": 1001, "tot')
    assert steps_of(reader.after(0)) == list(range(1, 1001))
    with path.open("a") as file:
        file.write('al": 1}\n' + written(range(1002, 1004)))
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(text), loads(text))[1])
    assert steps_of(reader.after(1000)) == [1001, 1002, 1003]
    assert len(parsed) == 4  # three new ones and the one before
    assert reader.after(1003) == []


def test_workers_that_start_again_write_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    reader = RowReader(path)
    path.write_text(written(range(1, 10), "before"))
    assert len(reader.after(0)) == 9
    path.write_text(written(range(1, 7)))  # they went on from step 6
    assert reader.after(9) == []
    path.write_text(written(range(1, 12)))
    assert steps_of(reader.after(9)) == [10, 11]


def test_after_going_back_the_other_numbers_come(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    reader = RowReader(path)
    path.write_text(written(range(1, 10), "broken"))
    assert len(reader.after(0)) == 9
    path.write_text(written(range(1, 7), "broken") + written(range(7, 10), "again"))
    rows = reader.after(6)  # a rollback led to step 6
    assert steps_of(rows) == [7, 8, 9] and {row["mark"] for row in rows} == {"again"}
