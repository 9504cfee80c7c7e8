"""`fvd` and `fvd-stats` on folders of real, tiny video files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner
from video_toys import encode, number_of, numbered

from vdmini_core.artifacts import sha256_file
from vdmini_core.cli import CORE_COMMANDS, new_app
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.folder_clips import ClipSpec, FolderClips
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.data.video import read_video, write_mp4
from vdmini_core.errors import DataError
from vdmini_core.metrics import frechet_distance, frechet_with_interval, load_extractor
from vdmini_core.metrics.folder import Settings
from vdmini_core.metrics.folder_distance import folder_distance

FRAMES, SIDE, N = 6, 32, 7
OPTIONS = ["--frames", str(FRAMES)]
I3D = Path(__file__).parents[3] / "shared" / "reference" / "i3d" / "i3d_weights.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(folder: Path, seed: int, count: int, damage: int = 0) -> Path:
    folder.mkdir(parents=True)
    spec = ProceduralSpec(frames=2 * FRAMES, height=SIDE, width=SIDE)
    for index, clip in enumerate(render_clips(spec, split_seeds("test", count, seed))):
        noisy = clip.astype(int) + damage * np.random.default_rng(index).integers(-1, 2, clip.shape)
        write_mp4(folder / f"clip-{index:02}.mp4", np.clip(noisy, 0, 255).astype(np.uint8), 8)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fvd")
    write(root / "real", 1, 2 * N)
    write(root / "generated", 2, N, damage=60)
    return root


def run(*arguments: Any) -> Any:
    app = new_app("test")
    for name, function in CORE_COMMANDS.items():
        app.command(name)(function)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def refusal(*arguments: Any) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, DataError), result.exception
    return str(result.exception)


def test_the_value_is_the_distance_of_the_features_of_the_frames(folders: Path) -> None:
    found = run_json("fvd", folders / "real", folders / "generated", *OPTIONS)
    extract = load_extractor("embedded")
    features = []
    for name in ("real", "generated"):
        files = sorted((folders / name).glob("*.mp4"))
        clips = np.stack([read_video(path)[0][:FRAMES] for path in files])
        features.append(extract(torch.from_numpy(clips)))
    assert found["value"] == pytest.approx(frechet_distance(features[1], features[0]), rel=1e-4)
    low, high = found["interval"]
    assert low <= found["value"] <= high
    assert found["n"] == {"real": 2 * N, "generated": N}
    assert any("14 real against 7 generated" in note for note in found["notes"])
    assert found["noise_floor"]["n"] == N
    assert found["noise_floor"]["mean"] > 0
    passport = found["passport"]
    assert (passport["frames"], passport["fps"], passport["size"]) == (FRAMES, 8.0, [SIDE, SIDE])
    assert (passport["extractor"], passport["real"]["split"]) == ("embedded", "real")


def test_saved_statistics_give_the_same_value(folders: Path, tmp_path: Path) -> None:
    files = {}
    for name in ("real", "generated"):
        files[name] = tmp_path / f"{name}.safetensors"
        told = run_json("fvd-stats", folders / name, "-o", files[name], *OPTIONS)
        assert told["n"] == {"real": 2 * N, "generated": N}[name]
    both = run_json("fvd", folders / "real", folders / "generated", *OPTIONS)
    for real, generated in (("s", "f"), ("f", "s"), ("s", "s")):
        sides = [
            files[name] if kind == "s" else folders / name
            for name, kind in (("real", real), ("generated", generated))
        ]
        found = run_json("fvd", *sides)  # extractor and frames follow the statistics
        assert found["value"] == pytest.approx(both["value"], rel=1e-9)
        assert found["passport"] == both["passport"]
        assert found["interval"] is None
        assert any("no interval" in note for note in found["notes"])
        assert (found["noise_floor"] is None) == (real == "s")
    message = refusal("fvd", files["real"], folders / "generated", "--extractor", "motion", "--frames", 5)
    assert f"{files['real']} was not made as asked for" in message
    assert "extractor: motion asked for, embedded there" in message
    assert "frames: 5 asked for, 6 there" in message
    assert "14" in refusal("fvd", files["real"], folders / "generated", "--n", N)


def test_n_clips_by_seed_without_repeats_and_a_floor_at_the_same_n(folders: Path) -> None:
    def ask(*more: Any) -> dict[str, Any]:
        return run_json("fvd", folders / "real", folders / "generated", *OPTIONS, "--n", 6, *more)

    first = ask()
    assert first == ask()
    assert first["n"] == {"real": 6, "generated": 6}
    assert first["noise_floor"]["n"] == 6  # 14 real clips: 6 against 6 others
    assert first["notes"] == []
    halves = ask("--no-floor")
    assert halves["value"] == first["value"]
    assert halves["noise_floor"]["n"] == 3
    assert any("3 against 3" in note for note in halves["notes"])
    other = ask("--seed", 5)
    assert other["passport"]["real"]["data"] != first["passport"]["real"]["data"]
    message = refusal("fvd", folders / "real", folders / "generated", *OPTIONS, "--n", 8)
    assert f"{folders / 'generated'} gives too few clips" in message
    assert "found: 7" in message
    more = ask("--clips-per-video", 2, "--n", 9)
    assert more["n"] == {"real": 9, "generated": 9}


def test_clips_follow_one_another_and_come_once(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for index, count in enumerate((20, 13, 6)):
        encode(tmp_path / "videos" / f"{index}.mp4", numbered(40)[index * 10 :][:count], fps=8)
    shutil.copy(tmp_path / "videos" / "2.mp4", tmp_path / "videos" / "copy.mp4")
    (tmp_path / "videos" / "notes.txt").write_text("hello")
    spec = ClipSpec(FRAMES, clips_per_video=3)
    with DecodePool(1, 60) as pool:
        source = FolderClips(tmp_path / "videos", spec, pool, tmp_path)
        assert source.reserve(None) == 3 + 2 + 1 + 1  # copies count
        clips = list(source.take(4)) + list(source.take(100))
        stride = FolderClips(tmp_path / "videos", ClipSpec(FRAMES, stride=2), pool, tmp_path)
        with pytest.raises(DataError, match=r"2\.mp4: too short: 6 frames, a clip of 6 spans 11"):
            stride.reserve(None)
        slow = ClipSpec(FRAMES, fps=4, size=(32, 48), skip_bad=True)
        by_time = next(FolderClips(tmp_path / "videos", slow, pool, tmp_path).take(1))
    assert sorted((clip.name, clip.start) for clip in clips) == [
        ("0.mp4", 0), ("0.mp4", 6), ("0.mp4", 12), ("1.mp4", 0), ("1.mp4", 6), ("2.mp4", 0), ("copy.mp4", 0),
    ]  # fmt: skip
    assert {clip.start for clip in clips[:4]} == {0}  # every video's first clip comes first
    assert not list(tmp_path.rglob("*.raw"))
    assert by_time.frames.shape == (FRAMES, 32, 48, 3)
    first = next(clip for clip in clips if clip.name == "0.mp4" and clip.start == 6)
    assert [number_of(frame) for frame in first.frames] == list(range(6, 12))


@pytest.fixture
def spoilt(folders: Path, tmp_path: Path) -> Path:
    shutil.copytree(folders / "generated", tmp_path / "spoilt")
    return tmp_path / "spoilt"


def encode_floats(path: Path, bad: int | None = None) -> None:
    """A video of floating-point numbers (OpenEXR) of which one frame may hold a NaN."""
    with av.open(str(path), "w", format="mov") as container:
        stream: Any = container.add_stream("exr", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "gbrpf32le"
        for index, image in enumerate(numbered(2 * FRAMES, SIDE) / np.float32(255)):
            if index == bad:
                image[3, 5, 1] = np.nan
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gbrpf32le")))
        container.mux(stream.encode())


def break_file(path: Path, how: str) -> str:
    """Break one file of a folder; the reason that is to be given."""
    if how == "no video":
        path.write_text("not a video at all\n" * 40)
        return "readable"
    if how == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return ""
    if how == "empty":
        path.write_bytes(b"")
        return "empty"
    if how == "NaN frame":
        encode_floats(path, bad=4)
        return "frame 4 holds NaN or infinite values"
    frames = numbered(2 * FRAMES, SIDE)
    if how == "too short":
        encode(path, frames[: FRAMES - 1], fps=8)
        return "too short: 5 frames, a clip of 6 spans 6"
    if how == "another size":
        encode(path, numbered(2 * FRAMES, 48), fps=8)
        return "48x48 pixels, others 32x32: give --size"
    encode(path, frames, fps=12)
    return "12 frames per second, others 8: give --fps or --stride"


@pytest.mark.parametrize(
    "how", ["no video", "cut off", "empty", "too short", "another size", "another rate", "NaN frame"]
)
def test_a_file_that_cannot_be_used_is_named(how: str, folders: Path, spoilt: Path) -> None:
    bad = spoilt / "clip-03.mp4"
    reason = break_file(bad, how)
    message = refusal("fvd", folders / "real", spoilt, *OPTIONS)
    assert f"{bad}: " in message
    assert reason in message
    assert "--skip-bad" in message
    found = run_json("fvd", folders / "real", spoilt, *OPTIONS, "--skip-bad")
    assert found["n"]["generated"] == N - 1
    assert list(found["skipped"]) == [str(bad)]
    shown = run("fvd", folders / "real", spoilt, *OPTIONS, "--skip-bad").stdout
    assert f"not used: {bad}" in shown


def test_other_sizes_and_rates_are_fine_when_asked_for(folders: Path, spoilt: Path) -> None:
    encode_floats(spoilt / "clip-02.mp4")
    break_file(spoilt / "clip-03.mp4", "another size")
    break_file(spoilt / "clip-04.mp4", "another rate")
    found = run_json("fvd", folders / "real", spoilt, "--frames", 4, "--size", "40x24", "--fps", 6)
    assert found["n"]["generated"] == N
    assert found["passport"]["size"] == [24, 40]
    assert run_json("fvd", folders / "real", spoilt, "--frames", 4, "--size", 24, "--stride", 2)["value"] > 0


def test_sides_of_another_size_or_rate_are_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    for index in range(3):
        encode(tmp_path / "big" / f"{index}.mp4", numbered(12 + index, 48), fps=12)
    message = refusal("fvd", folders / "real", tmp_path / "big", *OPTIONS)
    assert f"generated ({tmp_path / 'big'})" in message
    assert "size: 32 x 32 against 48 x 48" in message
    assert "fps: 8.0 against 12.0" in message


def test_saved_statistics_change_the_other_side_only_as_they_were_asked_to(
    folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "big").mkdir()
    for index in range(3):
        encode(tmp_path / "big" / f"{index}.mp4", numbered(24 + index, 48), fps=16)
    real, big, path = folders / "real", tmp_path / "big", tmp_path / "s.safetensors"
    run_json("fvd-stats", real, "-o", path, *OPTIONS)  # as the files are: 32x32 at 8 fps
    message = refusal("fvd", path, big)
    assert "size: 32 x 32 against 48 x 48" in message
    assert "fps: 8.0 against 16.0" in message
    asked = ("--size", 32, "--fps", 8)
    both = run_json("fvd", real, big, *OPTIONS, *asked)
    assert run_json("fvd", path, big, *asked)["value"] == pytest.approx(both["value"], rel=1e-9)
    run_json("fvd-stats", real, "-o", path, *OPTIONS, *asked)
    assert run_json("fvd", path, big)["value"] == pytest.approx(both["value"], rel=1e-9)
    run_json("fvd-stats", real, "-o", path, *OPTIONS, "--size", 32, "--stride", 2)
    strided = run_json("fvd", real, big, *OPTIONS, "--size", 32, "--stride", 2)
    assert run_json("fvd", path, big)["value"] == pytest.approx(strided["value"], rel=1e-9)


def test_two_saved_sides_refuse_what_they_were_not_made_with(folders: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run_json("fvd-stats", folders / "real", "-o", a, *OPTIONS)
    run_json("fvd-stats", folders / "generated", "-o", b, *OPTIONS)
    given = ("--extractor", "embedded", *OPTIONS, "--fps", 8, "--size", SIDE)
    assert run_json("fvd", a, b, *given)["value"] == run_json("fvd", a, b)["value"]
    message = refusal("fvd", a, b, "--extractor", "i3d", "--frames", 5, "--size", 64, "--layer", "pooled")
    assert str(a) in message
    for line in ("extractor: i3d asked for, embedded there", "frames: 5 asked for, 6 there", "layer: pooled"):
        assert line in message
    assert "sha256: 00000" in refusal("fvd", a, b, "--sha256", "0" * 64)


def test_exit_codes_and_streams_of_the_process(folders: Path, tmp_path: Path) -> None:
    def process(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vdmini_core", *map(str, arguments)]
        root = str(Path(__file__).parents[2])
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    sides = folders / "real", folders / "generated"
    done = process("fvd", *sides, *OPTIONS, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["value"] > 0  # JSON alone: progress goes to the other stream
    assert "clip/s" in done.stderr
    refused = process("fvd", *sides, "--frames", 99, "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{sides[0] / 'clip-00.mp4'}: too short" in refused.stderr
    assert "Traceback" not in refused.stderr
    unasked = process("fvd", *sides, "--size", "big")
    assert (unasked.returncode, unasked.stdout) == (2, "")
    stats = process("fvd-stats", sides[0], "-o", tmp_path / "nowhere" / "s.safetensors")
    assert (stats.returncode, stats.stdout) == (1, "")


def test_one_clip_and_no_clips(folders: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    message = refusal("fvd", folders / "real", one, *OPTIONS)
    assert f"{one} gives too few clips" in message
    shutil.copy(folders / "generated" / "clip-00.mp4", one)
    message = refusal("fvd", one, folders / "generated", *OPTIONS)
    assert f"{one} gives too few clips" in message
    assert f"found: 1 of 6 frames ({one / 'clip-00.mp4'})" in message
    (one / "junk.mp4").write_text("junk")
    assert f"{one / 'junk.mp4'}: " in refusal("fvd", one, folders / "generated", *OPTIONS, "--skip-bad")
    (one / "junk.mp4").unlink()
    assert "is no folder" in refusal("fvd", folders / "nowhere", one)
    assert "is no folder" in refusal("fvd", one / "clip-00.mp4", one)
    shutil.copy(folders / "generated" / "clip-01.mp4", one)
    found = run_json("fvd", folders / "real", one, *OPTIONS)
    assert found["interval"] is None
    assert "no interval: two clips have no spread" in found["notes"]


def test_statistics_that_are_of_no_use_are_named(folders: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    run_json("fvd-stats", folders / "generated", "-o", path, *OPTIONS)
    whole = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "numpy") as handle:
        header = handle.metadata()

    def refused(tensors: dict[str, Any], metadata: dict[str, str] | None) -> str:
        save_file(tensors, path, metadata=metadata)
        message = refusal("fvd", path, folders / "generated")
        assert str(path) in message
        return message

    nan = {**whole, "scatter": np.where(np.eye(64) > 0, np.nan, whole["scatter"])}
    assert "holds NaN" in refused(nan, header)
    assert "has no passport" in refused(whole, None)
    assert "does not fit its own passport" in refused({**whole, "mean": whole["mean"][:5]}, header)
    assert "holds no statistics" in refused({"clips": np.zeros(3)}, header)
    path.write_text("junk")
    assert "holds no statistics" in refusal("fvd", path, folders / "generated")
    path.unlink()
    assert "is not there" in refusal("fvd", path, folders / "generated")


def test_features_that_are_not_finite_name_the_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vdmini_core.metrics import embedded

    plain = embedded.ClipNetwork.features

    def broken(self: Any, clips: torch.Tensor) -> torch.Tensor:
        features = plain(self, clips)
        features[2] = float("nan")
        return features

    monkeypatch.setattr(embedded.ClipNetwork, "features", broken)
    message = refusal("fvd", folders / "real", folders / "generated", *OPTIONS)
    assert message.count(".mp4") == 1
    assert str(folders / "real" / "clip-") in message


def test_bad_arguments(folders: Path, tmp_path: Path) -> None:
    sides = (folders / "real", folders / "generated")
    for arguments in (["--fps", 3, "--stride", 2], ["--size", "big"], ["--size", "4"], ["--fps", 0]):
        assert run("fvd", *sides, *arguments).exit_code == 2
    assert "no extractor" in refusal("fvd", *sides, "--extractor", "vgg")
    assert "no device" in refusal("fvd", *sides, "--device", "tpu")
    for output in (tmp_path / "stats.npz", tmp_path / "nowhere" / "stats.safetensors"):
        refusal("fvd-stats", sides[0], "-o", output)


def test_the_interval_is_that_of_the_features_around_the_value(folders: Path) -> None:
    settings = Settings(frames=FRAMES, n=N)
    found = folder_distance(folders / "real", folders / "generated", settings)
    extract = load_extractor("embedded")
    features = []
    for name in ("real", "generated"):
        with DecodePool(1, 60) as pool:
            source = FolderClips(folders / name, ClipSpec(FRAMES), pool, folders)
            features.append(extract(torch.from_numpy(np.stack([c.frames for c in source.take(N)]))))
    expected = frechet_with_interval(features[1], features[0], 0)
    assert found.interval is not None
    assert found.interval[1] == pytest.approx(expected.high, rel=1e-6)


def test_tables_are_for_people(folders: Path, tmp_path: Path) -> None:
    shown = run("fvd", folders / "real", folders / "generated", *OPTIONS).stdout
    for text in ("Fréchet distance", "95 % interval", "noise floor", "weights_sha256", "32 x 32", "note: "):
        assert text in shown
    told = run("fvd-stats", folders / "real", "-o", tmp_path / "s.safetensors", *OPTIONS).stdout
    assert "statistics of 14 clips, 64 features" in told


@pytest.mark.skipif(not I3D.is_file(), reason="the original network's numbers are not beside the checkout")
def test_i3d_by_its_conventions(tmp_path: Path) -> None:
    pytest.importorskip("vdmini_core.metrics.i3d")
    real, generated = write(tmp_path / "real", 1, 3), write(tmp_path / "generated", 2, 3)
    weights = ("--extractor", "i3d", "--weights", I3D, "--frames", 10)
    found = run_json("fvd", real, generated, *weights, "--convention", "styleganv")
    passport = found["passport"]
    assert (passport["extractor"], passport["dim"]) == ("i3d", 400)
    assert passport["weights_sha256"] == sha256_file(I3D)
    assert "sha256" in refusal("fvd", real, generated, *weights, "--sha256", "0" * 64)


@pytest.mark.skipif(not I3D.is_file(), reason="the original network's numbers are not beside the checkout")
def test_the_options_of_i3d_follow_saved_statistics(tmp_path: Path) -> None:
    real, generated = write(tmp_path / "real", 1, 2), write(tmp_path / "generated", 2, 2)
    saved, other, damaged = (tmp_path / f"{name}.safetensors" for name in ("saved", "other", "damaged"))
    i3d = ("--extractor", "i3d", "--weights", I3D, "--frames", 9)
    options = ("--convention", "cdfvd", "--layer", "pooled", "--bn-eps", 1e-3)
    both = run_json("fvd", real, generated, *i3d, *options)
    assert (both["passport"]["dim"], both["passport"]["options"]["bn_eps"]) == (1024, 1e-3)
    run_json("fvd-stats", real, "-o", saved, *i3d, *options)
    followed = run_json("fvd", saved, generated, "--weights", I3D)
    assert followed["value"] == pytest.approx(both["value"], rel=1e-9)
    assert followed["passport"] == both["passport"]

    contradicting = ("--convention", "styleganv", "--layer", "logits", "--bn-eps", 1e-5)
    message = refusal("fvd", saved, generated, "--weights", I3D, *contradicting)
    for line in ("styleganv asked for, cdfvd", "logits asked for, pooled", "1e-05 asked for, 0.001"):
        assert f"{line} there" in message
    run_json("fvd-stats", generated, "-o", other, *i3d, *options[:4])
    assert "bn_eps: 0.001 against 1e-05" in refusal("fvd", saved, other)  # another passport

    digest = sha256_file(I3D)
    assert f"whose weights are not given\n  expected: sha256 {digest}" in refusal("fvd", saved, generated)
    state = safetensors.torch.load_file(I3D)
    state["logits.conv3d.bias"] += 1
    safetensors.torch.save_file(state, damaged)
    for side in (generated, saved):  # also where no clip is left to be measured
        message = refusal("fvd", saved, side, "--weights", damaged)
        assert f"expected: sha256 {digest}, as in its passport" in message
        assert f"found: sha256 {sha256_file(damaged)}" in message
