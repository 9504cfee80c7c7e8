"""Parameters of what the work starts from: clips, teacher, and how both are sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vdmini_core.params.section import Section


class SplitClips(Section):
    """Clips per split."""

    train: int = Field(128, ge=1)
    validation: int = Field(32, ge=1)
    test: int = Field(32, ge=2)


class PrepareParams(Section):
    """Videos -> clips of one shape."""

    source: Literal["procedural", "folder"] = "procedural"
    videos: str = Field("videos", min_length=1, description="folder tree of videos, for source: folder")
    additions: tuple[str, ...] = Field(
        (), description="lists of videos that came later, in order; `vdmini prepare --add DIR` writes them"
    )
    frames: int = Field(8, ge=2, le=256)
    height: int = Field(64, ge=16, le=4096, multiple_of=8)
    width: int = Field(64, ge=16, le=4096, multiple_of=8)
    fps: float = Field(8.0, gt=0, le=240, description="clips are sampled by time at this rate")
    level: Literal["easy", "normal", "hard"] = Field("normal", description="difficulty of procedural clips")
    clips: SplitClips = SplitClips()
    max_clips_per_video: int = Field(64, ge=1, description="a long film must not drown the others")
    min_motion: float = Field(
        0.5, ge=0, description="mean absolute change between frames (0-255) below which a clip is static"
    )
    decode_timeout_s: float = Field(60.0, gt=0, description="per file, in a worker that is killed beyond it")
    workers: int = Field(2, ge=1, le=256, description="decoding processes")
    captions: Literal["files", "filename"] = Field(
        "files",
        description="prompts of a folder: NAME.txt, captions.csv or .jsonl; filename: names where these lack",
    )


class TeacherTrainParams(Section):
    """Training of a teacher of our own (`source: train`)."""

    size: Literal["nano", "mini"] = "mini"
    vae_steps: int = Field(1200, ge=1, description="of the autoencoder's decoder")
    steps: int = Field(2000, ge=1, description="of the U-Net")
    window_share: float = Field(
        0.4, ge=0, le=1, description="first share of the steps, on windows of half the height and width"
    )
    quiet_share: float = Field(
        0.85, ge=0, le=1, description="first share, frames told apart by D.2's second pair alone"
    )
    batch_size: int = Field(2, ge=1, description="clips a step")
    window_batch_size: int = Field(4, ge=1, description="windows a step")
    learning_rate: float = Field(6e-4, gt=0, lt=1)
    probe_every: int = Field(300, ge=1, description="steps between measurements and pictures")
    checkpoint_every: int = Field(100, ge=1, description="steps a kill costs at most")


class TeacherParams(Section):
    """Where the pretrained teacher comes from."""

    source: Literal["bundled", "path", "hub", "train"] = "bundled"
    bundled: str = Field(
        "mini", description="name of a teacher of the package: mini, nano, nano-t2v, nano-dit"
    )
    path: str = Field("teachers", min_length=1, description="diffusers pipeline directory, for source: path")
    hub_id: str | None = Field(None, description="owner/name on the Hugging Face hub, for source: hub")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="commit of the hub repository (40 hex digits)"
    )
    start: str = Field(
        "teachers/start",
        min_length=1,
        description="folder of a student of this teacher to go on from: profile, plan and prune see it",
    )
    architecture: str | None = Field(
        None, description="built-in name that `run --dry-run` plans with while the weights are not here"
    )
    obtain: str | None = Field(None, description="how to get the weights, told where they are missing")
    train: TeacherTrainParams = TeacherTrainParams()

    @model_validator(mode="after")
    def _hub_has_an_id(self) -> TeacherParams:
        if self.source == "hub" and not self.hub_id:
            raise ValueError("source: hub needs `hub_id`, as owner/name")
        return self


class SamplingParams(Section):
    """How teacher and student sample; None follows the pipeline directory's own `vdmini.json`."""

    steps: int | None = Field(None, ge=1, le=1000, description="denoising steps")
    guidance: float | None = Field(None, ge=1, description="classifier-free guidance scale, 1 is off")
    batch_size: int = Field(8, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="of all that samples or encodes; distill.precision rules the training",
    )
