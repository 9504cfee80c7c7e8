"""Captions: a sentence from what is known about a procedural clip, or what lies beside a user's videos.

A video `a/dog.mp4` may have `a/dog.txt` beside it; or the folder holds `captions.csv` (a header with the
columns `file` and `prompt`) or `captions.jsonl` (`{"file": ..., "prompt": ...}` a line), whose files are
named as seen from the folder, with `/`. A text beside the video goes before a line of a table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from vdmini_core.data import scene as sc
from vdmini_core.errors import DataError
from vdmini_core.foreign import JSON_BYTES, parse_json, read_bounded

TABLES = ("captions.csv", "captions.jsonl")
LONGEST = 10_000  # characters of a caption; text encoders read some hundred
CaptionSource = Literal["files", "filename"]

_HUES = (
    "red",
    "orange",
    "yellow",
    "lime",
    "green",
    "mint",
    "cyan",
    "azure",
    "blue",
    "violet",
    "magenta",
    "pink",
)
_TEXTURES = ("checkered", "striped", "dotted", "diamond-patterned", "brick")
_WAYS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")
_ZOOMS = ("", "comes nearer", "recedes")
_LIGHTS = ("", "grows brighter", "grows darker")


def scene_caption(scene: sc.Scene) -> str:
    """One sentence that is true of a procedural clip: things, their motion, background, zoom and light."""
    background = scene.background
    together = all(sprite.drift is not None for sprite in scene.sprites)
    things = [_thing(sprite, moving=not together) for sprite in scene.sprites]
    way = f"{('', 'slowly ', 'quickly ')[_pace(background)]}{_WAYS[background.heading]}"
    ground = f"a {_TEXTURES[background.texture]} background"
    changes = [word for word in (_ZOOMS[background.zoom], _LIGHTS[background.brightness]) if word]
    if together:
        verb = "moves" if len(things) == 1 else "move"
        ending = f", which {' and '.join(changes)}" if changes else ""
        return f"{_first_up(' and '.join(things))} {verb} {way} together with {ground}{ending}."
    behind = " and ".join([f"moves {way}", *changes])
    return f"{_first_up(' and '.join(things))} in front of {ground} that {behind}."


def _thing(sprite: sc.Sprite, moving: bool) -> str:
    hue = _HUES[sprite.colour_id]
    words = f"{'an' if hue[0] in 'aeiou' else 'a'} {hue} {sc.SPRITE_SHAPES[sprite.shape]}"
    turn = round(sprite.heading / (2 * np.pi) * len(_WAYS)) % len(_WAYS)
    return f"{words} setting off {_WAYS[turn]}" if moving else words


def _pace(background: sc.Background) -> int:
    """0: the middle speed, which needs no word; 1: slower, 2: faster."""
    middle, speed = sc.PAN_SPEEDS[1], sc.PAN_SPEEDS[background.speed]
    return 0 if speed == middle else 1 if speed < middle else 2


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_captions(root: Path, names: Iterable[str], source: CaptionSource) -> dict[str, str]:
    """Caption by video, of those videos that have one.

    Args:
        root: the folder of videos.
        names: of the videos, seen from `root`, with `/`.
        source: `files`, or `filename`: where the files say nothing, the video's name in words.

    Raises:
        DataError: for a file of captions that cannot be read, or two tables, or two lines for one video.
    """
    tables = _read_tables(root)
    found = {}
    for name in names:
        text = _beside(root, name) or tables.get(name)
        if not text and source == "filename":
            text = _clean(re.sub(r"[_\-.]+", " ", PurePosixPath(name).stem))
        if text:
            found[name] = text
    return found


def serves_as_caption(name: str, videos: Iterable[str]) -> bool:
    """Whether a file of the folder is one of those that `read_captions` looks at."""
    path = PurePosixPath(name)
    return name in TABLES or (path.suffix == ".txt" and _stem(name) in {_stem(video) for video in videos})


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _beside(root: Path, name: str) -> str:
    path = root / f"{_stem(name)}.txt"
    return _clean(_text(path)) if path.is_file() else ""


def _read_tables(root: Path) -> dict[str, str]:
    there = [root / name for name in TABLES if (root / name).is_file()]
    if len(there) > 1:
        raise DataError(
            "the folder of videos has two tables of captions", found=" and ".join(TABLES), fix="keep one"
        )
    rows: dict[str, str] = {}
    for path in there:
        read = _csv_rows if path.suffix == ".csv" else _json_rows
        for line, row in read(path):
            name, prompt = row.get("file"), row.get("prompt")
            if not isinstance(name, str) or not isinstance(prompt, str):
                raise _bad(path, line, "`file` and `prompt`, both text", str(row))
            if name in rows:
                raise _bad(path, line, "one line for each video", f"a second one for {name!r}")
            rows[name] = _clean(prompt)
    return rows


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        if not {"file", "prompt"} <= set(reader.fieldnames or ()):
            raise _bad(path, 1, "a header with the columns `file` and `prompt`", str(reader.fieldnames)[:200])
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:  # a field without end
        raise _bad(path, reader.line_num, "fields of fewer than 131,072 characters", str(error)) from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _bad(path, number, "JSON", str(error)) from None
        yield number, row if isinstance(row, dict) else {}


def _text(path: Path) -> str:
    try:
        return read_bounded(path, JSON_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read",
            expected=f"text in UTF-8, {JSON_BYTES >> 20} MiB at most",
            found=str(error),
        ) from None


def _clean(text: str) -> str:
    """One line without control characters; a caption, not a book."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST]


def _bad(path: Path, line: int, expected: str, found: str) -> DataError:
    return DataError(f"{path}, line {line} is no caption", expected=expected, found=found)
