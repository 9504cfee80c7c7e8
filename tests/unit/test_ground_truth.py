"""Claims: the truth's errors are in pixels, and content and motion damage go to their own columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdmini_core.data.procedural import ProceduralSpec, render_clip, split_seeds
from vdmini_core.errors import DataError
from vdmini_core.metrics import distortions as damage
from vdmini_core.metrics.ground_truth import REACH, sprite_errors

N = 4


@pytest.fixture(scope="module")
def real():
    clips = [render_clip(ProceduralSpec(level="easy"), seed) for seed in split_seeds("test", N, 5)]
    truth = {name: np.stack([c.truth[name] for c in clips]) for name in clips[0].truth}
    return np.stack([c.frames for c in clips]), truth | {"sprite_count": np.ones(N, np.int64)}


def as_bytes(clips):
    return (clips * 255).round().to(torch.uint8).numpy()


def mean(errors):
    return {name: float(np.nanmean(values)) for name, values in errors.items()}


def test_the_truth_itself_has_no_error(real):
    errors = mean(sprite_errors(real[0], *real))
    assert errors["trajectory_error"] < 0.05
    assert errors["colour_error"] == errors["shape_error"] == 0


@pytest.mark.parametrize("pixels", [(3, 0), (0, -2), (-4, 3)])
def test_shifted_clips_are_off_by_the_shift(real, pixels):
    moved = np.roll(real[0], pixels, axis=(3, 2))
    errors = mean(sprite_errors(moved, *real))
    assert errors["trajectory_error"] == pytest.approx(np.hypot(*pixels), abs=0.6)
    assert errors["shape_error"] < 0.1


def test_content_and_motion_damage_are_told_apart(real):
    clips = torch.from_numpy(real[0]).float() / 255
    blurred = mean(sprite_errors(as_bytes(damage.blur(clips, 1.5, torch.Generator())), *real))
    tinted = mean(sprite_errors(np.clip(real[0].astype(int) + 40, 0, 255).astype(np.uint8), *real))
    frozen = mean(sprite_errors(as_bytes(clips[:, :1].expand_as(clips)), *real))
    assert max(blurred["trajectory_error"], tinted["trajectory_error"]) < 0.2
    assert frozen["trajectory_error"] > 5
    assert blurred["shape_error"] > 0.3 and tinted["colour_error"] > 0.15
    assert blurred["colour_error"] < 0.05 and tinted["shape_error"] < 0.2


def test_a_clip_of_nothing_is_far_off_and_finite(real):
    errors = sprite_errors(np.zeros_like(real[0]), *real)
    assert all(np.isfinite(values).all() for values in errors.values())
    assert errors["trajectory_error"].max() <= REACH
    assert errors["shape_error"].min() > 0.9


def test_hidden_sprites_are_not_judged(real):
    frames, truth = real
    hidden = truth | {"sprite_visible": np.zeros_like(truth["sprite_visible"])}
    assert all(np.isnan(values).all() for values in sprite_errors(frames, frames, hidden).values())


def test_other_shapes_are_refused(real):
    with pytest.raises(DataError, match="one shape"):
        sprite_errors(real[0][:, :4], *real)
