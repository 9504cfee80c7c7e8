"""What happens in a procedural clip: the scene drawn from a seed, and where everything is in each frame.

Everything that moves can be foreseen from the first frame:

* the whole scene pans, zooms and changes in brightness, and only a small *marker* in one corner tells
  how: hue = heading, shape = speed, plate = zoom, centre dot = brightness. So each pixel must learn a
  global quantity from far away.
* at the levels `easy` and `normal` the sprites stand in the scene and travel with it, past the marker;
  at `hard` they move by themselves where their nose points, at a speed their shape tells, and bounce
  off the walls.

`easy` has one sprite and constant light, `normal` up to two sprites and changing light, both four headings
at one speed; `hard` has eight headings at three speeds, zoom and moving sprites.

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
    sprites_travel_with_the_scene: bool


RULES: dict[str, Rules] = {
    "easy": Rules((0, 2, 4, 6), (1,), (0,), (0,), 1, True),
    "normal": Rules((0, 2, 4, 6), (1,), (0,), (0, 1, 2), 2, True),
    "hard": Rules(tuple(range(HEADINGS)), (0, 1, 2), (0, 1, 2), (0, 1, 2), 2, False),
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
    """A textured shape with a nose; without a `drift` of the scene it moves towards its nose."""

    shape: int
    radius: float
    start: tuple[float, float]
    heading: float  # of the nose, radians, y down
    colours: Floats  # (2, 3) in 0..1
    colour_id: int  # hue of the first colour in twelfths
    drift: tuple[float, float] | None = None  # pixels per frame, of a sprite that travels with the scene


@dataclass(frozen=True)
class Scene:
    """Everything a clip shows; sprites later in the tuple are drawn on top."""

    background: Background
    sprites: tuple[Sprite, ...]


def hue_colour(hue: float, saturation: float = 1.0, value: float = 1.0) -> Floats:
    """RGB in 0..1 of a hue given in turns."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def sample_scene(rng: np.random.Generator, level: Level, size: tuple[float, float], frames: int) -> Scene:
    """Draw a scene for a frame of `size` (width, height); a pure function of the generator's state."""
    rules = RULES[level]
    background = _sample_background(rng, rules)
    count = int(rng.integers(1, rules.max_sprites + 1))
    drift = background.velocity if rules.sprites_travel_with_the_scene else None
    return Scene(background, tuple(_sample_sprite(rng, size, frames, drift) for _ in range(count)))


def _sample_background(rng: np.random.Generator, rules: Rules) -> Background:
    period = float(rng.choice((PERIOD,)))
    hue = rng.random()
    dark = hue_colour(hue, rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.45))
    light = hue_colour(hue + rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.6), rng.uniform(0.6, 0.8))
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


def _sample_sprite(
    rng: np.random.Generator, size: tuple[float, float], frames: int, drift: Floats | None
) -> Sprite:
    """A travelling sprite starts where it will stay in the frame, if the frame is large enough."""
    radius = float(rng.uniform(8.0, 10.0))
    colour_id = int(rng.integers(12))
    travel = np.zeros(2) if drift is None else drift * (frames - 1)
    low, high = radius + 1 - travel.clip(max=0), np.array(size) - radius - 1 - travel.clip(min=0)
    middle = np.array(size) / 2
    low, high = np.where(low < high, low, middle), np.where(low < high, high, middle)
    return Sprite(
        shape=int(rng.integers(len(SPRITE_SHAPES))),
        radius=radius,
        start=(float(rng.uniform(low[0], high[0])), float(rng.uniform(low[1], high[1]))),
        heading=float(rng.uniform(0, 2 * np.pi)),
        colours=np.stack([hue_colour(colour_id / 12, 0.9, 1.0), hue_colour(colour_id / 12 + 0.5, 0.9, 0.75)]),
        colour_id=colour_id,
        drift=None if drift is None else (float(drift[0]), float(drift[1])),
    )


def trajectory(sprite: Sprite, frames: int, size: tuple[float, float]) -> tuple[Floats, Floats]:
    """Centre (frames, 2) as (x, y) and nose (frames,) in radians; a sprite drifts, or bounces in `size`."""
    if sprite.drift is not None:
        drifting = np.asarray(sprite.start) + np.arange(frames)[:, None] * np.asarray(sprite.drift)
        return drifting, np.full(frames, sprite.heading)
    speed = SPRITE_SPEEDS[sprite.shape]
    step = speed * np.array([np.cos(sprite.heading), np.sin(sprite.heading)])
    free = np.asarray(sprite.start) + np.arange(frames)[:, None] * step
    low, high = sprite.radius, np.asarray(size) - sprite.radius
    folded = np.mod(free - low, 2 * (high - low))
    backwards = folded > high - low
    centre = low + np.where(backwards, 2 * (high - low) - folded, folded)
    direction = np.where(backwards, -1.0, 1.0) * step
    return centre, np.arctan2(direction[:, 1], direction[:, 0])
