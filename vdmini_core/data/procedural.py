"""Procedural clips with a known truth: the embedded data set, drawn by numpy alone.

A clip is a pure function of (spec, seed): the same bytes in every process. The scene's rules are in
`vdmini_core.data.scene`; this module paints it with 2 x 2 samples per pixel, seen through a lens that is
never quite sharp (a [1, 2, 1] kernel), as cameras are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vdmini_core.data import scene as sc

SUPERSAMPLING = 2
TILE = 128  # samples per texture period
GENERATOR_VERSION = 2  # raise when a change alters the pixels
_SPLITS = ("train", "validation", "test")
_SEED_STRIDE = 2**32

Bytes = NDArray[np.uint8]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class ProceduralSpec:
    """Size and difficulty of the clips.

    The scene is scaled to the height, unless `scale` (pixels per unit of a 64-unit-high scene) is given: a
    32-pixel-high clip at scale 1 is a small window on things of the usual size.
    """

    frames: int = 8
    height: int = 64
    width: int = 64
    fps: int = 8
    level: sc.Level = "normal"
    scale: float | None = None

    @property
    def pixels_per_unit(self) -> float:
        """Pixels per unit of the scene's lengths."""
        return self.height / sc.REFERENCE_HEIGHT if self.scale is None else self.scale


@dataclass(frozen=True)
class Clip:
    """A rendered clip and what is true about it.

    Attributes:
        frames: uint8 (frames, height, width, 3).
        truth: `sprite_centres` (sprites, frames, 2) in pixels as (x, y); `sprite_visible`
            (sprites, frames) bool, False while more than half of it is covered by a later sprite;
            `sprite_shapes`, `sprite_colours` (sprites,) ids; `sprite_radii` (sprites,) pixels;
            `background_velocity` (2,) pixels per frame; `background_zoom`, `brightness_rate` scalars
            per frame; `marker_corner` id.
    """

    frames: Bytes
    truth: dict[str, NDArray[Any]]


def split_seeds(split: Literal["train", "validation", "test"], n: int, seed: int) -> list[int]:
    """`n` clip seeds of a split; the splits of one `seed`, and of any two seeds, never share a clip seed."""
    if n > _SEED_STRIDE or n < 0:
        raise ValueError(f"n must lie in 0..{_SEED_STRIDE}, got {n}")
    start = (seed * len(_SPLITS) + _SPLITS.index(split)) * _SEED_STRIDE
    return list(range(start, start + n))


def render_clips(spec: ProceduralSpec, seeds: Sequence[int]) -> Bytes:
    """Frames of many clips: uint8 (n, frames, height, width, 3)."""
    out = np.empty((len(seeds), spec.frames, spec.height, spec.width, 3), np.uint8)
    for index, seed in enumerate(seeds):
        out[index] = render_clip(spec, seed).frames
    return out


def draw_scene(spec: ProceduralSpec, seed: int) -> sc.Scene:
    """What `render_clip` paints for this seed."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    scale = spec.pixels_per_unit
    return sc.sample_scene(rng, spec.level, (spec.width / scale, spec.height / scale), spec.frames)


def render_clip(spec: ProceduralSpec, seed: int) -> Clip:
    """Render one clip; deterministic in (spec, seed)."""
    scale = spec.pixels_per_unit
    size = (spec.width / scale, spec.height / scale)
    scene = draw_scene(spec, seed)
    canvas = _paint_background(scene.background, spec, scale)
    tracks = [sc.trajectory(sprite, spec.frames, size) for sprite in scene.sprites]
    for sprite, (centres, headings) in zip(scene.sprites, tracks, strict=True):
        _paint_sprite(canvas, sprite, centres, headings, scale)
    _apply_brightness(canvas, scene.background)
    _paint_marker(canvas, scene.background, scale)
    return Clip(_downsample(canvas), _truth(scene, [centres for centres, _ in tracks], spec.frames, scale))


def _truth(scene: sc.Scene, tracks: list[sc.Floats], frames: int, scale: float) -> dict[str, NDArray[Any]]:
    centres, sprites = np.stack(tracks), scene.sprites
    visible = np.ones((len(sprites), frames), bool)
    for below in range(len(sprites)):
        for above in range(below + 1, len(sprites)):
            gap = np.linalg.norm(centres[below] - centres[above], axis=-1)
            visible[below] &= gap > sprites[above].radius
    background = scene.background
    return {
        "sprite_centres": centres * scale,
        "sprite_visible": visible,
        "sprite_shapes": np.array([sprite.shape for sprite in sprites]),
        "sprite_colours": np.array([sprite.colour_id for sprite in sprites]),
        "sprite_radii": np.array([sprite.radius for sprite in sprites]) * scale,
        "background_velocity": background.velocity * scale,
        "background_zoom": np.array(sc.ZOOM_RATES[background.zoom]),
        "brightness_rate": np.array(sc.BRIGHTNESS_RATES[background.brightness]),
        "marker_corner": np.array(background.corner),
    }


@lru_cache(maxsize=len(sc.TEXTURES))
def _tile(texture: int) -> Floats32:
    """One period of a two-colour texture: (TILE, TILE) in {0, 1}."""
    axis = (np.arange(TILE) + 0.5) / TILE
    x, y = axis[None, :], axis[:, None]
    patterns = {
        "checker": (x < 0.5) ^ (y < 0.5),
        "stripes": np.mod(x + y, 1) < 0.5,
        "dots": (np.mod(x, 1) - 0.5) ** 2 + (np.mod(y, 1) - 0.5) ** 2 < 0.35**2,
        "diamonds": np.abs(x - 0.5) + np.abs(y - 0.5) < 0.4,
        "bricks": (np.mod(2 * y, 1) > 0.3) & (np.mod(x + 0.5 * (y < 0.5), 1) > 0.15),
    }
    return patterns[sc.TEXTURES[texture]].astype(np.float32)


def _paint_background(background: sc.Background, spec: ProceduralSpec, scale: float) -> Floats32:
    """Canvas (frames, height * 2, width * 2, 3) with the panned and zoomed texture."""
    tile = _tile(background.texture)
    colours = background.colours.astype(np.float32)
    coloured = tile[..., None] * (colours[1] - colours[0]) + colours[0]
    canvas = np.empty((spec.frames, spec.height * SUPERSAMPLING, spec.width * SUPERSAMPLING, 3), np.float32)
    for frame in range(spec.frames):
        columns, rows = (
            _tile_index(background, axis, length, frame, scale)
            for axis, length in ((0, canvas.shape[2]), (1, canvas.shape[1]))
        )
        np.take(coloured[rows], columns, axis=1, out=canvas[frame])
    return canvas


def _tile_index(
    background: sc.Background, axis: int, length: int, frame: int, scale: float
) -> NDArray[np.intp]:
    """Texture sample under each canvas row or column: zoom about the frame's centre, then pan."""
    position = (np.arange(length) + 0.5) / (SUPERSAMPLING * scale)
    centre = length / (2 * SUPERSAMPLING * scale)
    zoom = (1 + sc.ZOOM_RATES[background.zoom]) ** frame
    texture = (position - centre) / zoom - background.velocity[axis] * frame + background.phase[axis]
    return np.floor(np.mod(texture / background.period, 1) * TILE).astype(np.intp) % TILE


def _apply_brightness(canvas: Floats32, background: sc.Background) -> None:
    rate = sc.BRIGHTNESS_RATES[background.brightness]
    if rate:
        amount = np.float32(abs(rate)) * np.arange(len(canvas), dtype=np.float32)[:, None, None, None]
        canvas *= 1 - amount
        if rate > 0:
            canvas += amount


def _paint_sprite(
    canvas: Floats32, sprite: sc.Sprite, centres: sc.Floats, headings: sc.Floats, scale: float
) -> None:
    """Paint a sprite into every frame: a rimmed two-colour body and a white nose towards its heading."""
    unit = SUPERSAMPLING * scale
    reach = int(np.ceil((1.25 * sprite.radius + 1) * unit))
    corner = np.floor(centres * unit).astype(int) - reach
    axis = np.arange(2 * reach + 1) + 0.5
    dx = ((corner[:, 0, None] + axis) / unit - centres[:, 0, None]).astype(np.float32)[:, None, :]
    dy = ((corner[:, 1, None] + axis) / unit - centres[:, 1, None]).astype(np.float32)[:, :, None]
    cos, sin = (f(headings).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    radius = np.float32(sprite.radius)
    distance = _shape_distance(sc.SPRITE_SHAPES[sprite.shape], dx, dy, radius)
    stripes = np.mod(across / radius + 0.25, 1) < 0.5
    colour = sprite.colours.astype(np.float32)[stripes.astype(np.intp)]
    colour[distance > -1.2] = 0.05
    nose = (along - 0.5 * radius) ** 2 + across**2
    colour[nose < (0.42 * radius) ** 2] = 0.05
    colour[nose < (0.30 * radius) ** 2] = 1.0
    for frame, (left, top) in enumerate(corner):
        _paste(canvas[frame], colour[frame], distance[frame] < 0, int(left), int(top))


def _shape_distance(shape: str, dx: Floats32, dy: Floats32, radius: np.float32) -> Floats32:
    """Signed distance-like value, negative inside; about one per pixel near the rim."""
    if shape == "disc":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - np.float32(0.84) * radius
    if shape == "triangle":
        return (
            np.maximum(np.abs(dx) * np.float32(0.87) - dy * np.float32(0.5), dy) - np.float32(0.62) * radius
        )
    return (np.abs(dx) + np.abs(dy)) * np.float32(0.71) - np.float32(0.8) * radius


def _paste(canvas: Floats32, colour: Floats32, mask: NDArray[np.bool_], left: int, top: int) -> None:
    height, width = canvas.shape[:2]
    rows = slice(max(0, -top), min(mask.shape[0], height - top))
    columns = slice(max(0, -left), min(mask.shape[1], width - left))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return  # in a long clip a travelling sprite leaves the frame
    target = canvas[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    np.copyto(target, colour[rows, columns], where=mask[rows, columns, None])


def _paint_marker(canvas: Floats32, background: sc.Background, scale: float) -> None:
    """The key to the global motion, still in its corner and untouched by the brightness."""
    side = round(12 * scale * SUPERSAMPLING)
    axis = ((np.arange(side) + 0.5) / side - 0.5) * 12
    x, y = axis[None, :], axis[:, None]
    plate = (0.0, 1.0, 0.45)[background.zoom]
    patch = np.full((side, side, 3), plate, np.float32)
    shape = {
        "disc": x**2 + y**2 < 4.6**2,
        "square": np.maximum(np.abs(x), np.abs(y)) < 4.4,
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 1.9) & (np.maximum(np.abs(x), np.abs(y)) < 5.2),
    }[sc.MARKER_SHAPES[background.speed]]
    patch[shape] = sc.hue_colour(background.heading / sc.HEADINGS)
    if background.brightness:
        patch[x**2 + y**2 < 2.0**2] = (0.0, 1.0, 0.0)[background.brightness]
    top = 0 if background.corner < 2 else canvas.shape[1] - side
    left = 0 if background.corner % 2 == 0 else canvas.shape[2] - side
    canvas[:, top : top + side, left : left + side] = patch


def _downsample(canvas: Floats32) -> Bytes:
    """Mean of 2 x 2 samples, through the lens, rounded to uint8."""
    s = SUPERSAMPLING
    mean = canvas[:, 0::s, 0::s] + canvas[:, 1::s, 0::s]
    mean += canvas[:, 0::s, 1::s]
    mean += canvas[:, 1::s, 1::s]
    for axis in (1, 2):
        mean = _lens(mean, axis)
    mean *= np.float32(255 / (16 * s**2))
    mean += np.float32(0.5)
    return mean.astype(np.uint8)


def _lens(picture: Floats32, axis: int) -> Floats32:
    """Four times the picture under a [1, 2, 1] / 4 kernel along an axis; edges repeat."""
    ends = [(0, 0)] * picture.ndim
    ends[axis] = (1, 1)
    padded = np.pad(picture, ends, mode="edge")
    before, here, after = (
        np.take(padded, np.arange(start, start + picture.shape[axis]), axis=axis) for start in range(3)
    )
    total: Floats32 = before + 2 * here + after
    return total
