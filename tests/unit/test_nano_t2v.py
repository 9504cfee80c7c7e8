"""The text-to-video teacher made on the spot, and what starts from prompts: `generate`, serving, VBench."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks import vbench
from tasks.monitor import QuietMonitor
from tasks.prune import verify_reload
from tasks.serving_model import VideoStudent
from tasks.stage import StageJob
from tasks.teacher import run as make_teacher
from vdmini_core.artifacts import tree_digests
from vdmini_core.cli_generate import generate
from vdmini_core.data.clips import SPLITS
from vdmini_core.data.prompts import Caption, save_captions
from vdmini_core.data.video import read_video
from vdmini_core.errors import DataError, ModelError
from vdmini_core.models.registry import (
    default_settings,
    family_of,
    load_pipeline,
    load_settings,
    save_pipeline,
)
from vdmini_core.params import parse_params
from vdmini_core.teacher.text_architecture import build_text_pipeline
from vdmini_core.teacher.tokens import caption_tokenizer, learn_merges

TEXT = (
    "A mint disc and a pink square move down and left together with a brick background, which grows brighter."
)


def teacher_job(root: Path, prompt: str | None = TEXT) -> StageJob:
    for folder in ("artifacts/prepare", "out", "work"):
        (root / folder).mkdir(parents=True)
    for split in SPLITS:
        save_captions(root / "artifacts" / "prepare", split, [Caption("dog.mp4", prompt)])
    params = parse_params(
        {"prepare": {"frames": 4, "height": 32, "width": 32}, "teacher": {"bundled": "nano-t2v"}}
    )
    return StageJob(root, params, root / "out", root / "work", QuietMonitor())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = teacher_job(tmp_path_factory.mktemp("teacher"))
    assert make_teacher(job).metrics["family"] == "videocrafter"
    return job.out / "pipeline"


@pytest.fixture(scope="module")
def served(teacher: Path) -> VideoStudent:
    model = VideoStudent()
    model.load_context(SimpleNamespace(artifacts={"pipeline": str(teacher)}))
    return model


def test_the_tokenizer_knows_captions_and_takes_any_text() -> None:
    tokenizer = caption_tokenizer()
    words = tokenizer.convert_ids_to_tokens(tokenizer(TEXT).input_ids)
    assert [word.removesuffix("</w>") for word in words[1:-1]] == TEXT.lower().replace(",", " ,").replace(
        ".", " ."
    ).split()
    assert tokenizer.decode(tokenizer("Ein Hündchen, 雪!").input_ids, skip_special_tokens=True)
    assert tokenizer.get_vocab() == caption_tokenizer().get_vocab()
    # ab is as frequent as bc: the first by the alphabet; then abc</w>.
    assert learn_merges(["abc abc d"], 9) == [("a", "b"), ("ab", "c</w>")]


def test_the_same_seed_gives_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    again = teacher_job(tmp_path)
    make_teacher(again)
    assert tree_digests(again.out / "pipeline") == tree_digests(teacher)


def test_a_student_without_guidance_embeddings_is_checked_after_surgery(tmp_path: Path) -> None:
    pipeline = build_text_pipeline(1, "videocrafter2")
    settings = default_settings(dict(pipeline.unet.config), dict(pipeline.vae.config))
    settings = replace(settings, frames=2, height=32, width=32)
    save_pipeline(pipeline, tmp_path, settings)
    assert settings.rescaled_schedule and load_settings(tmp_path, pipeline) == settings
    pipeline = load_pipeline(tmp_path)
    verify_reload(pipeline.unet, pipeline.vae, tmp_path, "unet", settings)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias += 1e-3
    with pytest.raises(ModelError, match="changed when it was written"):
        verify_reload(pipeline.unet, pipeline.vae, tmp_path, "unet", settings)


def test_a_teacher_that_reads_refuses_videos_without_captions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no caption(.|\n)*dog\.mp4(.|\n)*prepare\.captions: filename"):
        make_teacher(teacher_job(tmp_path, prompt=None))


def test_prompts_and_seeds_make_the_video(teacher: Path, tmp_path: Path) -> None:
    videos = []
    for number, (prompt, seed) in enumerate([(TEXT, 1), (TEXT, 1), ("An orange disc.", 1), (TEXT, 2)]):
        out = tmp_path / f"{number}.mp4"
        generate(teacher, out, prompt=prompt, seed=seed, frames=3, steps=1, guidance=5.0)
        videos.append(out.read_bytes())
    assert videos[0] == videos[1] and len(set(videos)) == 3
    assert read_video(tmp_path / "0.mp4")[0].shape == (3, 32, 32, 3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": Path("a.png")}, "takes no --image(.|\n)*--prompt TEXT"),
        ({}, "needs --prompt"),
        ({"prompt": "  "}, "needs --prompt"),
    ],
)
def test_a_text_model_says_what_it_starts_from(teacher: Path, tmp_path: Path, given, told) -> None:
    with pytest.raises(ModelError, match=told):
        generate(teacher, tmp_path / "a.mp4", **given)


def test_a_served_model_answers_prompts(served: VideoStudent) -> None:
    one = served.predict(None, TEXT, {"seed": 3})
    assert one.shape == (4, 32, 32, 3) and one.dtype == np.uint8
    same, other = served.predict(None, [TEXT, "A red disc."], {"seed": 3}).astype(int)
    # beside another it is the same but for rounding: some CPUs add up a batch of two in another order
    assert np.abs(same - one).max() <= 1 < np.abs(other - one).max()
    table = pd.DataFrame({"prompt": [TEXT, "A red disc."], "seed": [3, 4]})
    answers = served.predict(None, table)
    assert [base64.b64decode(answer["video"])[4:8] for answer in answers] == [b"ftyp"] * 2
    with pytest.raises(DataError, match="column `prompt`"):
        served.predict(None, {"image": "aGk="})
    with pytest.raises(DataError, match="starts from a prompt"):
        served.predict(None, {"prompt": " "})


def test_vbench_from_text(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.txt").write_text("a red square\na blue disc\n")
    pipeline, root = load_pipeline(teacher), tmp_path
    settings = load_settings(teacher, pipeline)
    for stage in ("teacher", "distill"):
        (
            root / "artifacts" / stage / vbench.MODELS["teacher" if stage == "teacher" else "recovered"][1]
        ).mkdir(parents=True)
    (root / "out").mkdir()
    wanted = {"suite": "suite.txt", "kind": "t2v", "seeds": 1}
    job = StageJob(
        root, parse_params({"evaluate": {"vbench": wanted}}), root / "out", root / "work", QuietMonitor()
    )
    both = {"teacher": pipeline, "recovered": pipeline}
    found = vbench.hand_over(job, both, family_of(pipeline), settings)["vbench"]
    assert (found["kind"], found["suite"]["videos"], found["suite"]["image_folder"]) == ("t2v", 2, None)
    names = {path.name for path in (root / "out" / "vbench" / "teacher").iterdir()}
    assert names == {"a red square-0.mp4", "a blue disc-0.mp4"}
    Image.new("RGB", (32, 32)).save(root / "a red square.png")
    with pytest.raises(ModelError, match="start from prompts"):
        wanted = {"suite": "suite.txt", "kind": "i2v", "images": "."}
        job = StageJob(
            root, parse_params({"evaluate": {"vbench": wanted}}), root / "out", root, QuietMonitor()
        )
        vbench.hand_over(job, both, family_of(pipeline), settings)
