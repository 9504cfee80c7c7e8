"""The shipped teacher is the one its record describes, and still makes the recorded clip."""

from __future__ import annotations

import numpy as np
import pytest

from vdmini_core.artifacts import read_json, sha256_file
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.errors import ModelError
from vdmini_core.models.registry import family_of
from vdmini_core.teacher.architecture import call_arguments
from vdmini_core.teacher.export import RECORD, data_digest, load_exported, recorded_sample
from vdmini_core.teacher.measure import sample_clips
from vdmini_core.teacher.one_step import encode_clips, probe
from vdmini_core.teacher.vae_training import reconstruction_psnr

ROOT = bundled_teacher_path("mini")
TRAINING = read_json(ROOT / RECORD)


def test_weights_are_those_of_the_record() -> None:
    shipped = {p.relative_to(ROOT).as_posix(): sha256_file(p) for p in ROOT.rglob("*.safetensors")}
    assert shipped == TRAINING["weights_sha256"]
    assert len(shipped) == 3


def test_weights_fit_into_forty_megabytes() -> None:
    assert sum(p.stat().st_size for p in ROOT.rglob("*.safetensors")) < 40e6


def test_the_generator_still_draws_the_clips_it_was_trained_on() -> None:
    assert data_digest("mini") == TRAINING["data"]["digest"]


def test_the_recorded_clip_is_made_again() -> None:
    frames, record = recorded_sample(ROOT, "mini"), TRAINING["sample"]
    assert frames.shape == (8, 64, 64, 3)
    assert np.allclose(frames.mean(axis=(1, 2, 3)), record["mean_per_frame"], atol=record["tolerance"])
    assert np.allclose(frames.std(axis=(1, 2, 3)), record["std_per_frame"], atol=record["tolerance"])


def test_it_moves_and_its_deep_pairs_carry_the_motion() -> None:
    """Measured again on two test clips; the record has them all."""
    pipeline = load_exported(ROOT)
    clips = render_clips(ProceduralSpec(), split_seeds("test", 2, 0))
    found = probe(pipeline, encode_clips(pipeline, clips), count=2)
    assert found["ratio"] < 0.4, "the sample's error, divided by that of repeating the first frame"
    assert min(found["effect"]["D.2"], found["effect"]["U.1"]) > 0.05
    assert TRAINING["measured"]["mse_ratio"] < 0.4
    assert reconstruction_psnr(pipeline.vae, clips[:2]) > 30


def test_the_recipe_of_the_paper_can_be_cut_and_breaks_it() -> None:
    pipeline = load_exported(ROOT)
    clips = render_clips(ProceduralSpec(), split_seeds("test", 2, 0))
    family, teacher = family_of(pipeline), pipeline.unet
    errors = {}
    for name, unet in (("whole", teacher), ("cut", family.prune(teacher, family.paper_cut(teacher)))):
        pipeline.register_modules(unet=unet)
        made = sample_clips(pipeline, clips, call_arguments("mini"))
        errors[name] = float(((made - clips / 255.0) ** 2).mean())
    assert errors["cut"] > 2 * errors["whole"], "there is something to recover"


def test_call_arguments_travel_with_the_weights() -> None:
    assert read_json(ROOT / "vdmini.json") == call_arguments("mini")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="mini"):
        bundled_teacher_path("maxi")
