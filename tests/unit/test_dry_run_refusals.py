"""`run --dry-run` finds what a later stage would refuse, by the stages' own checks, and says the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tasks.dry_run import examine_run, is_complete
from tasks.dry_run_step import MISSING, Step
from tasks.monitor import QuietMonitor
from tasks.project import lay_out, preview_params
from tasks.stage import StageJob
from tasks.teacher import fetch_bundled
from vdmini_core.params import Params

TRANSFORMER = Path("transformer") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refused") / "proj"
    lay_out(root)
    return root


@pytest.fixture(scope="module")
def whole(project: Path) -> Path:
    """A Wan 2.1 directory that nothing is wrong with."""
    folder = project / "teachers" / "whole"
    params = preview_params(project, profile="nano-dit")
    fetch_bundled(StageJob(project, params, folder, folder, QuietMonitor()), folder)
    return folder


@pytest.fixture
def teacher(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "teacher"))


def examined(project: Path, *assignments: str, videos: Path | None = None) -> dict[str, Step]:
    params = preview_params(project, profile="nano-dit", videos=videos, assignments=assignments)
    return {step.stage: step for step in examine_run(project, params)}


def of_directory(project: Path, folder: Path) -> Step:
    step = examined(project, "teacher.source=path", f"teacher.path={folder}")["teacher"]
    assert "M parameters" in step.does  # of the configs, whatever the weights are
    return step


def test_a_whole_directory_is_ready(project: Path, teacher: Path) -> None:
    assert not of_directory(project, teacher).todo


def test_deleted_weights_are_missing(project: Path, teacher: Path) -> None:
    (teacher / TRANSFORMER).unlink()
    step = of_directory(project, teacher)
    assert step.state == MISSING and "has no weights" in step.todo and "download the whole" in step.todo


def test_pickles_are_no_weights(project: Path, teacher: Path) -> None:
    (teacher / TRANSFORMER).rename((teacher / TRANSFORMER).with_suffix(".bin"))
    step = of_directory(project, teacher)
    assert step.state == MISSING and "pickled weights only" in step.todo and "safetensors" in step.todo


def test_a_pipeline_of_two_transformers_is_refused(project: Path, teacher: Path) -> None:
    index = json.loads((teacher / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.9}
    (teacher / "model_index.json").write_text(json.dumps(index))
    step = of_directory(project, teacher)
    assert step.state == MISSING and "boundary_ratio and transformer_2" in step.todo
    assert "take a Wan 2.1 pipeline" in step.todo


@pytest.mark.parametrize(
    ("assignment", "way"),
    [("prepare.frames=6", "set prepare.frames to 9"), ("prepare.height=40", "set prepare.height to 32")],
)
def test_a_size_that_the_teacher_cannot_sample_is_refused(project: Path, assignment: str, way: str) -> None:
    steps = examined(project, assignment)
    assert steps["teacher"].state == MISSING and way in steps["teacher"].todo
    assert list(steps) == ["prepare", "teacher", "profile"]


def test_videos_without_captions_are_no_data_for_a_teacher_that_starts_from_text(
    project: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("A disc.")
    step = examined(project, videos=tmp_path)["prepare"]
    assert step.state == MISSING and "1 of 2 videos have no caption" in step.todo
    assert "--set prepare.captions=filename" in step.todo
    assert not examined(project, "prepare.captions=filename", videos=tmp_path)["prepare"].todo
    params = preview_params(project, profile="nano", videos=tmp_path)  # starts from first frames
    assert not examine_run(project, params)[0].todo
    (tmp_path / "captions.csv").write_text("no,header\n")
    assert "line 1 is no caption" in examine_run(project, params)[0].todo


def test_a_decoder_that_cannot_be_cut_is_refused(project: Path) -> None:
    step = examined(project, "plan.vae_decoder=paper")["plan"]
    assert step.state == MISSING and "only the stock temporal decoder" in step.todo
    assert "--set plan.vae_decoder=none" in step.todo


def test_a_gpu_that_is_not_here_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    step = examined(project, "base.device=cuda")["profile"]
    assert step.state == MISSING and "no GPU here" in step.todo and "base.device: auto or cpu" in step.todo
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not examined(project, "base.device=cuda")["profile"].todo


def test_nothing_is_ready_with_something_missing(project: Path) -> None:
    params: Params = preview_params(project, profile="nano-dit", assignments=("prepare.frames=6",))
    assert not is_complete(examine_run(project, params))
