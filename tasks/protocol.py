"""What stage `evaluate` measures with beside the built-in extractors, and the passports of its distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.models import device_of
from tasks.stage import StageJob
from tasks.weights import resolve_weights
from vdmini_core.artifacts import read_json
from vdmini_core.data.shards import split_digest
from vdmini_core.metrics.comparison import PREFIX
from vdmini_core.metrics.extractors import Extractor
from vdmini_core.metrics.passport import Side, features_passport
from vdmini_core.metrics.protocol import Protocol, load_protocol_extractor, make_protocol
from vdmini_core.models.base import SamplingSettings


def protocol_extractor(job: StageJob) -> Extractor | None:
    """The network of `evaluate.fvd`, where there is one beside the built-in measures.

    Raises:
        DataError: when its weights or their sha256 are not given, missing or others.
    """
    fvd = job.params.evaluate.fvd
    if fvd.extractor == "embedded":
        return None
    given: Path | str | None = fvd.weights
    if fvd.weights is not None and fvd.weights.startswith("s3://"):
        given = resolve_weights(fvd.weights, fvd.sha256)
    elif fvd.weights is not None and "://" not in fvd.weights:
        local = job.path(fvd.weights)
        # What is no file here may be a name on the hub, which only `videomae` understands.
        given = local if fvd.extractor == "i3d" or local.exists() else fvd.weights
    return load_protocol_extractor(fvd, given, device_of(job))


def fit_protocol(job: StageJob, extract: Extractor | None, count: int) -> Protocol | None:
    """What that network sees of the first `count` test clips.

    Raises:
        DataError: when there are fewer clips than `evaluate.fvd` asks for.
    """
    if extract is None:
        return None
    entries = read_json(job.artifact("prepare") / "index.json").get("test", [])[:count]
    sources = [entry.get("source") for entry in entries] + [None] * (count - len(entries))
    return make_protocol(extract, job.params.evaluate.fvd, job.params.prepare, sources)


def passports(
    job: StageJob,
    shape: Sequence[int],
    settings: SamplingSettings,
    extractors: dict[str, dict[str, Any]],
    protocol: Protocol | None,
) -> dict[str, Any]:
    """Measure -> passport of its distance to the real clips (`fvd_real`, `content_real`, ...).

    Args:
        job: the job of stage `evaluate`.
        shape: (n, F, H, W, 3) of the real clips.
        settings: how generated clips are sampled.
        extractors: name -> `Extractor.passport()`.
        protocol: what the network of `evaluate.fvd` sees of them.
    """
    prepared = job.artifact("prepare")
    entries = read_json(prepared / "index.json").get("test", [])
    decoders = tuple(sorted({str(e.get("decoder")) for e in entries if isinstance(e, dict)}))
    data = split_digest(prepared, "test")
    sampled = _sampled(settings, job.params.sampling.precision)
    found = {}
    for name, extractor in extractors.items():
        clips, frames, fps = shape[0], shape[1], job.params.prepare.fps
        choice = ""
        size = (shape[2], shape[3])
        if protocol is not None and name == protocol.extract.name:
            clips, frames, fps = len(protocol.chosen), protocol.frames, protocol.fps
            size = protocol.size or size
            choice = _choice(job.params.evaluate.fvd.clips_per_video)
        passport = features_passport(
            extractor,
            frames=frames,
            size=size,
            fps=fps,
            side=Side(clips, "test", decoders, data, choice),
        )
        joined = replace(passport, generated=Side(clips, choice=sampled))
        found[PREFIX.get(name, name)] = joined.to_json()
    return found


def _sampled(settings: SamplingSettings, precision: str) -> str:
    """All that decides what the model shows; `fps` alone moved one checkpoint's FVD from 288 to 435."""
    return (
        f"sampled: {settings.frames} frames of {settings.width}x{settings.height}, {settings.steps} steps, "
        f"guidance {settings.guidance:g}, fps {settings.fps:g}, motion bucket {settings.motion_bucket_id}, "
        f"noise augmentation {settings.noise_aug_strength:g}, "
        f"decoded {settings.decode_chunk_size} frames at a time"
        + ("" if precision == "fp32" else f", {precision}")
    )


def _choice(per_video: int | None) -> str:
    """The file of the test clips is hashed whole: which of them count depends on this."""
    return "" if per_video is None else f"at most {per_video} of each video"
