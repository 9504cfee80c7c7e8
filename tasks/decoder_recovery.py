"""Part of `distill`: a cut VAE decoder learns to paint again. One process; the denoiser learns on Ray."""

from __future__ import annotations

import json
from typing import Any

from tasks.stage import StageJob
from vdmini_core.artifacts import sha256_file
from vdmini_core.progress import track

MEASURED_CLIPS = 16


def recover_vae_decoder(job: StageJob, pipeline: Any) -> dict[str, float]:
    """Recover the decoder of the student's pipeline in place, where it was cut; resumes after a kill.

    Returns:
        Metrics `vae_decoder.<when>.<measure>` on validation clips, before and after; empty where it is whole.
    """
    from vdmini_core.models.pruned_vae import AutoencoderKLTemporalPrunedDecoder

    if not isinstance(pipeline.vae, AutoencoderKLTemporalPrunedDecoder):
        return {}
    from tasks.models import device_of, load_teacher
    from vdmini_core.data.clip_source import stored_clips
    from vdmini_core.data.clips import load_clips
    from vdmini_core.data.shards import split_digest
    from vdmini_core.distillation.decoder_recovery import decoder_quality, recover_decoder

    prepared, device = job.artifact("prepare"), device_of(job)
    teacher = load_teacher(job, device)[0].vae
    student: Any = pipeline.vae.to(device)
    params = job.params.distill.decoder
    held_out = load_clips(prepared, "validation", MEASURED_CLIPS)
    before = decoder_quality(student, teacher, held_out)
    # its checkpoints are good for these clips, this teacher and this cut alone
    sources = (
        split_digest(prepared, "train"),
        sha256_file(job.artifact("teacher") / "manifest.json"),
        sha256_file(job.artifact("prune") / "manifest.json"),
    )
    workdir = job.work / "vae_decoder" / "-".join(digest[:12] for digest in sources)
    workdir.mkdir(parents=True, exist_ok=True)
    bar = iter(track(range(params.steps), "distill: VAE decoder", params.steps, "step"))
    reached = 0

    def on_log(row: dict[str, Any]) -> None:
        nonlocal reached
        job.monitor.metrics({f"vae_decoder/{k}": v for k, v in row.items() if k != "step"}, row["step"])
        for _ in range(row["step"] - reached):
            next(bar, None)
        reached = row["step"]

    clips = stored_clips(prepared, "train")
    rows = recover_decoder(student, teacher, clips, params, job.params.base.seed, workdir, on_log)
    for _ in bar:
        pass
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (job.out / "losses-vae-decoder.jsonl").write_text(lines, encoding="utf-8")
    after, whole = decoder_quality(student, teacher, held_out), decoder_quality(teacher, teacher, held_out)
    return {
        f"vae_decoder.{when}.{name}": value
        for when, found in (("teacher", whole), ("pruned", before), ("recovered", after))
        for name, value in found.items()
        if (when, name) != ("teacher", "psnr_teacher")
    }
