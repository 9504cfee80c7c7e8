"""Sampling in half precision: every family, from a pipeline directory that stays in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.test_cogvideox_ltx import cogvideox, ltx
from vdmini_core.cli_generate import read_image
from vdmini_core.errors import DataError, ModelError
from vdmini_core.models.calls import example_call
from vdmini_core.models.generate import generate
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.precision import choose, dtype_of
from vdmini_core.models.registry import family_of, load_pipeline, pipeline_settings, save_pipeline
from vdmini_core.teacher.architecture import build_pipeline
from vdmini_core.teacher.dit_architecture import build_dit_pipeline
from vdmini_core.teacher.text_architecture import build_text_pipeline

SMALL = {"height": 16, "width": 16, "steps": 1, "guidance": 2.0, "decode_chunk_size": 2}
FRAMES = {"wan": 5, "cogvideox": 9, "ltx-video": 9}
PIPELINES: dict[str, Any] = {
    "svd": lambda: build_pipeline("nano", 0),
    "videocrafter": lambda: build_text_pipeline(0),
    "wan": lambda: build_dit_pipeline(0),
    "cogvideox": cogvideox,
    "ltx-video": ltx,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_seed_means_the_same_clip_in_half_precision(name: str, tmp_path: Path) -> None:
    save_pipeline(PIPELINES[name](), tmp_path / "teacher", None)
    films, noise = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = load_pipeline(tmp_path / "teacher", dtype=dtype)
        family = family_of(pipeline)
        denoiser: nn.Module = getattr(pipeline, family.denoiser_name)
        settings = replace(pipeline_settings(pipeline), **SMALL, frames=FRAMES.get(name, 2))
        if name == "ltx-video":  # its encoder halves more often, its scheduler has no single step
            settings = replace(settings, height=64, width=64, steps=2)
        first = torch.randint(
            0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        images = "first_frames" in family.needs
        inputs = ClipInputs(first if images else None, None if images else ("A red disc moves up.",))
        noise[dtype] = family.noise(denoiser, settings, [7])
        films[dtype] = generate(pipeline, inputs, [7], settings)
        conditions = family.conditions(pipeline, inputs, settings, 7)
        sigma = family.training_sigmas(replace(settings, steps=1), 1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            clean = family.denoise(denoiser, noise[dtype], sigma, conditions)
            called = (
                clean if name == "cogvideox" else example_call(denoiser, settings)(denoiser)
            )  # tiny: fewer tokens
        if dtype == torch.bfloat16:
            cut = next(unit.name for unit in family.units(denoiser, settings) if unit.removable)
            student = family.prune(denoiser, (cut,))
            assert dtype_of(student) == dtype
            generate(pipeline, inputs, [7], settings, denoiser=student)
        latents = family.encode_clips(pipeline, films[dtype])
        assert dtype_of(denoiser) == clean.dtype == called.dtype == dtype
        assert bool(clean.isfinite().all()) and bool(latents.isfinite().all())
    full, half = films.values()
    assert torch.equal(noise[torch.bfloat16], noise[torch.float32].bfloat16())
    assert (full.float() - half.float()).abs().mean() < 4  # of 255
    assert not torch.equal(full, half)


def test_float16_holds_the_highest_noise_level_of_svd() -> None:
    """700 squared is beyond float16: an infinite divisor would leave nothing of the answer."""
    pipeline = build_pipeline("nano", 0)
    family, settings = (
        family_of(pipeline),
        replace(pipeline_settings(pipeline), **SMALL, frames=2, noise_aug_strength=0.0),
    )
    first = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    given = family.conditions(pipeline, ClipInputs(first), settings, 0)
    sigma = torch.tensor([700.0])
    with torch.no_grad():
        noise = family.noise(pipeline.unet, settings, [0]) * 700
        full = family.denoise(pipeline.unet, noise, sigma, given)
        half = family.denoise(pipeline.unet.half(), noise.half(), sigma, given.to("cpu", torch.float16))
    assert float((half.float() - full).abs().mean()) < 0.1 * float(full.abs().mean())


def test_where_and_in_what_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose() == ("cpu", torch.float32)
    assert choose("cpu", "bf16") == ("cpu", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose() == ("cuda", torch.bfloat16)
    assert choose("cpu") == ("cpu", torch.float32)
    with pytest.raises(ModelError, match="auto, fp32, bf16, fp16"):
        choose("cpu", "int8")


def test_an_image_that_is_not_there_is_told_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(tmp_path / "torn.png")
