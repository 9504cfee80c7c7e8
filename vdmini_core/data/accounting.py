"""The account of a data source: which file gave which clip, which gave none and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import write_json
from vdmini_core.data.discovery import Found
from vdmini_core.data.shards import Kept, save_clips
from vdmini_core.data.splits import Assignment
from vdmini_core.params import PrepareParams

Record = dict[str, Any]
_MODES = {
    "by source": "no video is in two splits",
    "by time": "too few videos for splits by video: each is cut into segments for train, validation and test",
}


@dataclass(frozen=True)
class Prepared:
    """What a data source gave: clips per split, the account of files, and remarks for the person."""

    clips: dict[str, int]
    sources: list[Record]
    notes: list[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Files with this status."""
        return sum(record["status"] == status for record in self.sources)


@dataclass(frozen=True)
class Chosen:
    """A decoded clip that may be taken: its place in the order, and where its bytes lie."""

    rank: int
    order: int
    name: str
    start: int
    raw: Path
    offset: int
    decoder: str


def new_record(file: Found) -> Record:
    """A file's entry before anything is known but its place."""
    return {"path": file.name, "status": file.status, "reason": file.reason, "clips": 0, "bytes": file.size}


def account(records: dict[str, Record], chosen: dict[str, list[Chosen]]) -> None:
    """Give every candidate its final status."""
    for clips in chosen.values():
        for clip in clips:
            records[clip.name]["clips"] += 1
    for record in records.values():
        error, rejected = record.pop("error", None), record.get("rejected", {})
        if record["clips"]:
            record["status"] = "used"
        elif error:
            record.update(status="quarantined", reason=error)
        elif record["status"] == "candidate" and rejected and "decoder" in record:
            record.update(status="quarantined", reason=max(rejected, key=lambda r: (rejected[r], r)))
        elif record["status"] == "candidate":
            record.update(status="skipped", reason="not needed: other videos gave all the clips asked for")


def quarantined(records: Iterable[Record]) -> list[Record]:
    """The files that could not be used."""
    return [record for record in records if record["status"] == "quarantined"]


def write_outputs(
    out: Path,
    work: Path,
    records: dict[str, Record],
    chosen: dict[str, list[Chosen]],
    assignment: Assignment,
    params: PrepareParams,
) -> None:
    """Write the clips, `index.json` and `sources.json`; finished shards wait in `work` as well."""
    shape = (params.frames, params.height, params.width, 3)
    for split, clips in chosen.items():
        save_clips(out, split, clip_bytes(clips, shape), (len(clips), *shape), kept(clips, work))
    index: Record = {
        split: [entry_of(number, clip, records, params) for number, clip in enumerate(clips)]
        for split, clips in chosen.items()
    }
    index["sampling"] = {
        "fps": params.fps,
        "stride_frames": assignment.stride,
        "overlapping": assignment.stride < params.frames,
        "splits": assignment.mode,
        "note": _MODES[assignment.mode],
    }
    write_json(out / "index.json", index)
    write_json(out / "sources.json", list(records.values()))


def entry_of(number: int, clip: Chosen, records: dict[str, Record], params: PrepareParams) -> Record:
    """What `index.json` says of a clip."""
    return {
        "clip": number,
        "source": clip.name,
        "start_s": round(clip.start / params.fps, 6),
        "source_fps": records[clip.name]["source_fps"],
        "decoder": clip.decoder,
    }


def kept(clips: list[Chosen], work: Path) -> Kept:
    """Where the shards of these clips wait; a raw file's name says what is in it."""
    return Kept(work, [f"{clip.raw.name}:{clip.offset}" for clip in clips])


def clip_bytes(clips: list[Chosen], shape: tuple[int, ...]) -> Iterator[bytes]:
    """The decoded clips, one after the other."""
    size = shape[0] * shape[1] * shape[2] * shape[3]
    for clip in clips:
        with clip.raw.open("rb") as raw:
            raw.seek(clip.offset * size)
            yield raw.read(size)


def notes_for(records: dict[str, Record], assignment: Assignment, shown: int = 50) -> list[str]:
    """What to tell the person at the end."""
    notes = [
        f"Clips start every {assignment.stride} frames; splits {assignment.mode}: {_MODES[assignment.mode]}."
    ]
    bad = quarantined(records.values())
    if bad:
        videos = sum(record["status"] != "skipped" or "decoder" in record for record in records.values())
        lines = [f"  - {record['path']!r}: {record['reason']}" for record in bad[:shown]]
        if len(bad) > shown:
            lines.append(f"  - and {len(bad) - shown} more: see sources.json")
        notes.append("\n".join([f"{len(bad)} of {videos} files could not be used:", *lines]))
    return notes
