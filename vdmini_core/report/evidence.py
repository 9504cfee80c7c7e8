"""What the page shows beside numbers: the clips, where they came from, and what made every file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from vdmini_core.data.prompts import SERVED
from vdmini_core.data.shards import places, shards_of
from vdmini_core.errors import VDMiniError
from vdmini_core.foreign import parse_json

MOVIES = {"real": "Real", "teacher": "Teacher", "pruned": "Pruned", "recovered": "Recovered"}
STAGES = ("prepare", "teacher", "profile", "plan", "prune", "distill", "evaluate")
SHEET_CLIPS, SHEET_FRAMES, SHEET_HEIGHT = 12, 4, 72


@dataclass(frozen=True)
class Movie:
    """One playing clip."""

    row: str
    label: str
    uri: str
    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Strip:
    """Some frames of one prepared clip, side by side."""

    source: str
    split: str
    uri: str
    width: int
    height: int


def load(path: Path, fallback: Any) -> Any:
    """JSON at `path`, or `fallback` where it is missing or of another kind: a report shows what there is."""
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return fallback
    return data if isinstance(data, type(fallback)) else fallback


def load_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a `.jsonl` file; a line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def movies(folder: Path, count: int) -> list[tuple[str, list[Movie]]]:
    """The first `count` clips, each as every row of `MOVIES` that has it."""
    names = sorted({path.name for row in MOVIES for path in (folder / row).glob("*.mp4")})
    shown = []
    for name in names[:count]:
        found = [_movie(folder / row / name, row) for row in MOVIES if (folder / row / name).is_file()]
        shown.append((name.removesuffix(".mp4"), found))
    return shown


def _movie(path: Path, row: str) -> Movie:
    return Movie(row, MOVIES[row], data_uri("video/mp4", path.read_bytes()), *_shape(path))


def _shape(path: Path) -> tuple[int, int, int]:
    """Width, height and number of frames."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return int(stream.width), int(stream.height), int(stream.frames)
    except (OSError, IndexError, ValueError):
        return 64, 64, 1  # the browser will say what is wrong with the file


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as something a `src` can hold."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def contact_sheet(prepare: Path, count: int = SHEET_CLIPS) -> list[Strip]:
    """Strips of prepared clips, one per source file as far as they reach, spread over all sources."""
    index = load(prepare / "index.json", {})
    firsts: dict[str, tuple[str, int]] = {}
    for split in ("train", "validation", "test"):
        for entry in index.get(split) or ():
            if isinstance(entry, dict):
                firsts.setdefault(str(entry.get("source", "?")), (split, int(entry.get("clip", 0))))
    sources = sorted(firsts)
    picked = [sources[i * len(sources) // count] for i in range(count)] if len(sources) > count else sources
    strips = (_strip(prepare, source, *firsts[source]) for source in picked)
    return [strip for strip in strips if strip]


def _strip(prepare: Path, source: str, split: str, number: int) -> Strip | None:
    try:
        [(shard, [inside])] = places(shards_of(prepare, split), [number])
        with safe_open(shard.path, framework="numpy") as handle:
            clip = np.asarray(handle.get_slice("clips")[inside : inside + 1])[0]
    except (OSError, SafetensorError, IndexError, KeyError, VDMiniError):
        return None
    frames = clip[np.linspace(0, len(clip) - 1, SHEET_FRAMES).round().astype(int)]
    image = Image.fromarray(np.concatenate(list(frames), axis=1))
    if image.height > SHEET_HEIGHT:
        image = image.resize(
            (round(image.width * SHEET_HEIGHT / image.height), SHEET_HEIGHT), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0)
    return Strip(source, split, data_uri("image/jpeg", buffer.getvalue()), image.width, image.height)


@dataclass(frozen=True)
class Accounting:
    """Every file that was found, and what became of it."""

    used: tuple[dict[str, Any], ...]
    unused: tuple[dict[str, Any], ...]
    clips: dict[str, int]


def accounting(prepare: Path) -> Accounting:
    """Split the accounting of `sources.json` in files used and files that were not."""
    rows = load(prepare / "sources.json", [])
    if not rows:
        rows = load(prepare / "sources.json", {}).get("files") or []
    rows = [row for row in rows if isinstance(row, dict)]
    index = load(prepare / "index.json", {})
    clips = {
        split: len(index[split])
        for split in ("train", "validation", "test")
        if isinstance(index.get(split), list)
    }
    used = tuple(row for row in rows if row.get("status") == "used")
    unused = tuple(r for r in rows if r.get("status") != "used" and r.get("reason") != SERVED)
    return Accounting(used, unused, clips)


def manifests(artifacts: Path, stages: Sequence[str] = STAGES) -> list[dict[str, Any]]:
    """Manifest of every finished stage, params as readable text, in the order they ran."""
    found = []
    for stage in stages:
        manifest = load(artifacts / stage / "manifest.json", {})
        if manifest:
            params = json.dumps(manifest.get("params", {}), indent=2, sort_keys=True, ensure_ascii=False)
            found.append(
                {"stage": stage, "inputs": {}, "outputs": {}, "code": {}, **manifest, "params_text": params}
            )
    return found
