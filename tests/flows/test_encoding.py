"""Latents by Ray Data: two workers make the bytes that this process makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.encoding import encode_inputs
from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from vdmini_core.artifacts import tree_digests, write_json
from vdmini_core.data.clips import save_clips
from vdmini_core.distillation.latents import StoredLatents, shard_path
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.registry import load_settings, save_pipeline
from vdmini_core.params import Params
from vdmini_core.teacher.architecture import build_pipeline

COUNT = 25  # four shards, two a worker


def job_of(root: Path, name: str, workers: int, **distill: Any) -> StageJob:
    params = Params.model_validate(
        {"base": {"threads": 1}, "distill": {"encode_workers": workers, "keep_latents": False, **distill}}
    )
    work = root / name
    work.mkdir(exist_ok=True)
    return StageJob(root, params, root / "out", work, QuietMonitor())


@pytest.mark.timeout(900)
def test_two_workers_make_the_bytes_of_this_process_and_what_is_there_stays(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    prepare, teacher = (tmp_path / "artifacts" / stage for stage in ("prepare", "teacher"))
    for folder in (prepare, teacher):
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {})
    save_pipeline(build_pipeline("nano", 0), teacher / "pipeline", None)
    small = {"frames": 2, "height": 16, "width": 16}
    settings = replace(load_settings(teacher / "pipeline"), **small)  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (COUNT, 2, 16, 16, 3), dtype=torch.uint8, generator=noise)
    save_clips(prepare, "train", clips, clips.shape)
    here = encode_inputs(job_of(tmp_path, "here", 0), settings)
    there = encode_inputs(job_of(tmp_path, "there", 2), settings)
    assert tree_digests(there) == tree_digests(here)
    assert len(StoredLatents(there)) == COUNT and len(list(there.iterdir())) == 6  # nothing else is left
    kept = shard_path(there, 8).stat().st_mtime_ns
    shard_path(there, 0).unlink()
    encode_inputs(job_of(tmp_path, "there", 2), settings)
    assert shard_path(there, 8).stat().st_mtime_ns == kept and tree_digests(there) == tree_digests(here)
    _stay_for_the_next_recovery(tmp_path, settings)


def _stay_for_the_next_recovery(root: Path, settings: SamplingSettings) -> None:
    """Other loss weights find them, whatever key the stage then has; another seed's take their place."""
    kept = encode_inputs(job_of(root, "first", 0, keep_latents=True), settings)
    made = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.safetensors")}
    assert len(made) == 4
    again = encode_inputs(job_of(root, "second", 0, keep_latents=True, lambda_icd=3.0, steps=7), settings)
    assert again == kept and {p.name: p.stat().st_mtime_ns for p in kept.glob("*.safetensors")} == made
    job = job_of(root, "third", 0, keep_latents=True)
    seeded = job.params.model_copy(update={"base": job.params.base.model_copy(update={"seed": 5})})
    other = encode_inputs(replace(job, params=seeded), settings)
    assert other != kept and not kept.exists() and other.parent == root / ".vdmini" / "latents"
