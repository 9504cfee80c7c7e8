"""Part of `distill`: what it trains on, encoded once by this process or by Ray Data, or on the way.

A worker of Ray Data holds the teacher once and makes whole shards. Where the line lies: every worker gets
`WORKER_SHARDS` at least, and where that leaves a single one, this process does its work, for Ray's start and
another copy of the teacher in memory would gain nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import StageJob
from vdmini_core.artifacts import code_version, digest_of, sha256_file
from vdmini_core.errors import DataError, TrainingError
from vdmini_core.progress import track

if TYPE_CHECKING:
    from torch import nn

    from vdmini_core.data.clip_source import ClipSource
    from vdmini_core.distillation.data import RecoverySource
    from vdmini_core.distillation.encoding import ClipEncoder
    from vdmini_core.models.base import SamplingSettings

WORKER_SHARDS = 2


@dataclass(frozen=True)
class EncodeSpec:
    """What an encoder is made from, as plain data: paths are absolute, on storage that every worker sees.

    Attributes:
        teacher: pipeline directory.
        prepared: outputs of `prepare`.
        settings: fields of `SamplingSettings`.
        seed: of the conditions.
        device: `cpu` or `cuda`.
        threads: torch threads; bytes depend on them.
        precision: `sampling.precision`, of autoencoder and encoders.
    """

    teacher: str
    prepared: str
    settings: dict[str, Any]
    seed: int
    device: str
    threads: int
    precision: str = "fp32"

    def open(self, denoiser: nn.Module | None = None) -> tuple[ClipEncoder, ClipSource]:
        """The encoder and the training clips.

        Args:
            denoiser: the teacher's, where it is loaded already; the pipeline's own copy is let go.

        Raises:
            DataError: when clips or prompts are missing.
        """
        from vdmini_core.data.clip_source import stored_clips
        from vdmini_core.data.prompts import load_prompts
        from vdmini_core.distillation.encoding import ClipEncoder
        from vdmini_core.models.base import SamplingSettings
        from vdmini_core.models.precision import DTYPES
        from vdmini_core.models.registry import family_of, load_pipeline

        family, prepared = family_of(Path(self.teacher)), Path(self.prepared)
        prompts = load_prompts(prepared, "train") if "prompts" in family.needs else None
        if denoiser is None:
            pipeline = load_pipeline(Path(self.teacher), self.device, DTYPES[self.precision])
        else:  # on the CPU first: two of them might not fit on the device
            pipeline = load_pipeline(Path(self.teacher), dtype=DTYPES[self.precision])
            setattr(pipeline, family.denoiser_name, denoiser)
            for part in pipeline.components.values():
                if hasattr(part, "parameters") and part is not denoiser:
                    part.to(self.device)
        settings = SamplingSettings(**self.settings)
        return ClipEncoder(family, pipeline, settings, self.seed, prompts), stored_clips(prepared, "train")


def encode_inputs(job: StageJob, settings: SamplingSettings) -> Path:
    """Make the shards that are missing, where `distill.inputs` asks for latents; the folder they are in.

    Raises:
        DataError: no clips, no prompts for a teacher that needs them, or shards of something else.
        TrainingError: when the workers fail.
    """
    from tasks.models import device_of, in_half, prompts_of
    from vdmini_core.data.clip_source import stored_clips
    from vdmini_core.data.shards import split_digest
    from vdmini_core.distillation.latents import complete, missing_shards
    from vdmini_core.models.registry import family_of

    teacher, prepared = job.artifact("teacher"), job.artifact("prepare")
    prompts = prompts_of(job, family_of(teacher / "pipeline"), "train")
    shape = stored_clips(prepared, "train").shape
    if job.params.distill.inputs == "videos":
        return job.work / "latents"  # never made
    identity: dict[str, Any] = {
        "clips": split_digest(prepared, "train"),
        "teacher": sha256_file(teacher / "manifest.json"),
        "settings": asdict(settings),
    }
    if in_half(job):
        identity["precision"] = job.params.sampling.precision
    if prompts is not None:
        identity["prompts"] = list(prompts)
    spec = EncodeSpec(
        teacher=str((teacher / "pipeline").resolve()),
        prepared=str(prepared.resolve()),
        settings=asdict(settings),
        seed=job.params.base.seed,
        device=device_of(job),
        # whatever the number of workers, for the sake of the bytes
        threads=job.params.base.threads,
        precision=job.params.sampling.precision,
    )
    folder = latents_folder(
        job, {**identity, "device": spec.device, "threads": spec.threads, "seed": spec.seed}
    )
    missing = missing_shards(folder, shape, identity)
    if missing:
        made = _made(spec, folder, missing, job.params.distill.encode_workers)
        for _ in track(made, "encode clips", len(missing), "shard"):
            pass
    complete(folder, shape[0])
    return folder


def latents_folder(job: StageJob, identity: dict[str, Any]) -> Path:
    """Where the latents of these inputs lie; what belongs to others is let go.

    They stay when the stage is done and depend on nothing that a recovery is tuned by, so that the next loss
    weights, rates or cut find them; with `distill.keep_latents: false` they are scratch of this one stage.

    Args:
        job: the stage; it holds the project's lock, so nobody reads what is removed here.
        identity: everything the bytes depend on, but for the code, which is added.
    """
    if not job.params.distill.keep_latents:
        return (job.work / "latents").resolve()
    home = job.root / ".vdmini" / "latents"
    folder = home / digest_of({**identity, "code": code_version()})[:16]
    for other in home.iterdir() if home.is_dir() else ():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder.resolve()


def recovery_source(inputs: str, latents: Path, spec: EncodeSpec, teacher: nn.Module) -> RecoverySource:
    """Where a training worker finds its rows: stored latents, or clips that it encodes itself.

    Args:
        inputs: `distill.inputs`.
        latents: folder of the shards.
        spec: of the encoder; only `videos` makes one.
        teacher: the denoiser, which the encoder's pipeline then shares.
    """
    from vdmini_core.distillation.encoding import EncodedClips
    from vdmini_core.distillation.latents import StoredLatents

    return EncodedClips(*spec.open(teacher)) if inputs == "videos" else StoredLatents(latents)


def crew_size(workers: int, shards: int) -> int:
    """Ray workers for so many shards; 0 where this process makes them."""
    crew = min(workers, shards // WORKER_SHARDS)
    return crew if crew > 1 else 0


def _made(spec: EncodeSpec, folder: Path, missing: list[int], workers: int) -> Iterator[int]:
    """Make the shards; their first clips come as they are done."""
    crew = crew_size(workers, len(missing))
    return _on_ray(spec, folder, missing, crew) if crew else _here(spec, folder, missing)


def _here(spec: EncodeSpec, folder: Path, missing: list[int]) -> Iterator[int]:
    from vdmini_core.distillation.latents import encode_shard

    encoder, clips = spec.open()
    for start in missing:
        encode_shard(encoder, clips, folder, start)
        yield start
    if spec.device.startswith("cuda"):  # the training workers want this memory
        import torch

        del encoder
        torch.cuda.empty_cache()


class ShardEncoder:
    """One worker of Ray Data."""

    def __init__(self, spec: EncodeSpec, folder: str) -> None:
        import torch

        torch.set_num_threads(spec.threads)
        self.encoder, self.clips = spec.open()
        self.folder = Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards that begin with the clips `start`."""
        from vdmini_core.distillation.latents import encode_shard

        for start in batch["start"].tolist():
            encode_shard(self.encoder, self.clips, self.folder, start)
        return batch


def _on_ray(spec: EncodeSpec, folder: Path, missing: list[int], crew: int) -> Iterator[int]:
    from tasks.ray_runtime import gpus_for, python_path, ray_session

    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # read on import, unless that was before
    with ray_session(num_cpus=crew):
        import ray.data

        logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = min(1.0, gpus_for(crew) / crew) if spec.device == "cuda" else 0
        # one block and one batch a shard, so that a free worker takes the next and a lost one loses one
        starts = ray.data.from_items(
            [{"start": start} for start in missing], override_num_blocks=len(missing)
        )
        made = starts.map_batches(
            ShardEncoder,
            fn_constructor_args=(spec, str(folder)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=crew, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus,
            runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        )
        try:
            for row in made.iter_rows():
                yield int(row["start"])
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), DataError):
                raise cause from error
            raise TrainingError(
                "the workers that encode the training clips failed",
                found=str(error).strip().split("\n")[-1],
                fix="run again: shards that are there are not made again",
            ) from error
