"""Own videos and an own teacher pass through the same door, and every file found is accounted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.flows.conftest import make_project, vdmini
from vdmini_core.artifacts import read_json
from vdmini_core.data.procedural import ProceduralSpec, render_clip
from vdmini_core.data.video import write_mp4
from vdmini_core.models.registry import load_pipeline, save_pipeline
from vdmini_core.teacher.architecture import ARCHITECTURES, build_from

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_server")]
GOOD = ("one.mp4", "näch ste.mp4", "sub/two.mp4", "sub/three.mp4")


def make_videos(folder: Path) -> None:
    """Four films that move, one that does not, one that is none, and a text file."""
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(GOOD):
        clips = [
            render_clip(ProceduralSpec(frames=24, height=48, width=64), 100 * index + k).frames
            for k in range(3)
        ]
        write_mp4(folder / name, np.concatenate(clips), 8.0)
    write_mp4(folder / "still.mp4", np.full((30, 48, 64, 3), 90, np.uint8), 8.0)
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 and nothing else")
    (folder / "notes.txt").write_text("not a video")


def test_own_teacher_and_own_videos_run_the_whole_story(tmp_path: Path) -> None:
    make_videos(tmp_path / "films")
    wide = replace(ARCHITECTURES["nano"], vae_widths=(64, 64))  # a VAE that can be cut
    save_pipeline(build_from(wide, 7), tmp_path / "teacher", None)
    root = make_project(
        tmp_path / "proj",
        *("profile.granularity=block", "sampling.steps=2"),
        *("plan.vae_decoder=paper", "distill.decoder.steps=4"),
    )
    done = vdmini(
        root,
        *("run", "--videos", str(tmp_path / "films"), "--json"),
        *("--set", "teacher.source=path", "--set", f"teacher.path={tmp_path / 'teacher'}"),
    )
    summary = json.loads(done.stdout)
    unused = {item["path"]: item["reason"] for item in summary["unused_videos"]}
    assert set(unused) == {"still.mp4", "broken.mp4"}
    assert all(unused.values())
    decoder = read_json(root / "artifacts" / "plan" / "vae_decoder.json")
    metrics = read_json(root / "artifacts" / "evaluate" / "metrics.json")
    assert metrics["recovered"]["vae_decoder_flops"] == decoder["expected_flops"]
    assert metrics["teacher"]["vae_decoder_params"] == decoder["teacher_params"] > decoder["expected_params"]
    losses = (root / "artifacts" / "distill" / "losses-vae-decoder.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in losses] == [1, 2, 3, 4]
    students = [load_pipeline(root / "artifacts" / stage / "student").vae for stage in ("prune", "distill")]
    assert {type(vae).__name__ for vae in students} == {"AutoencoderKLTemporalPrunedDecoder"}
    weights = [vae.decoder.conv_in.weight for vae in students]
    assert not weights[0].equal(weights[1])  # it learned
    sources = read_json(root / "artifacts" / "prepare" / "sources.json")
    used = {item["path"] for item in sources if item["status"] == "used"}
    assert used == set(GOOD)
    assert len(sources) == len({item["path"] for item in sources}) == len(GOOD) + 3
    page = (root / "artifacts" / "report" / "index.html").read_text(encoding="utf-8")
    assert "broken.mp4" in page
    assert summary["registered"]["name"] == "vdmini-nano"


def test_a_folder_without_one_usable_video_says_why(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "broken.mp4").write_bytes(b"junk")
    root = make_project(tmp_path / "proj")
    done = vdmini(root, "prepare", "--videos", str(tmp_path / "films"), check=False)
    assert done.returncode == 1
    assert "broken.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / "artifacts" / "prepare").exists()
