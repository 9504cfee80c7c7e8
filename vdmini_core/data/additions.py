"""Videos that come later: what is new is listed by hash, and its clips join the training split.

Validation and test stay as they are, so that figures of before and after can be compared; a file whose bytes
are known already, from whichever split, is left out, so that nothing passes from one split into another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import read_json, sha256_file, write_json
from vdmini_core.data.accounting import Record, account, clip_bytes, entry_of, kept, new_record
from vdmini_core.data.captions import CaptionSource, read_captions
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import Found, discover, every_file
from vdmini_core.data.ingest import CachedDecoder, decode_parts, probe_videos
from vdmini_core.data.prompts import Caption, load_captions, prompts_path, save_captions
from vdmini_core.data.sampling import spread, starts_in
from vdmini_core.data.shards import add_clips
from vdmini_core.data.splits import Assignment, ordered
from vdmini_core.errors import DataError
from vdmini_core.params import PrepareParams, SplitClips


@dataclass(frozen=True)
class NewVideo:
    """A file of an addition: name as seen from its folder, size, hash, and its caption or None."""

    path: str
    bytes: int
    sha256: str
    prompt: str | None


@dataclass(frozen=True)
class Addition:
    """A list of new videos: `NUMBER-HASH` is its label and its file's name, the hash that of the file.

    Attributes:
        label: before its videos' names in the account of files.
        folder: where the videos are, as the list says.
        videos: sorted by name.
    """

    label: str
    folder: str
    videos: tuple[NewVideo, ...]

    @property
    def number(self) -> int:
        """Which addition it is, from 1."""
        return int(self.label.split("-")[0])


def new_videos(
    folder: Path, base: Path | None, earlier: Sequence[Addition], captions: CaptionSource
) -> tuple[list[NewVideo], dict[str, str]]:
    """Videos of a folder whose bytes are in no other, and why the others are left out, by name.

    Args:
        folder: where new videos may be.
        base: `prepare.videos`, where the clips come from a folder.
        earlier: what was added before.
        captions: see `read_captions`.

    Raises:
        DataError: when there is no such folder, or not one video in it.
    """
    of_base: dict[int, list[Found]] = defaultdict(list)
    for file in every_file(base) if base is not None else ():
        if file.status == "candidate":
            of_base[file.size].append(file)
    known = {video.sha256: f"{added.label}/{video.path}" for added in earlier for video in added.videos}
    fresh, left_out = {}, {}
    for item in discover(folder):
        if item.status == "quarantined":
            left_out[item.name] = item.reason
        elif item.status == "candidate":
            digest = sha256_file(item.path)
            twins = (file.name for file in of_base[item.size] if sha256_file(file.path) == digest)
            twin = known.get(digest) or next(twins, None)
            if twin is not None:
                left_out[item.name] = f"the same bytes as {twin}"
            elif folder / item.name != item.path:
                left_out[item.name] = "its name is not UTF-8"
            else:
                fresh[item.name] = (item.size, digest)
    told = read_captions(folder, fresh, captions)
    return [NewVideo(name, *facts, told.get(name)) for name, facts in fresh.items()], left_out


def write_addition(directory: Path, number: int, folder: str, videos: Sequence[NewVideo]) -> Path:
    """Write the list of an addition; its name holds its hash."""
    data = {"folder": folder, "videos": [vars(video) for video in videos]}
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{number:04d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path.write_text(text, encoding="utf-8")
    return path


def read_addition(path: Path) -> Addition:
    """Read such a list.

    Raises:
        DataError: when it is missing, or not what was written.
    """
    if not path.is_file():
        raise DataError("a list of added videos is missing", expected=str(path), fix="bring it back from git")
    match = re.fullmatch(r"\d{4,}-([0-9a-f]{12})", path.stem)
    if match is None or not sha256_file(path).startswith(match[1]):
        raise DataError(
            f"{path.name} is not the list that was written",
            expected="content of the hash in its name",
            found=sha256_file(path)[:12],
            fix="bring it back from git; `vdmini prepare --add DIR` writes new ones",
        )
    data = read_json(path)
    return Addition(path.stem, data["folder"], tuple(NewVideo(**video) for video in data["videos"]))


def add_videos(
    addition: Addition, folder: Path, out: Path, work: Path, params: PrepareParams, seed: int
) -> str:
    """Append the clips of an addition to the training split in `out`, in shards of their own.

    Every clip of the new videos is taken, up to `max_clips_per_video` of each.

    Args:
        addition: the list.
        folder: where its videos are.
        out: outputs of `prepare` so far; `index.json`, `sources.json` and the prompts are written anew.
        work: scratch that survives a kill.
        params: shape of the clips, limits.
        seed: orders the videos.

    Returns:
        A sentence on what came of it.

    Raises:
        DataError: when a listed video is not there or has other bytes.
    """
    files = {file.name: file for file in _listed(addition, folder)}
    records = {name: new_record(file) | {"addition": addition.number} for name, file in files.items()}
    with DecodePool(params.workers, params.decode_timeout_s) as pool:
        decoder = CachedDecoder(pool, work, params)
        sources = ordered(probe_videos(pool, decoder, files, records), seed)
        cap, stride = params.max_clips_per_video, params.frames
        starts = [(source.name, spread(starts_in(source.runs, stride), cap)) for source in sources]
        wanted = SplitClips(train=max(1, sum(len(each) for _, each in starts)), validation=1, test=2)
        everything = params.model_copy(update={"clips": wanted})
        assignment = Assignment("added", stride, {"train": starts, "validation": [], "test": []})
        found, _ = decode_parts(pool, decoder, files, records, assignment, everything)
    # A file damaged in one place is not trusted in another.
    chosen = [clip for clip in found["train"] if "error" not in records[clip.name]]
    account(records, {"train": chosen})
    prompts = {f"{addition.label}/{video.path}": video.prompt for video in addition.videos}
    shards: list[str] = []
    if chosen:
        shape = (params.frames, params.height, params.width, 3)
        parts = clip_bytes(chosen, shape), (len(chosen), *shape), kept(chosen, work)
        shards = add_clips(out, "train", *parts, addition=addition.number)
        captions = [*load_captions(out, "train"), *(Caption(c.name, prompts[c.name]) for c in chosen)]
        prompts_path(out, "train").unlink()  # it may be another output's file as well
        save_captions(out, "train", captions)
    index = read_json(out / "index.json")
    first = len(index["train"])
    entries = [entry_of(first + number, clip, records, params) for number, clip in enumerate(chosen)]
    index["train"] += [entry | {"addition": addition.number} for entry in entries]
    told: Record = {
        "addition": addition.number,
        "list": addition.label,
        "clips": len(chosen),
        "shards": shards,
    }
    index.setdefault("additions", []).append(told)
    write_json(out / "index.json", index)
    write_json(out / "sources.json", [*read_json(out / "sources.json"), *records.values()])
    used = sum(record["status"] == "used" for record in records.values())
    return f"Addition {addition.label}: {len(chosen)} training clips of {used} of {len(files)} new videos."


def _listed(addition: Addition, folder: Path) -> list[Found]:
    found, wrong = [], []
    for video in addition.videos:
        path = folder / video.path
        if not path.is_file():
            wrong.append(f"{video.path} is not there")
        elif path.stat().st_size != video.bytes or sha256_file(path) != video.sha256:
            wrong.append(f"{video.path} has other bytes")
        else:
            name, modified = f"{addition.label}/{video.path}", path.stat().st_mtime_ns
            found.append(Found(path, name, "candidate", "", video.bytes, modified))
    if wrong:
        raise DataError(
            f"{len(wrong)} videos of the addition {addition.label} are not what they were",
            expected=f"the files of its list in {folder}",
            found="; ".join(wrong[:10]) + ("; ..." if len(wrong) > 10 else ""),
            fix="bring them back, or take the list out of prepare.additions (its clips go with it)",
        )
    return found


def prepared_so_far(out: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Clips per split and the account of files, from what is written."""
    index = read_json(out / "index.json")
    counts = {split: len(index[split]) for split in ("train", "validation", "test")}
    return counts, read_json(out / "sources.json")
