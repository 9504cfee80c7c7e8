"""The folder VBench gets: its own rules find every video, and nothing half lies in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import vbench_rules as rules
from PIL import Image

from vdmini_core.errors import DataError
from vdmini_core.metrics.vbench import (
    Video,
    check_folder,
    plan_videos,
    video_name,
    write_suite,
)
from vdmini_core.metrics.vbench_suite import read_first_frame

LIQUID, BEAR = "a close up of a blue and orange liquid", "a bear, no. 2-3."
I2V = [
    {
        "prompt_en": LIQUID,
        "dimension": ["i2v_background", "temporal_flickering"],
        "image_name": f"{LIQUID}.jpg",
    },
    {
        "prompt_en": f"{LIQUID}, camera pans left",
        "dimension": ["camera_motion"],
        "image_name": f"{LIQUID}.jpg",
    },
    {"prompt_en": BEAR, "dimension": ["i2v_subject"], "image_name": f"{BEAR}.jpg"},
]
T2V = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a bird, façade", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "a bird, façade", "dimension": ["scene"]},
]


class Generator:
    """Clips that depend on the seeds of their batch, so that another batching would show."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.fail_at = fail_at

    def __call__(self, batch: list[Video]) -> torch.Tensor:
        if len(self.calls) == self.fail_at:
            raise RuntimeError("killed")
        self.calls.append([video.name for video in batch])
        shade = sum(video.seed for video in batch) % 200
        return torch.stack(
            [torch.full((3, 16, 16, 3), (shade + video.seed) % 256, dtype=torch.uint8) for video in batch]
        )


def suite(folder: Path, data: object, name: str = "suite.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def image(path: Path, size: tuple[int, int] = (32, 18)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    for ratio in ("1-1", "8-5", "7-4", "16-9"):
        for entry in I2V:
            image(tmp_path / "crop" / ratio / entry["image_name"])
    return tmp_path / "crop"


def test_vbench_i2v_finds_every_video_and_its_image(tmp_path: Path, crop: Path) -> None:
    videos = plan_videos("i2v", suite(tmp_path, I2V), images=crop, size=(576, 1024))
    out = tmp_path / "teacher"
    assert write_suite(videos, Generator(), out, fps=7.0, batch_size=4) == 15
    assert check_folder(out, videos).complete
    for dimension in ("i2v_background", "camera_motion", "i2v_subject", "temporal_flickering"):
        found = rules.standard(out, I2V, dimension)
        assert found and all(len(names) == 5 for names in found.values()), dimension
    assert len(rules.names_in(out)) == 15
    by_prompt = {video.prompt: video.image for video in videos}
    assert by_prompt == {e["prompt_en"]: rules.first_frame(crop, "16-9", e) for e in I2V}


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((64, 64), "1-1"), ((320, 512), "8-5"), ((480, 832), "7-4"), ((720, 1280), "16-9"), ((64, 32), "1-1")],
)
def test_the_nearest_ratio_is_taken(tmp_path: Path, crop: Path, size: tuple[int, int], ratio: str) -> None:
    video = plan_videos("i2v", suite(tmp_path, I2V), images=crop, size=size)[0]
    assert video.image is not None and video.image.parent.name == ratio


def test_vbench_t2v_gets_25_videos_where_it_filters_still_ones(tmp_path: Path) -> None:
    videos = plan_videos("t2v", suite(tmp_path, T2V))
    out = tmp_path / "model"
    write_suite(videos, Generator(), out, fps=8.0, batch_size=8)
    assert len(rules.names_in(out)) == 25 + 5  # two entries of one prompt share its files
    assert rules.still_candidates(out, T2V) == {"In a still frame, a stop sign": 25}
    for dimension in ("temporal_flickering", "color", "scene"):
        assert all(len(names) == 5 for names in rules.standard(out, T2V, dimension).values())
    named = suite(tmp_path, "a lake\n\n  a train \r\n", "temporal_flickering.txt")
    assert [v.name for v in plan_videos("t2v", named)][24:26] == ["a lake-24.mp4", "a train-0.mp4"]
    assert len(plan_videos("t2v", suite(tmp_path, "a lake\n", "all_dimension.txt"))) == 5


def test_prompts_of_ones_own_pair_with_images_named_after_them(tmp_path: Path) -> None:
    image(tmp_path / "images" / f"{BEAR}.PNG")
    image(tmp_path / "images" / "a lake.jpeg")
    prompts = suite(tmp_path, f"a lake\n{BEAR}\n", "prompts.txt")
    videos = plan_videos("i2v", prompts, images=tmp_path / "images", seeds=2)
    write_suite(videos, Generator(), tmp_path / "out", fps=8.0)
    pairs = rules.custom_pairs(tmp_path / "out", tmp_path / "images")
    assert pairs == {video.name: video.image for video in videos} and len(pairs) == 4


def test_a_killed_writer_goes_on_and_gives_the_same_bytes(tmp_path: Path, crop: Path) -> None:
    videos = plan_videos("i2v", suite(tmp_path, I2V), images=crop, size=(16, 16))
    whole, out = tmp_path / "whole", tmp_path / "out"
    write_suite(videos, Generator(), whole, fps=7.0, batch_size=4)
    with pytest.raises(RuntimeError):
        write_suite(videos, Generator(fail_at=2), out, fps=7.0, batch_size=4)
    assert len(rules.names_in(out)) == 8 and not check_folder(out, videos).extra
    (out / videos[1].name).unlink()
    again = Generator()
    assert write_suite(videos, again, out, fps=7.0, batch_size=4) == 8
    assert again.calls == [[v.name for v in videos[i : i + 4]] for i in (0, 8, 12)]
    assert all((out / v.name).read_bytes() == (whole / v.name).read_bytes() for v in videos)
    idle = Generator()
    assert write_suite(videos, idle, out, fps=7.0, batch_size=4) == 0 and not idle.calls


def test_a_half_written_video_never_lies_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("vdmini_core.metrics.vbench.write_mp4", torn)
    videos = plan_videos("t2v", suite(tmp_path, T2V))
    with pytest.raises(OSError, match="disk full"):
        write_suite(videos, Generator(), tmp_path / "out", fps=8.0)
    assert rules.names_in(tmp_path / "out") == []


def test_the_check_says_what_is_missing_and_what_is_in_the_way(tmp_path: Path) -> None:
    videos = plan_videos("t2v", suite(tmp_path, T2V[1:]))
    write_suite(videos, Generator(), tmp_path / "out", fps=8.0)
    (tmp_path / "out" / videos[3].name).unlink()
    (tmp_path / "out" / "notes.json").write_text("{}")
    found = check_folder(tmp_path / "out", videos)
    assert found.missing == (videos[3].name,) and found.extra == ("notes.json",) and not found.complete


def test_seeds_belong_to_prompt_and_index(tmp_path: Path) -> None:
    videos = plan_videos("t2v", suite(tmp_path, T2V))
    assert len({video.seed for video in videos}) == len(videos)
    turned = plan_videos("t2v", suite(tmp_path, T2V[::-1]))
    assert {v.name: v.seed for v in turned} == {v.name: v.seed for v in videos}
    other = plan_videos("t2v", suite(tmp_path, T2V), base_seed=1)
    assert not {v.seed for v in other} & {v.seed for v in videos}


@pytest.mark.parametrize("prompt", ["a cat/dog", "é" * 125, "x" * 250, "zero\0byte", "\ud800 alone"])
def test_a_name_no_file_can_have_is_refused_before_anything_is_made(tmp_path: Path, prompt: str) -> None:
    videos = plan_videos("t2v", suite(tmp_path, [{"prompt_en": prompt, "dimension": ["color"]}]))
    generate = Generator()
    with pytest.raises(DataError, match="cannot be a file name"):
        write_suite(videos, generate, tmp_path / "out", fps=8.0)
    assert not generate.calls
    longest = "x" * (255 - len(video_name("", 0)))
    fits = plan_videos("t2v", suite(tmp_path, [{"prompt_en": longest, "dimension": []}]), seeds=1)
    assert write_suite(fits, generate, tmp_path / "out", fps=8.0) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "no prompts"),
        ({"prompt_en": "a"}, "no prompts"),
        ("{", "cannot be read"),
        ([{"prompt_en": "a", "dimension": "color"}], "entry 0"),
        ([I2V[0], {"prompt_en": "b", "dimension": []}], "entry 1"),
        ([I2V[0] | {"image_name": "../a.jpg"}], "entry 0"),
        ([I2V[0], I2V[0] | {"image_name": f"{BEAR}.jpg"}], "two images"),
        ([I2V[0] | {"image_name": "gone.jpg"}], "1 first frames"),
    ],
)
def test_a_suite_that_cannot_be_used_says_why(tmp_path: Path, crop: Path, data: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        plan_videos("i2v", suite(tmp_path, data), images=crop, size=(16, 16))


def test_images_that_cannot_be_used_say_why(tmp_path: Path, crop: Path) -> None:
    prompts = suite(tmp_path, "a lake\n", "prompts.txt")
    with pytest.raises(DataError, match="several ratios"):
        plan_videos("i2v", prompts, images=crop)
    with pytest.raises(DataError, match="is not there"):
        plan_videos("i2v", prompts, images=tmp_path / "nowhere")
    for suffix in (".jpg", ".png"):
        image(tmp_path / "double" / f"a lake{suffix}")
    with pytest.raises(DataError, match="several images"):
        plan_videos("i2v", prompts, images=tmp_path / "double")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_first_frame(tmp_path / "text.jpg", 16, 16)
    image(tmp_path / "wide.png", (64, 16))
    assert read_first_frame(tmp_path / "wide.png", 16, 24).shape == (16, 24, 3)
