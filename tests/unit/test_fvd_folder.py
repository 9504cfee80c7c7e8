"""`fvd` and `fvd-stats` on real files: equal by either way, strict about what they compare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vdmini_core.data.procedural import ProceduralSpec, render_clip, split_seeds
from vdmini_core.data.video import write_mp4
from vdmini_core.errors import DataError
from vdmini_core.metrics import GaussianStats, load_extractor
from vdmini_core.metrics.folder import (
    Reading,
    compare_sides,
    folder_statistics,
    load_statistics,
    read_side,
)
from vdmini_core.metrics.passport import differences, require_comparable

READING = Reading(frames=4, fps=8.0, size=(32, 32), workers=1)


def make_folder(folder: Path, count: int, seed: int, frames: int = 6, side: int = 32) -> Path:
    folder.mkdir()
    for index, clip_seed in enumerate(split_seeds("test", count, seed)):
        clip = render_clip(ProceduralSpec(frames, side, side), clip_seed)
        write_mp4(folder / f"clip_{index:02d}.mp4", clip.frames, 8.0)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return make_folder(root / "real", 9, 1), make_folder(root / "made", 8, 2)


@pytest.fixture(scope="module")
def extract():
    return load_extractor("embedded")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "vdmini_core", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def test_saved_statistics_give_the_value_of_the_folder(folders, extract, tmp_path):
    real, made = folders
    sides = [read_side(folder, extract, READING) for folder in folders]
    whole = compare_sides(*sides)
    side = folder_statistics(real, extract, READING)
    side.data.save(tmp_path / "real.safetensors", side.passport)
    saved = read_side(tmp_path / "real.safetensors", extract, READING)
    again = compare_sides(saved, read_side(made, extract, READING))
    # Fewer clips than dimensions: the two ways to the square root differ by rounding of zero eigenvalues.
    assert again["value"] == pytest.approx(whole["value"], rel=1e-7)
    assert whole["low"] <= whole["value"] <= whole["high"] and again["low"] is None
    assert whole["passport"] == again["passport"]
    assert whole["passport"]["clips"] == {"real": 9, "generated": 8}
    assert whole["noise_floor"]["clips"] == 4


def test_videos_are_drawn_by_seed_without_repeats(folders, extract):
    real, _ = folders
    few = [read_side(real, extract, Reading(4, 8.0, (32, 32), 5, seed, workers=1)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0].data, few[1].data)
    assert not np.array_equal(few[0].data, few[2].data)
    assert len(np.unique(few[0].data.round(4), axis=0)) == 5


def test_common_size_and_rate_are_found(folders, extract):
    found = read_side(folders[1], extract, Reading(frames=4, workers=1))
    given = read_side(folders[1], extract, READING)
    np.testing.assert_array_equal(found.data, given.data)
    assert found.passport["size"] == [32, 32] and found.passport["fps"] == 8.0


def test_the_file_that_does_not_fit_is_named(tmp_path, extract):
    folder = make_folder(tmp_path / "films", 3, 3)
    write_mp4(folder / "short.mp4", render_clip(ProceduralSpec(2, 32, 32), 5).frames, 8.0)
    with pytest.raises(DataError, match=r"(?s)short\.mp4 gives no clip.*too short"):
        read_side(folder, extract, READING)
    (folder / "broken.mp4").write_bytes(b"junk")
    skipping = Reading(4, 8.0, (32, 32), 3, 0, skip_bad=True, workers=1)
    side = read_side(folder, extract, skipping)
    assert side.clips == 3
    with pytest.raises(DataError, match=r"(?s)too few clips.*at least 4.*broken\.mp4: .*"):
        read_side(folder, extract, Reading(4, 8.0, (32, 32), 4, 0, skip_bad=True, workers=1))


def test_videos_of_other_sizes_need_a_size(tmp_path, extract):
    folder = make_folder(tmp_path / "films", 2, 3)
    write_mp4(folder / "large.mp4", render_clip(ProceduralSpec(6, 48, 48), 5).frames, 8.0)
    with pytest.raises(DataError, match=r"(?s)differ in height.*clip_|large\.mp4"):
        read_side(folder, extract, Reading(frames=4, workers=1))


def test_one_clip_and_more_than_there_are(tmp_path, extract):
    folder = make_folder(tmp_path / "one", 1, 4)
    with pytest.raises(DataError, match=r"(?s)too few clips in .*one.*at least 2"):
        read_side(folder, extract, READING)
    with pytest.raises(DataError, match=r"(?s)too few videos in .*one"):
        read_side(folder, extract, Reading(4, 8.0, (32, 32), 5, workers=1))


def test_statistics_with_nan_and_other_files_are_named(tmp_path):
    broken = GaussianStats(3).update(np.random.default_rng(0).normal(size=(4, 3)))
    broken.mean[1] = float("nan")
    broken.save(tmp_path / "nan.safetensors", {"frames": 4})
    with pytest.raises(DataError, match=r"nan\.safetensors holds NaN"):
        load_statistics(tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(DataError, match=r"text\.safetensors holds no statistics"):
        load_statistics(tmp_path / "text.safetensors")


def test_sides_read_differently_are_refused_with_the_difference(folders, extract):
    real = read_side(folders[0], extract, READING)
    other = read_side(folders[1], extract, Reading(3, 8.0, (32, 24), workers=1))
    with pytest.raises(DataError, match=r"(?s)frames: 4 against 3.*size: \[32, 32\] against \[32, 24\]"):
        compare_sides(real, other)


def test_passports():
    one = {"extractor": {"name": "i3d", "bn_eps": 1e-5}, "clips": 8, "decoders": ("decord",)}
    assert differences(one, {**one, "decoders": ["decord"]}) == []
    other = {"extractor": {"name": "i3d", "bn_eps": 1e-3}, "clips": 9, "fps": 7}
    found = differences(one, other)
    assert "extractor.bn_eps: 1e-05 against 0.001" in found and "fps: not known against 7" in found
    assert not any(line.startswith("clips") for line in differences(one, other, {"clips"}))
    with pytest.raises(DataError, match="bn_eps"):
        require_comparable(one, other)


def test_command_line(folders, tmp_path):
    real, made = folders
    options = ("--frames", 4, "--fps", 8, "--size", 32)
    stats = tmp_path / "real.safetensors"
    written = command("fvd-stats", real, "-o", stats, *options)
    assert written.returncode == 0 and "9 clips" in written.stdout, written.stderr
    done = command("fvd", stats, made, *options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["value"] > 0 and result["passport"]["extractor"]["extractor"] == "embedded"
    bad = command("fvd", real, tmp_path / "nowhere", *options)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr and "nowhere" in bad.stderr
    assert command("fvd", real, made, "--size", "big").returncode == 2


def test_frozen_videos_are_compared_like_any_other(tmp_path, extract):
    folder = tmp_path / "still"
    folder.mkdir()
    for index in range(3):
        still = torch.full((6, 32, 32, 3), 60 + 40 * index, dtype=torch.uint8)
        write_mp4(folder / f"{index}.mp4", still.numpy(), 8.0)
    assert read_side(folder, extract, READING).clips == 3
