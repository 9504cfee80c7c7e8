"""Captions: true of what is drawn, found beside a user's videos, and asked for only where they are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vdmini_core.data.captions import read_captions, scene_caption, serves_as_caption
from vdmini_core.data.procedural import ProceduralSpec, draw_scene, render_clip
from vdmini_core.data.prompts import Caption, load_captions, load_prompts, save_captions
from vdmini_core.data.scene import Background, Scene, Sprite
from vdmini_core.errors import DataError

GROUND = Background(1, 32.0, (0.0, 0.0), np.zeros((2, 3)), heading=2, speed=1, zoom=0, brightness=0, corner=0)
DISC = Sprite(0, 8.0, (20.0, 20.0), 0.0, np.zeros((2, 3)), colour_id=0, drift=(0.0, 2.0))


def test_a_caption_tells_what_is_drawn() -> None:
    both = Scene(GROUND, (DISC, replace(DISC, shape=2, colour_id=3)))
    assert (
        scene_caption(Scene(GROUND, (DISC,))) == "A red disc moves down together with a striped background."
    )
    brighter = replace(GROUND, brightness=1)
    assert scene_caption(replace(both, background=brighter)) == (
        "A red disc and a lime triangle move down together with a striped background, which grows brighter."
    )
    alone = replace(DISC, drift=None, heading=np.pi, shape=3, colour_id=7)
    hard = replace(GROUND, heading=5, speed=2, zoom=2, brightness=2)
    assert scene_caption(Scene(hard, (alone,))) == (
        "An azure diamond setting off left in front of a striped background that moves quickly up and left "
        "and recedes and grows darker."
    )


@pytest.mark.parametrize("level", ["easy", "normal", "hard"])
def test_the_direction_is_that_of_the_known_truth(level) -> None:
    spec = ProceduralSpec(frames=4, height=32, width=32, level=level)
    seen = set()
    for seed in range(40):
        caption, truth = scene_caption(draw_scene(spec, seed)), render_clip(spec, seed).truth
        told = caption.split("background that")[-1] if level == "hard" else caption.split("together")[0]
        x, y = truth["background_velocity"]
        assert (" right" in told, " left" in told) == (x > 1e-6, x < -1e-6), caption
        assert (" down" in told, " up" in told) == (y > 1e-6, y < -1e-6), caption
        assert ("brighter" in caption) == (truth["brightness_rate"] > 0)
        seen.add(caption)
    assert len(seen) > 15


def test_captions_lie_beside_the_videos_or_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "dog.txt").write_text("\ufeffA dog\n runs\t in <b>snow</b>. \n", encoding="utf-8")
    (tmp_path / "captions.csv").write_text('prompt,file\n"A cat, asleep",cat.mp4\nnot this,sub/dog.mp4\n')
    names = ["cat.mp4", "sub/dog.mp4", "red_fox-02.webm"]
    found = read_captions(tmp_path, names, "files")
    assert found == {"cat.mp4": "A cat, asleep", "sub/dog.mp4": "A dog runs in <b>snow</b>."}
    assert read_captions(tmp_path, names, "filename") == found | {"red_fox-02.webm": "red fox 02"}
    assert serves_as_caption("sub/dog.txt", names) and serves_as_caption("captions.csv", names)
    assert not serves_as_caption("notes.txt", names) and not serves_as_caption("sub/captions.csv", names)
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text('\n{"file": "cat.mp4", "prompt": "Eine müde Katze"}\n')
    assert read_captions(tmp_path, ["cat.mp4"], "files") == {"cat.mp4": "Eine müde Katze"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("captions.csv", "video,text\na.mp4,b\n", "a header"),
        ("captions.csv", "file,prompt\na.mp4,b\na.mp4,c\n", "line 3.*\n.*one line for each video"),
        ("captions.csv", "file,prompt\na.mp4\n", "both text"),
        ("captions.jsonl", '{"file": "a.mp4", "prompt": 3}\n', "both text"),
        ("captions.jsonl", "{", "line 1 is no caption"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("captions.csv", "file,prompt\na.mp4," + "b" * 140_000, "line 1.*\n.*fewer than 131,072"),
        ("captions.csv", "file,prompt\na.mp4,b\n" + "c" * 140_000, "is no caption"),
        ("captions.csv", "c" * 140_000 + ",file,prompt\na.mp4,b\n", "is no caption"),
    ],
)
def test_bad_captions_are_named(tmp_path: Path, name, text, told) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=told):
        read_captions(tmp_path, ["a.mp4"], "files")


def test_prompts_are_stored_in_the_clips_order_and_missing_ones_are_named(tmp_path: Path) -> None:
    captions = [Caption("ü.mp4", "Ein “Fuchs”"), Caption("b.mp4", None), Caption("b.mp4", None)]
    save_captions(tmp_path, "train", captions)
    assert "Ein “Fuchs”" in (tmp_path / "prompts-train.jsonl").read_text(encoding="utf-8")
    assert load_captions(tmp_path, "train") == captions
    assert load_prompts(tmp_path, "train", 1) == ("Ein “Fuchs”",)
    with pytest.raises(DataError, match=r"1 of the train videos have no caption(.|\n)*b\.mp4(.|\n)*filename"):
        load_prompts(tmp_path, "train")
    with pytest.raises(DataError, match="run `vdmini prepare`"):
        load_prompts(tmp_path, "test")


def test_a_text_beside_a_video_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as handle:
        handle.truncate(65 * 2**20)  # takes no room on the disk; 50 GB would do, too
    with pytest.raises(DataError, match=r"cannot be read\n.*64 MiB at most"):
        read_captions(tmp_path, ["a.mp4"], "files")
