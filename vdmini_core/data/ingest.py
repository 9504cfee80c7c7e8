"""A folder of videos -> clips, with an account of every file.

Probing (time lines only) comes first, then the splits are made, then only the frames that are needed are
decoded. Replies of the decoding workers are kept in `work`, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vdmini_core.artifacts import digest_of, read_json, write_json
from vdmini_core.data.accounting import (
    Chosen,
    Prepared,
    Record,
    account,
    new_record,
    notes_for,
    quarantined,
    write_outputs,
)
from vdmini_core.data.captions import read_captions, serves_as_caption
from vdmini_core.data.clips import SPLITS
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import Found, discover
from vdmini_core.data.prompts import SERVED, Caption, save_captions
from vdmini_core.data.sampling import spread
from vdmini_core.data.splits import MINIMUM, Assignment, Source, assign, counts, level_for
from vdmini_core.errors import DataError
from vdmini_core.params import PrepareParams
from vdmini_core.progress import track


class CachedDecoder:
    """Requests to a pool, their replies kept in a folder under a key of file and request."""

    def __init__(self, pool: DecodePool, work: Path, params: PrepareParams) -> None:
        self._pool, self._work = pool, work
        self._shape = params.model_dump(include={"frames", "fps", "height", "width", "min_motion"})

    def probe(self, file: Found) -> Record:
        """See `decode_worker.probe_file`."""
        return self._call(file, {**self._shape, "op": "probe"})

    def decode(self, file: Found, starts: list[int], **changes: Any) -> Record:
        """See `decode_worker.decode_file`; the raw file's path is added as `raw`."""
        return self._call(file, {**self._shape, "op": "decode", "starts": starts, **changes})

    def _call(self, file: Found, request: Record) -> Record:
        key = digest_of({"file": [file.name, file.size, file.modified_ns], "request": request})[:32]
        kept, raw = self._work / f"{key}.json", self._work / f"{key}.raw"
        if kept.is_file():
            return {**read_json(kept), "raw": raw}
        reply = self._pool.call({**request, "path": str(file.path), "out": str(raw)})
        if not reply.get("killed"):  # a hang or a crash may have been the machine's: tried again
            write_json(kept, reply)
        return {**reply, "raw": raw}


def ingest_folder(root: Path, out: Path, work: Path, params: PrepareParams, seed: int) -> Prepared:
    """Read a folder tree of videos into clips, prompts, `index.json` and `sources.json` in `out`.

    Args:
        root: folder tree.
        out: existing folder for the outputs.
        work: existing scratch folder that survives a kill.
        params: shape of the clips, limits.
        seed: decides which video serves which split.

    Raises:
        DataError: when too few clips can be made, or for captions that cannot be read; bad videos alone
            never raise.
    """
    found = discover(root)
    records = {f.name: new_record(f) for f in found}
    files = {f.name: f for f in found if f.status == "candidate"}
    captions = read_captions(root, files, params.captions)  # first: a torn table should not cost the decoding
    for name in records.keys() - files.keys():
        if serves_as_caption(name, files):
            records[name]["reason"] = SERVED
    with DecodePool(params.workers, params.decode_timeout_s) as pool:
        decoder = CachedDecoder(pool, work, params)
        sources = probe_videos(pool, decoder, files, records)
        chosen, assignment = _settle(pool, decoder, files, records, sources, params, seed)
    account(records, chosen)
    write_outputs(out, work, records, chosen, assignment, params)
    for split, clips in chosen.items():
        save_captions(out, split, [Caption(clip.name, captions.get(clip.name)) for clip in clips])
    return Prepared(
        {s: len(chosen[s]) for s in SPLITS}, list(records.values()), notes_for(records, assignment)
    )


def _settle(
    pool: DecodePool,
    decoder: CachedDecoder,
    files: dict[str, Found],
    records: dict[str, Record],
    sources: list[Source],
    params: PrepareParams,
    seed: int,
) -> tuple[dict[str, list[Chosen]], Assignment]:
    """Share the sources out and decode, again without those that gave nothing where too little was left."""
    wanted = params.clips.model_dump()
    while True:
        assignment = assign(sources, wanted, params.frames, params.max_clips_per_video, seed)
        if assignment.mode == "none":
            raise _too_few(counts(assignment), records)
        for source in sources:
            for key in ("rejected", "error", "decoder"):
                records[source.name].pop(key, None)
        chosen, failed = decode_parts(pool, decoder, files, records, assignment, params)
        found = {split: len(clips) for split, clips in chosen.items()}
        # A file damaged in one segment is not trusted in another.
        half = {clip.name for clips in chosen.values() for clip in clips if "error" in records[clip.name]}
        if not half and all(found[split] >= MINIMUM[split] for split in SPLITS):
            return chosen, assignment
        if not half | failed:
            raise _too_few(found, records)
        sources = [source for source in sources if source.name not in half | failed]


def _too_few(found: dict[str, int], records: dict[str, Record]) -> DataError:
    account(records, {})
    bad = [f"{record['path']!r}: {record['reason']}" for record in quarantined(records.values())]
    return DataError(
        "these videos give too few clips",
        expected="at least " + ", ".join(f"{MINIMUM[split]} {split}" for split in SPLITS),
        found=", ".join(f"{found[split]} {split}" for split in SPLITS)
        + f"; {len(bad)} files cannot be used"
        + "".join(f"\n      {line}" for line in bad[:20]),
        fix="add videos or longer ones, or lower prepare.frames, prepare.min_motion, or raise prepare.fps",
    )


def probe_videos(
    pool: DecodePool, decoder: CachedDecoder, files: dict[str, Found], records: dict[str, Record]
) -> list[Source]:
    """Look at every file; those that can be used, and facts in their `records`."""
    sources = []
    probes = pool.map(decoder.probe, files.values())
    for file, reply in track(probes, "looking at videos", total=len(files), unit="file"):
        record = records[file.name]
        if "error" in reply:
            record.update(status="quarantined", reason=reply["error"])
            continue
        record.update({k: v for k, v in reply.items() if k not in ("runs", "ticks", "raw")})
        sources.append(Source(file.name, tuple((a, b) for a, b in reply["runs"]), reply["ticks"]))
    return sources


def decode_parts(
    pool: DecodePool,
    decoder: CachedDecoder,
    files: dict[str, Found],
    records: dict[str, Record],
    assignment: Assignment,
    params: PrepareParams,
) -> tuple[dict[str, list[Chosen]], set[str]]:
    """Clips per split, in order of use, and the names of the files that gave none."""
    chosen: dict[str, list[Chosen]] = {}
    tried: dict[str, int] = {}
    for split in SPLITS:
        limit = params.clips.model_dump()[split]
        part = assignment.parts[split]
        # A quarter more than needed, for clips that turn out to be static.
        level = level_for([len(starts) for _, starts in part], limit + limit // 4)
        work = [(order, name, spread(starts, level)) for order, (name, starts) in enumerate(part)]
        decoded = pool.map(lambda job: decoder.decode(files[job[1]], job[2]), work)
        clips: list[Chosen] = []
        for (order, name, _), reply in track(decoded, f"decoding {split}", total=len(work), unit="file"):
            _note_reply(records[name], reply)
            fresh = _clips_of(order, name, reply)
            tried[name] = tried.get(name, 0) + len(fresh)
            clips += fresh
            if level == 1 and len(clips) >= limit:
                break
        # First every video's first clip, then every video's second: any prefix is as varied as can be.
        chosen[split] = sorted(clips, key=lambda c: (c.rank, c.order))[:limit]
    return chosen, {name for name, count in tried.items() if not count}


def _note_reply(record: Record, reply: Record) -> None:
    if "error" in reply:
        record["error"] = reply["error"]
    else:
        record["decoder"] = reply["decoder"]
        for reason, count in reply["rejected"].items():
            rejected = record.setdefault("rejected", {})
            rejected[reason] = rejected.get(reason, 0) + count


def _clips_of(order: int, name: str, reply: Record) -> list[Chosen]:
    return [
        Chosen(rank, order, name, start, reply["raw"], rank, reply["decoder"])
        for rank, start in enumerate(reply.get("starts", []))
    ]
