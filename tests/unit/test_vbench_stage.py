"""VBench within `evaluate`: folders of both models, made once, and results that come later."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vbench_rules as rules
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from tasks import vbench
from tasks.evaluate import _headline
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from tasks.tracking import flatten
from vdmini_core.artifacts import read_json, tree_digests
from vdmini_core.errors import DataError, ModelError, ParamsError
from vdmini_core.models.registry import family_of, load_settings, save_pipeline
from vdmini_core.params import parse_params
from vdmini_core.teacher.architecture import build_pipeline

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vbench"
SUITE = [
    {"prompt_en": prompt, "dimension": [dimension], "image_name": "a red square.jpg"}
    for prompt, dimension in (
        ("a red square", "i2v_subject"),
        ("a red square, camera static", "camera_motion"),
    )
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("models")
    pipeline = build_pipeline("nano", seed=0)
    save_pipeline(pipeline, folder / "artifacts" / "teacher" / "pipeline", None)
    student = copy.deepcopy(pipeline)
    with torch.no_grad():
        for parameter in student.unet.parameters():
            parameter.mul_(1.1)
    save_pipeline(student, folder / "artifacts" / "distill" / "student", None)
    settings = load_settings(folder / "artifacts" / "teacher" / "pipeline", pipeline)
    settings = replace(settings, frames=2, height=32, width=32, steps=1)
    return SimpleNamespace(folder=folder, pipeline=pipeline, student=student.unet, settings=settings)


@pytest.fixture
def root(models: SimpleNamespace, tmp_path: Path) -> Path:
    root = tmp_path / "proj"
    shutil.copytree(models.folder, root)
    (root / "suite.json").write_text(json.dumps(SUITE))
    (root / "crop" / "1-1").mkdir(parents=True)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(root / "crop" / "1-1" / "a red square.jpg")
    (root / "vbench").mkdir()
    return root


def hand_over(
    root: Path, models: SimpleNamespace, **wanted: Any
) -> tuple[dict[str, Any], Path, QuietMonitor]:
    params = {"vbench": {"suite": "suite.json", "images": "crop", "seeds": 2, **wanted}}
    out = root / "artifacts" / "evaluate"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    job = StageJob(
        root,
        parse_params({"evaluate": params, "sampling": {"batch_size": 3}}),
        out,
        root / "work",
        QuietMonitor(),
    )
    recovered = StableVideoDiffusionPipeline(**{**models.pipeline.components, "unet": models.student})
    recovered.set_progress_bar_config(disable=True)
    pipelines = {"teacher": models.pipeline, "recovered": recovered}
    found = vbench.hand_over(job, pipelines, family_of(models.pipeline), models.settings)
    return found, out / "vbench", job.monitor


def test_off_by_default(root: Path, models: SimpleNamespace) -> None:
    found, out, _ = hand_over(root, models, suite=None, images=None)
    assert found == {} and not out.exists() and not (root / ".vdmini").exists()


def test_both_models_get_a_folder_that_vbench_accepts(root: Path, models: SimpleNamespace) -> None:
    found, out, _ = hand_over(root, models)
    for model in ("teacher", "recovered"):
        for dimension in ("i2v_subject", "camera_motion"):
            assert all(len(names) == 2 for names in rules.standard(out / model, SUITE, dimension).values())
        assert len(rules.names_in(out / model)) == 4
    one = "a red square-0.mp4"
    assert (out / "teacher" / one).read_bytes() != (out / "recovered" / one).read_bytes()
    assert set(read_json(out / "seeds.json")) == set(rules.names_in(out / "teacher"))
    told = found["vbench"]["suite"]
    assert (told["videos"], told["image_folder"], told["size"]) == (4, "1-1", [32, 32])
    assert found["vbench"]["scores"] == {}


def test_results_come_later_and_nothing_is_generated_again(
    root: Path, models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, out, _ = hand_over(root, models)
    before = tree_digests(out)
    shutil.copytree(FIXTURES / "i2v", root / "vbench" / "teacher")

    def no(*_: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(vbench, "generate", no)
    found, out, monitor = hand_over(root, models)
    assert tree_digests(out) == before
    assert len(monitor.notes) == 2 and "4 of 4 videos were there" in monitor.notes[0]
    assert found["vbench"]["suite"] == first["vbench"]["suite"]
    assert set(found["vbench"]["scores"]) == {"teacher"}
    rows = ("teacher", "pruned", "recovered", "repeat_first_frame", "real")
    metrics = {row: {} for row in rows} | {"params_ratio": 1.0, "flops_ratio": 1.0, "clips": 2} | found
    logged = flatten(_headline(metrics))
    assert logged["vbench.teacher.total_score"] == pytest.approx(0.8409346503)
    assert logged["vbench.teacher.i2v_subject"] == 0.9412


def test_other_weights_images_or_settings_make_new_videos(root: Path, models: SimpleNamespace) -> None:
    _, out, _ = hand_over(root, models)
    before = tree_digests(out)
    stores = {path.name for path in (root / ".vdmini" / "vbench").iterdir()}
    assert len(stores) == 2
    (root / "artifacts" / "distill" / "student" / "extra.json").write_text("{}")
    _, out, monitor = hand_over(root, models)
    assert tree_digests(out) == before and len(monitor.notes) == 1  # the teacher's alone were there
    Image.new("RGB", (40, 40), (20, 30, 200)).save(root / "crop" / "1-1" / "a red square.jpg")
    _, out, monitor = hand_over(root, models)
    after = tree_digests(out)
    assert not monitor.notes and after.keys() == before.keys()
    assert all((after[name] == before[name]) == (name == "seeds.json") for name in after)
    left = {path.name for path in (root / ".vdmini" / "vbench").iterdir()}
    assert len(left) == 2 and not left & stores
    shutil.copytree(FIXTURES / "i2v", root / "vbench" / "recovered")
    (root / "artifacts" / "distill" / "student" / "extra.json").write_text("[]")
    _, _, monitor = hand_over(root, models)
    assert "recovered: 4 videos are newer than its results" in monitor.notes[-1]


def test_what_cannot_be_done_is_said(root: Path, models: SimpleNamespace) -> None:
    with pytest.raises(ModelError, match="`svd` start from an image"):
        hand_over(root, models, kind="t2v", images=None)
    with pytest.raises(ParamsError, match="needs `images`"):
        hand_over(root, models, images=None)
    (root / "vbench" / "recovered").mkdir()
    (root / "vbench" / "recovered" / "a.json").write_text('{"scene": [0.5, []]}')
    with pytest.raises(DataError, match="scene"):
        hand_over(root, models)
    scores, _, _ = hand_over(root, models, kind="t2v", suite=None, images=None)
    assert scores["vbench"]["scores"] == {"recovered": {"scene": 0.5}}
