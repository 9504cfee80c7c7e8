"""Stage `profile` on a tiny random pipeline: rounds, killed anywhere, the same table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import svd_toys as toys
import torch

from tasks import profile
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from vdmini_core.data.clips import save_clips
from vdmini_core.models.registry import save_pipeline
from vdmini_core.params import parse_params
from vdmini_core.profiling.rounds import rounds, undecided

CLIPS = 8


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    save_pipeline(toys.tiny_pipeline(), root / "artifacts" / "teacher" / "pipeline", toys.SETTINGS)
    drawn = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (CLIPS, 2, 16, 16, 3), generator=drawn, dtype=torch.uint8)
    (root / "artifacts" / "prepare").mkdir()
    save_clips(root / "artifacts" / "prepare", "validation", clips, clips.shape)
    return root


def run(root: Path, work: Path, batch_size: int = 3, **changes: object) -> tuple[bytes, QuietMonitor]:
    settings = {"clips": 4, "max_clips": CLIPS, "granularity": "block", "workers": 1, "timing_repeats": 1}
    params = parse_params(
        {
            "base": {"threads": 1},
            "prepare": {"frames": 2, "height": 16, "width": 16},
            "sampling": {"steps": 1, "batch_size": batch_size},
            "profile": settings | changes,
        }
    )
    out, monitor = work / "out", QuietMonitor()
    out.mkdir(parents=True)
    (work / "scratch").mkdir(exist_ok=True)
    profile.run(StageJob(root, params, out, work / "scratch", monitor))
    return (out / "sensitivity.json").read_bytes(), monitor


@pytest.fixture(scope="module")
def whole(project: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return run(project, tmp_path_factory.mktemp("whole"))[0]


def test_only_open_units_meet_more_clips(whole: bytes) -> None:
    rows = json.loads(whole)["units"]
    assert {row["removed"]["paired_clips"] for row in rows} == {4, CLIPS}
    assert all(
        row["removed"]["paired_mse_low"] <= row["removed"]["paired_mse"] <= row["removed"]["paired_mse_high"]
        for row in rows
    )


def test_the_open_ones_have_the_figures_of_all_clips(project: Path, tmp_path: Path) -> None:
    """Batches of four, so both runs make the same ones: this toy makes much of a kernel's last digits."""
    rows, full = (
        json.loads(run(project, tmp_path / str(clips), batch_size=4, clips=clips)[0])["units"]
        for clips in (4, CLIPS)
    )
    found, wanted = ([row["removed"]["paired_mse"] for row in table] for table in (rows, full))
    opened = [row["removed"]["paired_clips"] == CLIPS for row in rows]
    assert any(opened)
    for open_, value, expected in zip(opened, found, wanted, strict=True):
        if open_:
            assert value == expected
    assert np.argmin(found) == np.argmin(wanted) and np.argmax(found) == np.argmax(wanted)


@pytest.mark.parametrize("after", [0, 3, 11])
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    project: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    done: list[profile.Piece] = []
    measure = profile.Profiler.measure

    def dying(self: profile.Profiler, piece: profile.Piece) -> dict[str, object]:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(piece)
        return measure(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(profile.Profiler, "measure", dying)
        with pytest.raises(KeyboardInterrupt):
            run(project, tmp_path / "killed")
    (tmp_path / "again").mkdir()
    (tmp_path / "killed" / "scratch").rename(tmp_path / "again" / "scratch")
    again: list[profile.Piece] = []
    monkeypatch.setattr(
        profile.Profiler, "measure", lambda self, piece: again.append(piece) or measure(self, piece)
    )
    found, monitor = run(project, tmp_path / "again")
    assert found == whole
    assert not set(done) & set(again)
    assert bool(done) == any("went on" in note for note in monitor.notes)


def test_two_ray_workers_give_the_same_table(project: Path, whole: bytes, tmp_path: Path) -> None:
    assert run(project, tmp_path, workers=2)[0] == whole


def test_rounds_double() -> None:
    assert rounds(8, 30) == [(8, 16), (16, 30)]
    assert rounds(8, 8) == rounds(8, None) == []


def test_neighbours_are_told_apart_on_their_common_clips() -> None:
    difficulty = np.random.default_rng(0).exponential(size=16)
    errors = {
        "twice": list(2 * difficulty),
        "once": list(difficulty),
        "once again": list(difficulty),  # more clips would tell nothing
        "close": list(difficulty[:4] + np.array([0.3, -0.25, 0.2, -0.15])),
        "far": list(difficulty[:8] + 9),
    }
    assert undecided({k: errors[k] for k in ("twice", "once", "far", "once again")}) == []
    assert "close" in undecided(errors) and "far" not in undecided(errors)
    assert undecided({"alone": [1.0, 2.0]}) == []
