"""Inspection of the real full-size architecture and of directories, without weights."""

from __future__ import annotations

import pytest
import svd_toys as toys

from vdmini_core.errors import ModelError
from vdmini_core.models.inspect import inspect_model, load_architecture
from vdmini_core.models.registry import save_pipeline
from vdmini_core.params import PlanParams
from vdmini_core.pruning.recipes import make_plan

TERA = 1e12
# paper.md: one pass at 14 frames of 576x1024
BLOCKS = {
    "D.0": 7.04, "D.1": 4.26, "D.2": 3.92, "D.3": 0.32, "M": 0.65,
    "U.0": 0.93, "U.1": 7.64, "U.2": 8.42, "U.3": 11.61,
}  # fmt: skip


def test_stable_video_diffusion_has_its_known_size():
    report = inspect_model("stable-video-diffusion")
    assert report["denoiser"]["parameters"] == 1_524_623_082
    assert report["denoiser"]["flops"] / TERA == pytest.approx(44.80, rel=1e-3)
    assert report["vae_decoder"]["parameters"] / 1e6 == pytest.approx(63.58, abs=0.01)
    assert report["vae_decoder"]["flops"] / TERA == pytest.approx(97.2, rel=1e-3)
    units = {unit["name"]: unit for unit in report["units"]}
    for name, tera in BLOCKS.items():
        assert units[name]["flops"] / TERA == pytest.approx(tera, rel=0.01, abs=0.005)


def test_paper_plan_of_stable_video_diffusion():
    family, unet, _, settings = load_architecture("stable-video-diffusion")
    plan = make_plan(PlanParams(recipe="paper"), family, unet, [], None, settings, 0)
    assert plan.removed == toys.PAPER
    assert plan.expected_params / 1e6 == pytest.approx(939.884, abs=0.001)
    assert plan.expected_flops / TERA == pytest.approx(30.97, rel=1e-3)
    assert plan.teacher_fingerprint.startswith("architecture:")
    without_mid = make_plan(
        PlanParams(recipe="manual", units=("M", *toys.SECOND_PAIRS)), family, unet, [], None, settings, 0
    )
    assert "939.884 M" in plan.describe()
    assert without_mid.expected_params > plan.expected_params


def test_the_longer_model_is_the_same_network_at_25_frames() -> None:
    _, shorter, _, of_14 = load_architecture("stable-video-diffusion")
    _, longer, _, of_25 = load_architecture("stable-video-diffusion-xt")
    assert (of_14.frames, of_25.frames) == (14, 25) and of_25.latent_size == of_14.latent_size
    assert {n: p.shape for n, p in longer.named_parameters()} == {
        n: p.shape for n, p in shorter.named_parameters()
    }


def test_a_directory_is_inspected_from_its_configs(tmp_path):
    pipeline = toys.tiny_pipeline()
    pipeline.register_modules(unet=toys.FAMILY.prune(pipeline.unet, toys.PAPER))
    save_pipeline(pipeline, tmp_path / "student", toys.SETTINGS)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    report = inspect_model(tmp_path / "student")
    assert report["denoiser"]["class"] == "UNetSpatioTemporalPrunedModel"
    assert report["denoiser"]["parameters"] == sum(p.numel() for p in pipeline.unet.parameters())
    assert report["settings"]["height"] == 16
    assert "M" not in {unit["name"] for unit in report["units"]}


def test_unknown_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="stable-video-diffusion"):
        inspect_model("stable-vidoe-diffusion")
    with pytest.raises(ModelError, match=r"model_index\.json"):
        inspect_model(tmp_path)


def test_a_part_of_a_pipeline_is_told_from_a_pipeline(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=f"a part of a pipeline(?s:.)*give the pipeline it is in: {tmp_path}"
    ):
        load_architecture(tmp_path / "unet")
