"""Claims: the stage's outputs are those of the contract, true to what was drawn, and the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from video_toys import shared_clip

from tasks.monitor import QuietMonitor
from tasks.prepare import run
from tasks.stage import StageJob, StageOutcome
from vdmini_core.artifacts import tree_digests
from vdmini_core.data.clips import SPLITS, load_clips
from vdmini_core.data.procedural import ProceduralSpec, render_clip, split_seeds
from vdmini_core.params import parse_params


def stage(root: Path, seed: int = 0, **prepare: Any) -> tuple[StageJob, StageOutcome]:
    for name in ("out", "work"):
        (root / name).mkdir(parents=True)
    params = parse_params(
        {
            "base": {"seed": seed},
            "prepare": prepare,
            "profile": {"clips": 4},
            "evaluate": {"clips": 2},
        }
    )
    job = StageJob(root, params, root / "out", root / "work", QuietMonitor())
    return job, run(job)


SMALL = {"train": 5, "validation": 4, "test": 2}


def test_procedural_outputs_are_complete_and_true(tmp_path: Path) -> None:
    job, outcome = stage(tmp_path, clips=SMALL)
    index = json.loads((job.out / "index.json").read_text())
    for split in SPLITS:
        clips = load_clips(job.out, split).numpy()
        seeds = split_seeds(split, SMALL[split], 0)
        drawn = [render_clip(ProceduralSpec(), seed) for seed in seeds]
        error = np.abs(clips.astype(int) - np.stack([clip.frames for clip in drawn])).mean()
        assert clips.shape == (SMALL[split], 8, 64, 64, 3) and error < 8, error
        truth = load_file(job.out / f"truth-{split}.safetensors")
        for number, clip in enumerate(drawn):
            sprites = int(truth["sprite_count"][number])
            assert np.allclose(truth["sprite_centres"][number, :sprites], clip.truth["sprite_centres"])
        assert [entry["decoder"] for entry in index[split]] == ["decord"] * SMALL[split]
        assert all((job.out / entry["source"]).is_file() for entry in index[split])
    assert outcome.metrics["clips_train"] == 5 and outcome.metrics["files_used"] == 11
    assert [(job.out / chart).read_bytes()[:4] for chart in outcome.charts] == [b"\x89PNG"]


def test_same_seed_same_bytes_other_seed_other_clips(tmp_path: Path) -> None:
    runs = [stage(tmp_path / str(n), seed=seed, clips=SMALL)[0].out for n, seed in enumerate((7, 7, 8))]
    first, second, other = map(tree_digests, runs)
    assert first == second
    assert not {v for k, v in first.items() if k.endswith(".mp4")} & {
        v for k, v in other.items() if k.endswith(".mp4")
    }


@pytest.mark.parametrize(
    ("folder", "bad"), [("good", []), (".", ["corrupted.mp4", "rotated_90.mov", "unordered.mov"])]
)
def test_shared_clips_give_a_usable_set(tmp_path: Path, folder: str, bad: list[str]) -> None:
    job, outcome = stage(
        tmp_path,
        source="folder",
        videos=str(shared_clip(folder)),
        height=32,
        width=32,
        max_clips_per_video=16,
    )
    assert outcome.metrics["files_quarantined"] == len(bad)
    assert outcome.metrics["clips_train"] >= 8 and outcome.metrics["clips_validation"] >= 4
    told = "\n".join(job.monitor.notes)  # type: ignore[attr-defined]
    assert all(name in told for name in bad)
    assert {row["what"].rsplit("/")[-1] for row in outcome.table or []} >= set(bad)
