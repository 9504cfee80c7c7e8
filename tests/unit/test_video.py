"""Claims: the right frame at the right time, upright, from every container, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_toys import encode, number_of, numbered, rotate_flag, shared_clip

from vdmini_core.data.decode_worker import answer
from vdmini_core.data.procedural import ProceduralSpec, render_clip
from vdmini_core.data.readers import AvReader, DecordReader
from vdmini_core.data.sampling import clip_runs, nearest_frames, spread
from vdmini_core.data.video import fit, read_info, read_video, write_mp4
from vdmini_core.errors import DataError


def decode(path: Path, starts: list[int], frames: int = 8, fps: float = 8.0, **more: Any) -> dict[str, Any]:
    out = path.with_suffix(".raw")
    shape = {
        "frames": frames,
        "fps": fps,
        "height": 64,
        "width": 64,
        "min_motion": 0.5,
        "timeout_s": 60,
        **more,
    }
    reply = answer({"op": "decode", "path": str(path), "out": str(out), "starts": starts, **shape})
    if "starts" in reply:
        size = (len(reply["starts"]), frames, 64, 64, 3)
        reply["clips"] = np.frombuffer(out.read_bytes(), np.uint8).reshape(size)
    return reply


def probe(path: Path, frames: int = 8, fps: float = 8.0) -> dict[str, Any]:
    return answer({"op": "probe", "path": str(path), "frames": frames, "fps": fps, "timeout_s": 60})


def numbers(clip: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in clip]


def expected_numbers(times: list[float], start: int, frames: int = 8, fps: float = 8.0) -> list[int]:
    """Reference sampling, one moment at a time: the nearest frame, the earlier one in a tie."""
    moments = [(start + k) / fps for k in range(frames)]
    return [min(range(len(times)), key=lambda i: (round(abs(times[i] - m), 4), i)) for m in moments]


def test_written_video_reads_back_and_has_the_same_bytes_twice(tmp_path: Path) -> None:
    frames = numbered(8)
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, frames, fps=8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded
    back, info = read_video(tmp_path / "a.mp4")
    assert back.shape == frames.shape and info.fps == pytest.approx(8)
    assert np.abs(back.astype(int) - frames).mean() < 3


def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    moving = render_clip(ProceduralSpec(), 6).frames  # 14 different files before the macroblock tree went
    digests = set()
    for turn in range(60):
        junk = [np.full(size, turn * 4, np.uint8) for size in (3_000, 40_000, 150_000)]
        write_mp4(tmp_path / "v.mp4", moving, fps=8)
        digests.add((tmp_path / "v.mp4").read_bytes())
        del junk
    assert len(digests) == 1


def test_odd_sizes_are_padded_and_wrong_arrays_refused(tmp_path: Path) -> None:
    write_mp4(tmp_path / "odd.mp4", numbered(3)[:, :63, :61], fps=7.5)
    assert read_video(tmp_path / "odd.mp4")[0].shape == (3, 64, 62, 3)
    with pytest.raises(DataError, match="expected: uint8"):
        write_mp4(tmp_path / "float.mp4", np.zeros((3, 8, 8, 3)), fps=8)


def test_nearest_frame_takes_the_earlier_one_in_a_tie() -> None:
    times = np.array([0.0, 0.1, 0.2])
    assert nearest_frames(times, np.array([0.05, 0.0500000001, 0.16, 9.0])).tolist() == [0, 0, 2, 2]


def test_gaps_and_slow_sources_start_no_clip() -> None:
    steady = np.arange(24) / 8
    assert clip_runs(steady, 8, 8.0) == [(0, 16)]
    gap = np.concatenate([steady, steady + 100])
    assert [first for first, _ in clip_runs(gap, 8, 8.0)] == [0, 797]
    assert clip_runs(np.arange(10) / 2, 8, 8.0) == []


def test_spread_covers_the_whole_film() -> None:
    chosen = spread(range(1000), 4)
    assert chosen == [125, 375, 625, 875] and spread([1, 2], 5) == [1, 2]


@pytest.mark.parametrize("fps", [8, 10, 24, 30, 60])
def test_constant_rate_gives_the_frames_of_the_asked_times(tmp_path: Path, fps: int) -> None:
    count = min(250, 3 * fps)
    path = encode(tmp_path / "v.mp4", numbered(count), fps=fps, options={"g": "7"})
    reply = decode(path, [0, 5, 9])
    times = [k / fps for k in range(count)]
    assert reply["decoder"] == "decord"
    for start, clip in zip([0, 5, 9], reply["clips"], strict=True):
        assert numbers(clip) == expected_numbers(times, start)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.mov"])
def test_variable_rate_gives_the_frames_of_the_asked_times(tmp_path: Path, name: str) -> None:
    steps = np.random.default_rng(3).choice([0.02, 0.05, 0.11], 60)
    times = np.concatenate([[0], np.cumsum(steps)]).round(3).tolist()
    path = encode(tmp_path / name, numbered(len(times)), times=times)
    assert read_info(path).times == pytest.approx(times)
    reply = decode(path, [0, 8])
    assert [numbers(clip) for clip in reply["clips"]] == [expected_numbers(times, s) for s in (0, 8)]


def test_both_decoders_show_the_same_frames_wherever_they_seek(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mkv", numbered(200), fps=25, options={"g": "20", "bf": "3"})
    info = read_info(path)
    indices = [1, 2, 60, 61, 139, 140, 199]
    first = list(DecordReader(path, info).frames(indices))
    reader = AvReader(path, info)
    second = list(reader.frames(indices))
    assert [number_of(f) for f in first] == [number_of(f) for f in second] == indices
    assert np.abs(np.stack(first).astype(int) - np.stack(second)).max() <= 2
    assert [number_of(f) for f in reader.frames([5, 180])] == [5, 180]  # and back again


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_flag_is_respected(tmp_path: Path, turns: int) -> None:
    upright = np.zeros((30, 64, 96, 3), np.uint8)
    upright[:, :32, :48] = (255, 0, 0)  # red above left, blue below right
    upright[:, 32:, 48:] = (0, 0, 255)
    upright[::2, :32, 48:] = 90
    stored = np.ascontiguousarray(np.rot90(upright, turns, axes=(1, 2)))
    path = encode(tmp_path / "phone.mp4", stored, fps=30)
    rotate_flag(path, turns)
    info = read_info(path)
    assert (info.height, info.width) == (64, 96)
    clip = decode(path, [0], min_motion=0.0, max_repeats=1.0)["clips"][0]
    assert clip[:, 8, 8].mean(0) == pytest.approx([255, 0, 0], abs=12)
    assert clip[:, 56, 56].mean(0) == pytest.approx([0, 0, 255], abs=12)


def test_real_rotated_file_is_upright() -> None:
    info = read_info(shared_clip("hard/rotated_90.mov"))
    assert (info.width, info.height, info.rotation) == (320, 568, 270)


@pytest.mark.parametrize("name", ["hard/h264_10bits.mp4", "hard/h265_video.mp4", "good/bt709_full_range.mp4"])
def test_hard_but_whole_files_give_clips(tmp_path: Path, name: str) -> None:
    (tmp_path / "v.mp4").write_bytes(shared_clip(name).read_bytes())
    assert decode(tmp_path / "v.mp4", [0])["starts"] == [0]


@pytest.mark.parametrize(
    ("name", "codec", "decoder"),
    [
        ("v.mp4", "libsvtav1", "pyav"),
        ("v.webm", "libvpx-vp9", "decord"),
        ("v.avi", "mpeg4", "decord"),
        ("v.mov", "libx265", "decord"),
        ("v.gif", "gif", None),
    ],
)
def test_every_kind_of_file_gives_the_right_frames(
    tmp_path: Path, name: str, codec: str, decoder: str | None
) -> None:
    frames = numbered(40)
    path = encode(tmp_path / name, frames, fps=20, codec=codec)
    reply = decode(path, [0, 4])
    assert reply["decoder"] == decoder or decoder is None
    assert [numbers(c) for c in reply["clips"]] == [
        expected_numbers([k / 20 for k in range(40)], start) for start in (0, 4)
    ]


def test_static_short_and_slow_files_say_so(tmp_path: Path) -> None:
    static = encode(tmp_path / "static.mp4", np.repeat(numbered(1), 40, 0), fps=20)
    assert "static" in next(iter(decode(static, [0])["rejected"]))
    short = encode(tmp_path / "short.mp4", numbered(5), fps=30)
    assert probe(short)["error"].startswith("too short: 0.13 s in 5 frames")
    slow = encode(tmp_path / "slow.mp4", numbered(20), fps=2)
    assert "too slow: 2.00 frames per second" in probe(slow)["error"]


def test_fit_crops_the_centre_and_respects_wide_pixels() -> None:
    frame = np.zeros((40, 100, 3), np.uint8)
    frame[:, 30:70] = 200
    assert (fit(frame, 16, 16) > 150).all()
    assert (fit(frame, 16, 32) > 100).mean() == pytest.approx(0.5, abs=0.07)
    assert (fit(frame, 16, 32, aspect=2.0) > 150).all()  # 200 wide on the screen: half is cut off
    checker = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))[..., None].repeat(3, -1)
    assert np.abs(fit(checker, 16, 16).astype(int) - 127).max() < 8  # antialiased: no moire
