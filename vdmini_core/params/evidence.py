"""Parameters of evaluate and report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from vdmini_core.params.section import Section


class FvdParams(Section):
    """The Fréchet distance of a published protocol beside the built-in measures; null: as prepared."""

    extractor: Literal["embedded", "i3d", "videomae"] = Field(
        "embedded", description="embedded: the built-in measures alone, and nothing below counts"
    )
    weights: str | None = Field(
        None, min_length=1, description="path, seen from the project folder, or address"
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of i3d's weights file; results are kept under it"
    )
    convention: Literal["videogpt", "styleganv", "cdfvd"] = Field(
        "videogpt", description="scaling, resizing and cropping in front of i3d"
    )
    layer: Literal["logits", "pooled"] = Field("logits", description="of i3d")
    bn_eps: float = Field(
        1e-5, description="of i3d's batch norms: 1e-5 as in FVD's line of code, 1e-3 as it was published"
    )
    clips: int | None = Field(None, ge=2, description="of each side, with fewer it is an error")
    clips_per_video: int | None = Field(None, ge=1, description="at most, of the real videos")
    frames: int | None = Field(None, ge=2, description="the first ones of each clip")
    fps: float | None = Field(None, gt=0, description="prepare.fps divided by a whole number")
    height: int | None = Field(None, ge=16, description="both sides are resized alike, with `width`")
    width: int | None = Field(None, ge=16)

    @field_validator("bn_eps")
    @classmethod
    def _one_of_two(cls, value: float) -> float:
        if value not in (1e-5, 1e-3):
            raise ValueError("1e-05 or 0.001")
        return value

    @model_validator(mode="after")
    def _both_sides_of_the_frame(self) -> FvdParams:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width go together")
        return self


class VBenchParams(Section):
    """Hand-over to VBench, which runs in its own environment (docs/metrics.md)."""

    suite: str | None = Field(
        None,
        min_length=1,
        description="VBench's full_info JSON, or a text file of one prompt a line; null: no videos written",
    )
    kind: Literal["i2v", "t2v"] = Field("i2v", description="which VBench: from images, or from text")
    images: str | None = Field(
        None,
        min_length=1,
        description="first frames for i2v: VBench-I2V's `crop` folder, or images named after the prompts",
    )
    seeds: int = Field(
        5, ge=1, le=5, description="videos a prompt; VBench looks for 5, fewer are a trial of the way there"
    )
    results: str = Field(
        "vbench", min_length=1, description="folder with VBench's result JSON, in a folder per model"
    )

    @model_validator(mode="after")
    def _images_for_i2v(self) -> VBenchParams:
        if self.suite is not None and self.kind == "i2v" and self.images is None:
            raise ValueError("kind: i2v needs `images`, the folder of first frames")
        return self


FEWEST_ROUNDS = 3  # of timing that tell a difference from the machine's noise


class EvaluateParams(Section):
    """Quality and speed of teacher, pruned and recovered."""

    clips: int = Field(24, ge=2, description="test clips")
    fvd: FvdParams = FvdParams()
    latency_repeats: int = Field(
        FEWEST_ROUNDS,
        ge=1,
        description="rounds of timing; with fewer than 3 no speed-up tells two plans apart",
    )
    latency_warmup: int = Field(1, ge=0)
    latency_batch: int = Field(1, ge=1, description="clips per call when latency is measured")
    videos: int = Field(6, ge=0, description="clips written as side-by-side videos")
    vbench: VBenchParams = VBenchParams()


class ReportParams(Section):
    """The page people look at."""

    title: str = "VDMini"
    videos: int = Field(6, ge=0, description="side-by-side clips shown")
