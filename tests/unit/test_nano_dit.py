"""The video transformer made on the spot, through stages that look at its make: teacher, times, surgery."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.monitor import QuietMonitor
from tasks.profile import measure_times
from tasks.prune import verify_reload
from tasks.stage import StageJob
from tasks.teacher import run as make_teacher
from vdmini_core.artifacts import tree_digests
from vdmini_core.cli_generate import generate
from vdmini_core.data.clips import SPLITS
from vdmini_core.data.prompts import Caption, save_captions
from vdmini_core.errors import ModelError
from vdmini_core.models.registry import family_of, load_pipeline, load_settings, save_pipeline
from vdmini_core.params import parse_params
from vdmini_core.teacher.tokens import word_tokenizer

TEXT = "A mint disc and a pink square move down."


def teacher_job(root: Path, frames: int = 5) -> StageJob:
    for folder in ("artifacts/prepare", "out", "work"):
        (root / folder).mkdir(parents=True)
    for split in SPLITS:
        save_captions(root / "artifacts" / "prepare", split, [Caption("dog.mp4", TEXT)])
    params = parse_params(
        {"prepare": {"frames": frames, "height": 32, "width": 32}, "teacher": {"bundled": "nano-dit"}}
    )
    return StageJob(root, params, root / "out", root / "work", QuietMonitor())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = teacher_job(tmp_path_factory.mktemp("teacher"))
    made = make_teacher(job).metrics
    assert (made["family"], made["units"], made["steps"]) == ("wan", 6, 2)
    return job.out / "pipeline"


def test_the_same_seed_gives_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    again = teacher_job(tmp_path)
    make_teacher(again)
    assert tree_digests(again.out / "pipeline") == tree_digests(teacher)


def test_a_number_of_frames_between_latent_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"1 more than a multiple of 4(.|\n)*set prepare\.frames to 9"):
        make_teacher(teacher_job(tmp_path, frames=6))


def test_generating_a_number_of_frames_between_latent_frames_is_refused(
    teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"--frames does not fit(.|\n)*found: 6(.|\n)*set --frames to 9"):
        generate(teacher, tmp_path / "a.mp4", prompt=TEXT, frames=6)
    assert not (tmp_path / "a.mp4").exists()


def test_units_have_times_and_a_written_student_answers_as_before(teacher: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(teacher)
    family, settings = family_of(pipeline), load_settings(teacher, pipeline)
    units = family.units(pipeline.transformer, settings)
    times = measure_times(pipeline, units, settings, 1)
    assert set(times["unit_ms"]) == {unit.name for unit in units} and min(times["unit_ms"].values()) > 0
    student = family.prune(pipeline.transformer, ["layer.1", "layer.4"])
    pipeline.register_modules(transformer=student)
    save_pipeline(pipeline, tmp_path, settings)
    verify_reload(student, pipeline.vae, tmp_path, "transformer", settings)
    with torch.no_grad():
        next(student.parameters()).add_(1)
    with pytest.raises(ModelError, match="changed when it was written"):
        verify_reload(student, pipeline.vae, tmp_path, "transformer", settings)


def test_the_tokenizer_knows_captions_and_spells_the_rest() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.decode(tokenizer(TEXT.lower()).input_ids, skip_special_tokens=True) == TEXT.lower()
    assert tokenizer.unk_token_id not in tokenizer("zebra").input_ids
    assert tokenizer.get_vocab() == word_tokenizer().get_vocab()
