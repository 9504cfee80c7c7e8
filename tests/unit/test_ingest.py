"""Claims: bad files never end a run and each is accounted for once; splits share nothing; bytes repeat."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_toys import audio_only, encode, number_of, numbered, wav

from vdmini_core.artifacts import tree_digests
from vdmini_core.data import ingest
from vdmini_core.data.accounting import Prepared
from vdmini_core.data.clips import SPLITS, clip_count, load_clips, save_clips
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import discover, every_file
from vdmini_core.data.prompts import load_captions, load_prompts
from vdmini_core.data.splits import Source, assign, level_for
from vdmini_core.data.video import read_info
from vdmini_core.errors import DataError
from vdmini_core.params import PrepareParams

# A worker that misbehaves on files named so; everything else it does as the real one.
MISBEHAVING = """
import os, pathlib, signal, time
from vdmini_core.data import decode_worker as w
real, seen = w.read_info, []
def read_info(path):
    seen.append(path)
    if "tired" in path.name and len(seen) > 1: os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in path.name: time.sleep(60)
    if "crash" in path.name: os.kill(os.getpid(), signal.SIGSEGV)
    if "leave" in path.name: os._exit(3)
    if "greedy" in path.name: bytearray(64 * 2**30)
    return real(path)
w.read_info = read_info
w.main()
"""


def params(**changes: Any) -> PrepareParams:
    clips = {"train": 40, "validation": 8, "test": 8}
    return PrepareParams.model_validate(
        {"source": "folder", "videos": ".", "height": 32, "width": 32, "clips": clips, **changes}
    )


def make(folder: Path, into: Path, seed: int = 0, **changes: Any) -> Prepared:
    for name in ("out", "work"):
        (into / name).mkdir(parents=True, exist_ok=True)
    return ingest.ingest_folder(folder, into / "out", into / "work", params(**changes), seed)


def index(into: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((into / "out" / "index.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One 20 s video and two of 6 s, at 8 frames per second, all different."""
    folder = tmp_path_factory.mktemp("good")
    encode(folder / "long.mp4", numbered(160), fps=8)
    encode(folder / "b.mkv", numbered(250)[100:148], fps=8)
    encode(folder / "c.webm", numbered(250)[200:248], fps=8, codec="libvpx-vp9", options={"cpu-used": "8"})
    return folder


@pytest.fixture
def zoo(good: Path, tmp_path: Path) -> Path:
    """The good videos among everything that people have in their folders."""
    folder = tmp_path / "zoo"
    shutil.copytree(good, folder / "deep" / "er")
    whole = (good / "long.mp4").read_bytes()
    (folder / "zero.mp4").touch()
    (folder / "text.MP4").write_text("not a video at all\n" * 40)
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "no_index.mp4").write_bytes(whole[:64])
    (folder / "copy.mp4").write_bytes(whole)
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:5,\ndeep/er/long.mp4\n#EXT-X-ENDLIST\n")
    (folder / "notes.md").write_text("hello")
    (folder / "._long.mp4").write_text("x")
    Image.new("RGB", (32, 32)).save(folder / "picture.mp4", format="PNG")
    audio_only(folder / "song.m4v")
    wav(folder / "sound.avi")
    encode(folder / "short.mov", numbered(4), fps=30)
    encode(folder / "static.mp4", np.repeat(numbered(1), 160, 0), fps=8)
    encode(folder / "schön\n 日本 '\".Mp4", numbered(250)[60:120], fps=8).rename(
        folder / "schön\n 日本 '\".MP4"
    )
    os.mkfifo(folder / "pipe.mp4")
    (folder / "nowhere.mp4").symlink_to(folder / "gone.mp4")
    (folder / "deep" / "loop").symlink_to(folder)
    return folder


def test_every_file_is_accounted_for_once(zoo: Path, tmp_path: Path) -> None:
    prepared = make(zoo, tmp_path / "run")
    records = json.loads((tmp_path / "run" / "out" / "sources.json").read_text())
    reasons = {record["path"]: record["reason"] for record in records}
    on_disk = sum(len(files) for _, _, files in os.walk(zoo)) + 1  # and the link to a folder
    assert len(records) == len(reasons) == on_disk
    used = {record["path"] for record in records if record["status"] == "used"}
    assert used == {"copy.mp4", "deep/er/b.mkv", "deep/er/c.webm", "schön\n 日本 '\".MP4"}
    assert {r["path"] for r in records if r["status"] == "skipped"} == {"notes.md", "._long.mp4"}
    expected = {
        "zero.mp4": "empty",
        "text.MP4": "video",
        "truncated.mp4": "",
        "no_index.mp4": "",
        "deep/er/long.mp4": "the same bytes as copy.mp4",
        "playlist.mp4": "not a readable video",
        "picture.mp4": "`png_pipe`",
        "song.m4v": "no picture",
        "sound.avi": "`wav`",
        "short.mov": "too short",
        "static.mp4": "static",
        "pipe.mp4": "not a regular file",
        "nowhere.mp4": "leads nowhere",
        "deep/loop": "already read",
    }
    assert set(reasons) == used | set(expected) | {"notes.md", "._long.mp4"}
    for name, words in expected.items():
        assert reasons[name] and words in reasons[name], (name, reasons[name])
    told = "\n".join(prepared.notes)
    assert f"{len(expected)} of {len(records) - 2} files could not be used" in told
    assert all(repr(name) in told for name in expected)
    counted = Counter(clip["source"] for split in SPLITS for clip in index(tmp_path / "run")[split])
    assert counted == {record["path"]: record["clips"] for record in records if record["clips"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_quarantined(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(good, folder)
    (folder / "b.mkv").chmod(0)
    (folder / "closed").mkdir(mode=0)
    reasons = {f.name: f.reason for f in discover(folder) if f.status == "quarantined"}
    assert set(reasons) == {"b.mkv", "closed"}


def test_folders_deeper_than_calls_and_names_that_look_alike(tmp_path: Path) -> None:
    """1,200 folders within each other; a byte that is no UTF-8 beside a name that spells its escape."""
    place = tmp_path / "deep"
    place.mkdir()
    here = os.open(place, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(os.open("bottom.mp4", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    for name in (b"a\xff.mp4", b"a\\xff.mp4"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    try:
        found = {item.name: item.reason for item in every_file(tmp_path)}
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)  # deeper than shutil goes, too
    assert set(found) == {"a\\xff.mp4", "a\\xff.mp4 (2)", "deep/" + "d/" * 1200 + "bottom.mp4"}
    assert set(found.values()) == {"empty (0 bytes)"}


def test_a_colon_in_a_relative_path_is_no_protocol(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run:1").mkdir()
    shutil.copy(good / "b.mkv", tmp_path / "run:1" / "http:b.mkv")
    monkeypatch.chdir(tmp_path)
    (found,) = every_file(Path("run:1"))
    assert found.path.is_absolute() and found.name == "http:b.mkv"
    assert read_info(Path("run:1/http:b.mkv")).width == 64


def test_captions_lie_beside_the_clips_in_their_order(good: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "run" / "out"
    shutil.copytree(good, folder)
    (folder / "long.txt").write_text("Numbers count up.")
    prepared = make(folder, tmp_path / "run")
    for split in SPLITS:
        captions = load_captions(out, split)
        assert [c.source for c in captions] == [entry["source"] for entry in index(tmp_path / "run")[split]]
        assert {c.prompt for c in captions if c.source == "long.mp4"} <= {"Numbers count up."}
        assert {c.prompt for c in captions if c.source != "long.mp4"} <= {None}
    reasons = {record["path"]: record["reason"] for record in prepared.sources}
    assert reasons["long.txt"] == "captions of the videos"
    make(folder, tmp_path / "named", captions="filename")
    assert "b" in load_prompts(tmp_path / "named" / "out", "train")


def test_few_videos_are_cut_by_time_and_share_no_frame(good: Path, tmp_path: Path) -> None:
    make(good, tmp_path)
    facts = index(tmp_path)
    assert facts["sampling"]["splits"] == "by time" and facts["sampling"]["overlapping"]
    spans: dict[tuple[str, str], set[int]] = {}
    for split in SPLITS:
        clips = load_clips(tmp_path / "out", split).numpy()
        assert len(clips) == len(facts[split])
        for clip, entry in zip(clips, facts[split], strict=True):
            begin = round(entry["start_s"] * 8)
            spans.setdefault((entry["source"], split), set()).update(range(begin, begin + 8))
            first = {"long.mp4": 0, "b.mkv": 100, "c.webm": 200}[entry["source"]]
            assert [number_of(frame) for frame in clip] == list(range(first + begin, first + begin + 8))
    for name in ("long.mp4", "b.mkv", "c.webm"):
        parts = [spans.get((name, split), set()) for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts))


def test_many_videos_are_split_by_source_and_the_seed_decides(tmp_path: Path) -> None:
    sources = [Source(f"{n}.mp4", ((0, 40),), 48) for n in range(30)]
    wanted = {"train": 60, "validation": 10, "test": 10}
    results = [assign(sources, wanted, 8, 64, seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    for result in results:
        assert (result.mode, result.stride) == ("by source", 8)
        names = [{name for name, _ in result.parts[split]} for split in SPLITS]
        assert len(set().union(*names)) == sum(map(len, names)) == 30
        assert min(len(names[1]), len(names[2])) >= 2
    assert assign(list(reversed(sources)), wanted, 8, 64, 0) == results[0]


def test_a_split_gets_what_is_asked_for_where_there_is_plenty() -> None:
    sources = [Source(f"{n}.mp4", ((0, 40),), 48) for n in range(100)]
    result = assign(sources, {"train": 20, "validation": 5, "test": 60}, 8, 1, 0)
    assert {split: len(parts) for split, parts in result.parts.items()} == {
        "test": 60, "validation": 5, "train": 35,
    }  # fmt: skip
    scarce = assign(sources, {"train": 200, "validation": 5, "test": 60}, 8, 1, 0)
    assert len(scarce.parts["test"]) == 15


def test_a_long_film_does_not_drown_the_others() -> None:
    film = Source("film.mkv", ((0, 100_000),), 100_008)
    others = [Source(f"{n}.mp4", ((0, 16),), 24) for n in range(20)]
    result = assign([film, *others], {"train": 500, "validation": 20, "test": 20}, 8, 12, 0)
    starts = dict(pair for split in SPLITS for pair in result.parts[split])["film.mkv"]
    assert len(starts) == 12 and starts[0] < 10_000 and starts[-1] > 90_000
    assert level_for([1, 1, 100], 10) == 8 and level_for([1, 1], 10) == 1


def test_same_folder_same_bytes_whatever_the_number_of_workers(good: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("three", 3)):
        make(good, tmp_path / name, workers=workers)
    digests = tree_digests(tmp_path / "one" / "out")
    assert digests == tree_digests(tmp_path / "three" / "out")
    of_splits = {name for s in SPLITS for name in (f"clips-{s}.safetensors", f"prompts-{s}.jsonl")}
    assert set(digests) == of_splits | {"index.json", "sources.json"}


def test_a_killed_run_goes_on_where_it_stopped(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(good, tmp_path)
    digests = tree_digests(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(DecodePool, "call", lambda self, request: pytest.fail("decoded again"))
    make(good, tmp_path)
    assert tree_digests(tmp_path / "out") == digests


def test_too_little_says_found_needed_and_what_to_do(good: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    with pytest.raises(DataError, match="no videos in this folder"):
        discover(only)
    encode(only / "tiny.mp4", numbered(8), fps=8)
    (only / "bad.mp4").write_text("no")
    with pytest.raises(DataError) as caught:
        make(only, tmp_path / "run")
    text = str(caught.value)
    assert "at least 1 train, 4 validation, 2 test" in text and "prepare.frames" in text and "bad.mp4" in text
    with pytest.raises(DataError, match="missing"):
        discover(tmp_path / "absent")


def test_hang_crash_exit_and_greed_cost_one_file_each(good: Path, tmp_path: Path) -> None:
    names = ["hang.mp4", "fine1.mp4", "crash.mp4", "leave.mp4", "fine2.mp4", "greedy.mp4", "fine3.mp4"]
    names += ["tired1.mp4", "tired2.mp4", "tired3.mp4"]  # they crash processes that read something before
    for name in names:
        shutil.copy(good / "b.mkv", tmp_path / name)
    request = {"op": "probe", "frames": 8, "fps": 8.0}
    began = time.monotonic()
    with DecodePool(2, 2.0, command=(sys.executable, "-c", MISBEHAVING)) as pool:
        replies = dict(pool.map(lambda n: pool.call({**request, "path": str(tmp_path / n)}), names))
    assert time.monotonic() - began < 20
    assert "took longer than 2 s" in replies["hang.mp4"]["error"]
    assert "crashed" in replies["crash.mp4"]["error"] and "SIGSEGV" in replies["crash.mp4"]["error"]
    assert "exit status 3" in replies["leave.mp4"]["error"]
    assert "memory" in replies["greedy.mp4"]["error"]
    assert all(replies[f"{kind}{n}.mp4"]["runs"] for kind in ("fine", "tired") for n in (1, 2, 3))


def test_a_worker_that_cannot_start_is_an_error_and_no_quarantine() -> None:
    with (
        DecodePool(1, 5.0, command=(sys.executable, "-c", "import no_such_decoder")) as pool,
        pytest.raises(DataError, match="no_such_decoder"),
    ):
        pool.call({"op": "probe"})


def test_the_worker_does_not_load_torch() -> None:
    check = "import sys, vdmini_core.data.decode_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    clips = np.random.default_rng(0).integers(0, 255, (5, 4, 16, 24, 3), np.uint8)
    save_clips(tmp_path, "test", iter(clips), clips.shape)
    written = tmp_path / "clips-test.safetensors"
    assert np.array_equal(load_file(written)["clips"], clips)
    save_file({"clips": clips}, tmp_path / "reference")
    assert written.read_bytes() == (tmp_path / "reference").read_bytes()
    assert clip_count(tmp_path, "test") == 5 and len(load_clips(tmp_path, "test", limit=2)) == 2
    with pytest.raises(DataError, match="no train clips"):
        load_clips(tmp_path, "train")
    with pytest.raises(DataError, match="do not fit"):
        save_clips(tmp_path, "test", iter(clips[:2]), clips.shape)
