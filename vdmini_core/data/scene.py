"""What happens in a procedural clip: the scene drawn from a seed, and where everything is in each frame.

Everything that moves can be foreseen from the first frame:

* the whole background pans, zooms and changes in brightness, and only a small *marker* in one corner
  tells how: hue = heading, shape = speed, plate = zoom, centre dot = brightness. So each pixel must
  learn a global quantity from far away. `normal` has four headings at one speed without zoom, `hard`
  eight at three speeds with zoom.
* sprites move where their nose points, at a speed their shape tells, and bounce off the walls.

Lengths are pixels of a 64-pixel-high frame and scale with the height; speeds are pixels per frame.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["easy", "normal", "hard"]
Floats = NDArray[np.float64]

REFERENCE_HEIGHT = 64
TEXTURES = ("checker", "stripes", "dots", "diamonds", "bricks")
SPRITE_SHAPES = ("disc", "square", "triangle", "diamond")
SPRITE_SPEEDS = (1.0, 2.0, 3.0, 2.5)
MARKER_SHAPES = ("disc", "square", "cross")
PAN_SPEEDS = (1.0, 2.0, 3.0)
HEADINGS = 8
ZOOM_RATES = (0.0, 0.03, -0.03)
BRIGHTNESS_RATES = (0.0, 0.05, -0.05)
PERIOD = 32  # of the textures


@dataclass(frozen=True)
class Rules:
    """What a difficulty level draws from: ids of the constants above."""

    headings: tuple[int, ...]
    speeds: tuple[int, ...]
    zooms: tuple[int, ...]
    brightnesses: tuple[int, ...]
    max_sprites: int


RULES: dict[str, Rules] = {
    "easy": Rules((0, 2, 4, 6), (1,), (0,), (0,), 1),
    "normal": Rules((0, 2, 4, 6), (1,), (0,), (0, 1, 2), 2),
    "hard": Rules(tuple(range(HEADINGS)), (0, 1, 2), (0, 1, 2), (0, 1, 2), 2),
}


@dataclass(frozen=True)
class Background:
    """Periodic texture and its global motion (the ids index the constants above)."""

    texture: int
    period: float
    phase: tuple[float, float]
    colours: Floats  # (2, 3) in 0..1
    heading: int
    speed: int
    zoom: int
    brightness: int
    corner: int  # 0 top left, 1 top right, 2 bottom left, 3 bottom right

    @property
    def velocity(self) -> Floats:
        """Pan in pixels per frame, (x, y) with y down, at 64 pixels of height."""
        angle = 2 * np.pi * self.heading / HEADINGS
        return PAN_SPEEDS[self.speed] * np.array([np.cos(angle), np.sin(angle)])


@dataclass(frozen=True)
class Sprite:
    """A textured shape with a nose; it moves towards its nose."""

    shape: int
    radius: float
    start: tuple[float, float]
    heading: float  # radians, y down
    colours: Floats  # (2, 3) in 0..1
    colour_id: int  # hue of the first colour in twelfths


@dataclass(frozen=True)
class Scene:
    """Everything a clip shows; sprites later in the tuple are drawn on top."""

    background: Background
    sprites: tuple[Sprite, ...]


def hue_colour(hue: float, saturation: float = 1.0, value: float = 1.0) -> Floats:
    """RGB in 0..1 of a hue given in turns."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def sample_scene(rng: np.random.Generator, level: Level, height: int, width: int) -> Scene:
    """Draw a scene for a frame of `height` x `width` pixels; a pure function of the generator's state."""
    rules = RULES[level]
    size = (width * REFERENCE_HEIGHT / height, float(REFERENCE_HEIGHT))
    background = _sample_background(rng, rules)
    count = int(rng.integers(1, rules.max_sprites + 1))
    return Scene(background, tuple(_sample_sprite(rng, size) for _ in range(count)))


def _sample_background(rng: np.random.Generator, rules: Rules) -> Background:
    period = float(rng.choice((PERIOD,)))
    hue = rng.random()
    dark = hue_colour(hue, rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.4))
    light = hue_colour(hue + rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.6), rng.uniform(0.6, 0.85))
    return Background(
        texture=int(rng.integers(len(TEXTURES))),
        period=period,
        phase=(float(rng.uniform(0, period)), float(rng.uniform(0, period))),
        colours=np.stack([dark, light]),
        heading=rules.headings[int(rng.integers(len(rules.headings)))],
        speed=rules.speeds[int(rng.integers(len(rules.speeds)))],
        zoom=rules.zooms[int(rng.integers(len(rules.zooms)))],
        brightness=rules.brightnesses[int(rng.integers(len(rules.brightnesses)))],
        corner=int(rng.integers(4)),
    )


def _sample_sprite(rng: np.random.Generator, size: tuple[float, float]) -> Sprite:
    radius = float(rng.uniform(8.0, 10.0))
    colour_id = int(rng.integers(12))
    low, high = radius + 1, np.array(size) - radius - 1
    return Sprite(
        shape=int(rng.integers(len(SPRITE_SHAPES))),
        radius=radius,
        start=(float(rng.uniform(low, high[0])), float(rng.uniform(low, high[1]))),
        heading=float(rng.uniform(0, 2 * np.pi)),
        colours=np.stack([hue_colour(colour_id / 12, 0.9, 1.0), hue_colour(colour_id / 12 + 0.5, 0.9, 0.75)]),
        colour_id=colour_id,
    )


def trajectory(sprite: Sprite, frames: int, size: tuple[float, float]) -> tuple[Floats, Floats]:
    """Centre (frames, 2) as (x, y) and heading (frames,) in radians of a sprite bouncing in `size`."""
    speed = SPRITE_SPEEDS[sprite.shape]
    step = speed * np.array([np.cos(sprite.heading), np.sin(sprite.heading)])
    free = np.asarray(sprite.start) + np.arange(frames)[:, None] * step
    low, high = sprite.radius, np.asarray(size) - sprite.radius
    folded = np.mod(free - low, 2 * (high - low))
    backwards = folded > high - low
    centre = low + np.where(backwards, 2 * (high - low) - folded, folded)
    direction = np.where(backwards, -1.0, 1.0) * step
    return centre, np.arctan2(direction[:, 1], direction[:, 0])
