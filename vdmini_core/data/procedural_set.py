"""The embedded data set: procedural clips written as real .mp4 files, then read like anybody's videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdmini_core.artifacts import write_json
from vdmini_core.data.accounting import Prepared, Record
from vdmini_core.data.captions import scene_caption
from vdmini_core.data.clips import SPLITS
from vdmini_core.data.decode_pool import DecodePool
from vdmini_core.data.discovery import Found
from vdmini_core.data.ingest import CachedDecoder
from vdmini_core.data.procedural import ProceduralSpec, draw_scene, render_clip, split_seeds
from vdmini_core.data.prompts import Caption, save_captions
from vdmini_core.data.shards import Kept, save_clips
from vdmini_core.data.video import Frames, write_mp4
from vdmini_core.errors import DataError
from vdmini_core.params import PrepareParams
from vdmini_core.progress import track

Truth = dict[str, NDArray[Any]]


def prepare_procedural(out: Path, work: Path, params: PrepareParams, seed: int) -> Prepared:
    """Render, encode and decode every split into `out`.

    Writes `videos/<split>/clip_00000.mp4`, `clips-<split>.safetensors`, `truth-<split>.safetensors`,
    `prompts-<split>.jsonl`, `index.json`, `sources.json`. The splits share no clip seed.

    Raises:
        DataError: when a file just written cannot be decoded again.
    """
    index: Record = {"sampling": {"fps": params.fps, "stride_frames": params.frames, "splits": "by seed"}}
    sources: list[Record] = []
    wanted = params.clips.model_dump()
    with DecodePool(params.workers, params.decode_timeout_s) as pool:
        decoder = CachedDecoder(pool, work, params)
        for split in SPLITS:
            index[split] = _make_split(pool, decoder, out, work, split, wanted[split], params, seed)
            sources += [
                {"path": entry["source"], "status": "used", "reason": "", "clips": 1}
                for entry in index[split]
            ]
    write_json(out / "index.json", index)
    write_json(out / "sources.json", sources)
    return Prepared(wanted, sources)


def _make_split(
    pool: DecodePool,
    decoder: CachedDecoder,
    out: Path,
    work: Path,
    split: Any,
    count: int,
    params: PrepareParams,
    seed: int,
) -> list[Record]:
    """Write a split's videos, clips and truth; returns its index."""
    (out / "videos" / split).mkdir(parents=True)
    truths: list[Truth] = []
    replies: list[Record] = []
    names = [f"videos/{split}/clip_{number:05d}.mp4" for number in range(count)]
    spec = ProceduralSpec(params.frames, params.height, params.width, max(1, round(params.fps)), params.level)
    seeds = split_seeds(split, count, seed)

    def render() -> Iterator[tuple[str, Frames]]:
        # Drawn here while the pool's threads encode and decode the clips before.
        for name, clip_seed in zip(names, seeds, strict=True):
            clip = render_clip(spec, clip_seed)
            truths.append(clip.truth)
            yield name, clip.frames

    def write_and_read(job: tuple[str, Frames]) -> Record:
        name, frames = job
        write_mp4(out / name, frames, params.fps)
        facts = (out / name).stat()
        file = Found(out / name, name, "candidate", "", facts.st_size, facts.st_mtime_ns)
        # A clip is a clip here, however little moves in it: it has to stay beside its truth.
        return decoder.decode(file, [0], min_motion=0.0, max_repeats=1.0)

    made = pool.map(write_and_read, render())
    for (name, _), reply in track(made, f"making {split} clips", total=count, unit="clip"):
        replies.append(_checked(name, reply))
    raws = (reply["raw"].read_bytes() for reply in replies)
    kept = Kept(work, [reply["raw"].name for reply in replies])
    save_clips(out, split, raws, (count, params.frames, params.height, params.width, 3), kept)
    _save_truth(out / f"truth-{split}.safetensors", truths)
    told = [scene_caption(draw_scene(spec, clip_seed)) for clip_seed in seeds]
    save_captions(out, split, [Caption(*pair) for pair in zip(names, told, strict=True)])
    return [
        {"clip": i, "source": n, "start_s": 0.0, "source_fps": params.fps, "decoder": reply["decoder"]}
        for i, (n, reply) in enumerate(zip(names, replies, strict=True))
    ]


def _checked(name: str, reply: Record) -> Record:
    if reply.get("starts") != [0]:
        raise DataError(
            f"{name} was written and cannot be decoded again",
            found=str(reply.get("error") or reply.get("rejected")),
            fix="`vdmini doctor` checks the decoders",
        )
    return reply


def _save_truth(path: Path, truths: list[Truth]) -> None:
    """One tensor per fact, clips along the first axis; clips with fewer sprites are padded with zeros."""
    from safetensors.numpy import save_file

    stacked = {}
    for name in sorted(truths[0]):
        arrays = [np.asarray(truth[name]) for truth in truths]
        shape = np.max([array.shape for array in arrays], axis=0).astype(int)
        out = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for number, array in enumerate(arrays):
            place: tuple[Any, ...] = (number, *(slice(length) for length in array.shape))
            out[place] = array
        stacked[name] = out
    stacked["sprite_count"] = np.array([len(truth["sprite_shapes"]) for truth in truths], np.int64)
    save_file(stacked, path)
