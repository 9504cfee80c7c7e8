"""How many passes a step of sampling takes, as the families say it, is how many `sample` makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.test_flow_families import hunyuan
from vdmini_core.models.base import Conditions
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.registry import family_of, pipeline_settings
from vdmini_core.teacher.architecture import build_pipeline
from vdmini_core.teacher.dit_architecture import build_dit_pipeline
from vdmini_core.teacher.text_architecture import build_text_pipeline

STEPS = 2


def pipeline_of(kind: str) -> Any:
    if kind == "hunyuan-video":
        return hunyuan()
    if kind == "stable-video-diffusion":
        return build_pipeline("nano", 0)
    return build_dit_pipeline(0) if kind == "wan" else build_text_pipeline(0, kind)


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        ("stable-video-diffusion", 2),
        ("videocrafter2", 2),
        ("t2v-turbo-v2", 1),
        ("wan", 2),
        ("hunyuan-video", 1),
    ],
)
def test_a_family_counts_the_passes_that_its_sampling_makes(kind: str, passes: int) -> None:
    pipeline = pipeline_of(kind)
    family = family_of(pipeline)
    denoiser = getattr(pipeline, family.denoiser_name)
    settings = replace(pipeline_settings(pipeline), frames=5, height=32, width=32, steps=STEPS, guidance=3.0)
    if kind == "hunyuan-video":  # tiny, without text encoders
        text = {"text": torch.zeros(1, 3, 8), "pooled": torch.zeros(1, 8), "text_mask": torch.ones(1, 3)}
        given = Conditions(text | {"guidance": torch.full((1,), 3.0)})
    else:
        frame = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        given = family.conditions(pipeline, ClipInputs(frame, ("A disc.",)), settings, 0)
    rows: list[int] = []

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    family.sample(pipeline, denoiser, family.noise(denoiser, settings, [0]), given, settings)
    handle.remove()
    assert sum(rows) == STEPS * family.passes(denoiser, settings) == STEPS * passes
    plain = replace(settings, guidance=1.0)
    assert family.passes(denoiser, plain) == 1
