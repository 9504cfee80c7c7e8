"""The procedural clips: deterministic, disjoint splits, and a truth that the pixels agree with."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from vdmini_core.data import scene as sc
from vdmini_core.data.procedural import ProceduralSpec, render_clip, render_clips, split_seeds

SPEC = ProceduralSpec()


def digest(seed: int) -> str:
    return hashlib.sha256(render_clip(SPEC, seed).frames.tobytes()).hexdigest()


def test_a_clip_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from vdmini_core.data.procedural import ProceduralSpec, render_clip;"
        "print(hashlib.sha256(render_clip(ProceduralSpec(), 5).frames.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(5)
    assert digest(5) != digest(6)


@pytest.mark.parametrize("level", ["easy", "normal", "hard"])
@pytest.mark.parametrize("size", [(4, 32, 32), (8, 64, 64), (3, 64, 96)])
def test_shape_and_range(level: sc.Level, size: tuple[int, int, int]) -> None:
    spec = ProceduralSpec(*size, level=level)
    clips = render_clips(spec, range(3))
    assert clips.shape == (3, *size, 3)
    assert clips.dtype == np.uint8
    assert clips.std() > 20


def test_a_long_clip_may_lose_its_sprites_and_goes_on() -> None:
    clip = render_clip(ProceduralSpec(frames=60), 3)
    assert np.abs(clip.truth["sprite_centres"][:, -1]).max() > 80
    assert clip.frames[-1].std() > 10


def test_splits_never_share_a_seed() -> None:
    seeds = [
        set(split_seeds(split, 50, seed)) for split in ("train", "validation", "test") for seed in (0, 1)
    ]
    assert sum(map(len, seeds)) == len(set().union(*seeds)) == 300
    with pytest.raises(ValueError, match="n must lie"):
        split_seeds("train", -1, 0)


def test_sprites_are_painted_where_the_truth_says() -> None:
    """The white nose of an uncovered, undimmed sprite lies between its centre and its rim."""
    checked = 0
    for seed in range(60):
        clip = render_clip(SPEC, seed)
        if clip.truth["brightness_rate"] != 0 or len(clip.truth["sprite_shapes"]) > 1:
            continue
        for frame, centre in enumerate(clip.truth["sprite_centres"][0]):
            if not (22 < centre[0] < 42 or 22 < centre[1] < 42):
                continue  # the marker may cover it
            y, x = np.mgrid[0:64, 0:64] + 0.5
            white = clip.frames[frame].min(axis=-1) > 230
            near = np.hypot(x - centre[0], y - centre[1]) < clip.truth["sprite_radii"][0]
            assert (white & near).any(), (seed, frame)
            checked += 1
    assert checked > 20


def test_sprites_keep_inside_and_keep_their_speed() -> None:
    sprite = sc.Sprite(2, 8.0, (20.0, 30.0), 0.3, np.zeros((2, 3)), 0)
    centres, headings = sc.trajectory(sprite, 40, (64.0, 64.0))
    assert centres.min() >= 8 and centres.max() <= 56
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert np.all(steps <= sc.SPRITE_SPEEDS[2] + 1e-9)
    assert np.isclose(np.median(steps), sc.SPRITE_SPEEDS[2])
    assert len(np.unique(np.round(headings, 6))) > 1, "it bounced, so it turned"


def test_background_moves_by_the_velocity_of_the_truth() -> None:
    """Away from sprites and marker, a pan by whole pixels shifts the picture."""
    found = 0
    for seed in range(400):
        clip = render_clip(SPEC, seed)
        truth = clip.truth
        velocity = truth["background_velocity"]
        whole = np.allclose(velocity, np.round(velocity))
        if truth["background_zoom"] or truth["brightness_rate"] or not whole:
            continue
        dx, dy = np.round(velocity).astype(int)
        moved = np.roll(clip.frames[0].astype(int), (dy, dx), axis=(0, 1))
        inner = (slice(16, 48), slice(16, 48))
        same = np.abs(moved[inner] - clip.frames[1][inner]).max(axis=-1) <= 2
        assert same.mean() > 0.4, seed
        found += 1
    assert found > 10


def test_repeating_the_first_frame_is_a_poor_guess() -> None:
    clips = render_clips(SPEC, split_seeds("validation", 32, 0)) / 255
    assert ((clips - clips[:, :1]) ** 2).mean() > 0.03
