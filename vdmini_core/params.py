"""Typed parameters: `params.yaml` -> one frozen model per stage; unknown keys name the nearest known one.

Values live here, live objects (models, clients, loaders) are passed as arguments. After `load_params`
only these objects travel.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vdmini_core.errors import ParamsError
from vdmini_core.yaml_text import read_yaml_file

_SHOWN = 20  # errors told at once


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, no NaN or infinite numbers, defaults checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class BaseParams(Section):
    """What every stage needs."""

    seed: int = Field(0, ge=0, lt=2**31, description="root of every random number")
    threads: int = Field(
        2, ge=1, le=256, description="torch threads of a stage, shared by its workers; bytes depend on it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    hardware: Literal["a100-80gb", "h100", "h200"] | None = Field(
        None, description="GPU, one for each worker, that `run --dry-run` counts memory and time of"
    )


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


FIXED_RECIPES = ("paper", "larger", "manual")  # they follow no budget and read no profile
Granularity = Literal["pair", "block", "both", "temporal"]


class ProfileParams(Section):
    """Sensitivity of every unit."""

    clips: int = Field(4, ge=4, description="validation clips each unit is tried on")
    max_clips: int | None = Field(
        8,
        ge=4,
        description="where the order of paired errors is open, units meet up to so many clips",
    )
    granularity: Granularity = Field(
        "both", description="temporal: pairs, blocks, and the temporal sub-layers inside pairs and M too"
    )
    variants: tuple[Literal["removed", "replaced"], ...] = Field(("removed",), min_length=1)
    timing_repeats: int = Field(3, ge=1)
    workers: int = Field(1, ge=1, description="Ray actors at once; 1 runs without Ray")
    shared_gib: float = Field(
        1.0, ge=0, description="memory a worker may use for what all units share; bytes do not depend on it"
    )


class PlanParams(Section):
    """What to remove."""

    recipe: Literal["paper", "larger", "auto", "manual", "magnitude", "random", "depgraph"] = "auto"
    units: tuple[str, ...] = Field((), description="units to remove, for recipe: manual")
    max_params_ratio: float | None = Field(None, gt=0, le=1, description="student / teacher parameters")
    max_flops_ratio: float | None = Field(None, gt=0, le=1, description="student / teacher FLOPs")
    max_latency_ratio: float | None = Field(None, gt=0, le=1, description="needs a frozen timing file")
    timing: str | None = Field(None, description="frozen timing file under timing/, for max_latency_ratio")
    metric: Literal["total", "content", "motion", "paired"] = Field(
        "paired",
        description="damage that the automatic recipe minimises; by `paired` the best are tried together",
    )
    frontier_points: int = Field(
        4, ge=0, le=64, description="sizes at which the solver's best cut is tried too, for the picture"
    )
    vae_decoder: Literal["none", "paper", "light"] = Field(
        "none",
        description="the VAE decoder too: as the paper, or to a fifth of its FLOPs; 32 channels a step",
    )

    @model_validator(mode="after")
    def _budget_fits_recipe(self) -> PlanParams:
        budgets = (self.max_params_ratio, self.max_flops_ratio, self.max_latency_ratio)
        if self.recipe in ("auto", "magnitude", "random", "depgraph") and not any(
            b is not None for b in budgets
        ):
            raise ValueError(
                f"recipe: {self.recipe} needs a budget: max_params_ratio, max_flops_ratio, max_latency_ratio"
            )
        if self.max_latency_ratio is not None and not self.timing:
            raise ValueError("max_latency_ratio needs `timing`, a frozen file of measured unit times")
        if self.recipe == "manual" and not self.units:
            raise ValueError("recipe: manual needs `units`, the names to remove (see `vdmini inspect`)")
        return self


class PruneParams(Section):
    """Surgery."""

    verify: bool = Field(True, description="reload the student and compare one forward pass exactly")


class DecoderRecoveryParams(Section):
    """Recovery of a cut VAE decoder (paper, Appendix A); counts where plan.vae_decoder is not none."""

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(2, ge=1, description="crops a step")
    crop_cells: int = Field(
        16, ge=4, description="latent cells of a crop's sides; norms see crops, so large ones are better"
    )
    crop_frames: int = Field(4, ge=1)
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    warmup_steps: int = Field(10, ge=0)
    lambda_perceptual: float = Field(0.1, ge=0, description="features of the VAE's own encoder")
    lambda_adversarial: float = Field(0.005, ge=0)
    adversarial_start: float = Field(
        0.75, ge=0, le=1, description="share of the steps in which the discriminator learns alone"
    )
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(20, ge=1)


class DistillParams(Section):
    """ICMD recovery: L = L_task + lambda_icd L_ICD + lambda_mca L_MCA (paper Sec. 3.3, Table 5)."""

    depth: Literal["auto", "none", "lora", "full"] = Field(
        "full",
        description="what learns: nothing, low-rank adapters (merged at the end), all weights; auto: by cut",
    )
    lora_rank: int = Field(16, ge=1, le=1024)
    lora_alpha: int = Field(16, ge=1, description="adapters count lora_alpha / lora_rank times")
    auto_lora_from: float = Field(
        0.02, ge=0, le=1, description="auto: share removed (parameters or FLOPs) below which nothing learns"
    )
    auto_full_from: float = Field(
        0.15, ge=0, le=1, description="auto: share removed from which every weight learns"
    )
    inputs: Literal["latents", "videos"] = Field(
        "latents", description="latents: encoded once, beforehand; videos: by each worker, batch by batch"
    )
    keep_latents: bool = Field(
        True, description="keep them in .vdmini/latents for the next recovery from the same clips and teacher"
    )
    encode_workers: int = Field(
        0, ge=0, le=256, description="Ray Data workers that make the latents; 0: this process makes them"
    )
    steps: int = Field(48, ge=1)
    batch_size: int = Field(2, ge=1, description="clips per step over all workers")
    workers: int = Field(2, ge=1, description="Ray Train workers")
    min_workers: int = Field(
        0, ge=0, description="fewest workers it starts or goes on with while there are no more; 0: all"
    )
    learning_rate: float = Field(5e-4, gt=0, lt=1)
    temporal_learning_rate_scale: float = Field(1.0, gt=0, le=10)
    head_learning_rate: float = Field(3e-4, gt=0, lt=1, description="discriminator heads")
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lambda_task: float = Field(1.0, ge=0)
    lambda_icd: float = Field(0.1, ge=0)
    lambda_mca: float = Field(1.0, ge=0)
    task_loss: Literal["auto", "reconstruction", "teacher", "consistency"] = Field(
        "auto",
        description="against real clips, the teacher's answer, or along its path; auto: as it was trained",
    )
    icd_normalise: bool = Field(True, description="divide each layer by the teacher's own feature scale")
    mca_generator: Literal["hinge", "log"] = "hinge"
    mca_start_step: int = Field(0, ge=0, description="the heads learn alone before this step")
    ema_decay: float = Field(0.95, ge=0, lt=1)
    lambda_feature_matching: float = Field(
        0.0, ge=0, description="student's clip against the teacher's in the discriminator's encoder"
    )
    r1_gamma: float = Field(0.0, ge=0, description="R1 penalty on the discriminator's heads")
    precision: Literal["fp32", "bf16"] = "fp32"
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="fsdp2: student and teacher in parts over the workers, for what fits no single one"
    )
    accumulation: int = Field(1, ge=1, description="slices a worker's share of a batch is computed in")
    activation_checkpointing: bool = Field(False, description="compute twice what would have to be kept")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="of the student; adamw8bit needs bitsandbytes or torchao"
    )
    checkpoint_every: int = Field(16, ge=1, description="steps between checkpoints")
    max_failures: int = Field(3, ge=0, description="worker failures survived per run")
    conditioning_dropout: float = Field(0.0, ge=0, lt=1)
    rollbacks: int = Field(
        2, ge=0, description="times a run that breaks goes back to its last checkpoint with smaller rates"
    )
    rollback_rate_scale: float = Field(0.5, gt=0, lt=1, description="learning rates are multiplied by it")
    sample_every: int = Field(
        0, ge=0, description="steps between videos of the averaged student; 0: at the end alone"
    )
    sample_clips: int = Field(2, ge=0, description="validation clips shown beside the teacher's")
    validate_every: int = Field(
        0,
        ge=0,
        description="steps between measurements of the averaged student against the teacher; 0: never",
    )
    validate_clips: int = Field(16, ge=4, description="validation clips measured")
    select: Literal["last", "best"] = Field("last", description="the averaged student that is kept")
    select_by: Literal["fvd", "paired_mse"] = Field(
        "fvd", description="best is smallest: the Fréchet distance, or the error of latents, clip by clip"
    )
    decoder: DecoderRecoveryParams = DecoderRecoveryParams()

    @model_validator(mode="after")
    def _whole_batches(self) -> DistillParams:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        for workers in range(self.min_workers or self.workers, self.workers + 1):
            named = f"workers {workers}" + (" (from min_workers on)" if workers < self.workers else "")
            if self.batch_size % workers:
                raise ValueError(f"batch_size {self.batch_size} is not a multiple of {named}")
            if self.batch_size // workers % self.accumulation:
                raise ValueError(
                    f"a worker's share of {self.batch_size // workers} clips (batch_size / {named}) is not "
                    f"a multiple of accumulation {self.accumulation}"
                )
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillParams:
        if (self.r1_gamma or self.lambda_feature_matching) and not self.lambda_mca:
            raise ValueError(
                "r1_gamma and lambda_feature_matching need the discriminator: lambda_mca above 0"
            )
        if self.parallel == "fsdp2" and self.optimizer == "adamw8bit":
            raise ValueError("adamw8bit keeps its state in blocks that fsdp2 cannot take apart: use adamw")
        if self.parallel == "fsdp2" and self.depth in ("lora", "auto"):
            raise ValueError("adapters are small: parallel: ddp trains them; fsdp2 wants depth: full")
        if self.lambda_task == self.lambda_icd == self.lambda_mca == 0:
            raise ValueError("lambda_task, lambda_icd and lambda_mca are all 0: nothing would be learned")
        if self.auto_full_from < self.auto_lora_from:
            raise ValueError(
                f"auto_full_from {self.auto_full_from} is below auto_lora_from {self.auto_lora_from}"
            )
        return self

    @model_validator(mode="after")
    def _best_of_something(self) -> DistillParams:
        if self.select == "best" and not self.validate_every:
            raise ValueError("select: best needs validate_every, the steps between measurements")
        return self


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


class EvaluateParams(Section):
    """Quality and speed of teacher, pruned and recovered."""

    clips: int = Field(24, ge=2, description="test clips")
    fvd: FvdParams = FvdParams()
    latency_repeats: int = Field(3, ge=1)
    latency_warmup: int = Field(1, ge=0)
    latency_batch: int = Field(1, ge=1, description="clips per call when latency is measured")
    videos: int = Field(6, ge=0, description="clips written as side-by-side videos")
    vbench: VBenchParams = VBenchParams()


ROUND_TAGS = ("vdmini.round", "vdmini.size")  # of a progressive run: the gate does not look at them


class RegisterParams(Section):
    """MLflow model registry."""

    name: str = Field("vdmini-mini", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    alias: str = Field("candidate", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    tags: dict[str, str] = Field({}, description="put on the version beside the evidence")

    @model_validator(mode="after")
    def _evidence_is_ours(self) -> RegisterParams:
        if ours := sorted(key for key in self.tags if key.startswith("vdmini.") and key not in ROUND_TAGS):
            raise ValueError(f"tags: `{ours[0]}` is what the gate believes: only `register` writes vdmini.*")
        return self


class PromoteParams(Section):
    """The gate between candidate and champion."""

    alias: str = Field("champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    max_fvd_teacher_ratio: float = Field(
        1.0, gt=0, le=1, description="recovered / pruned distance to the teacher must stay below"
    )
    max_fvd_regression: float = Field(0.05, ge=0, description="share by which FVD may exceed the champion's")
    min_speedup: float = Field(1.0, gt=0, description="the denoiser's speed-up over the teacher")
    min_gain: float = Field(
        0.05, ge=0, lt=1, description="gain in speed or size that equal quality needs to replace the champion"
    )


class ReportParams(Section):
    """The page people look at."""

    title: str = "VDMini"
    videos: int = Field(6, ge=0, description="side-by-side clips shown")


class Params(Section):
    """All of `params.yaml`, one section per stage."""

    base: BaseParams = BaseParams()
    prepare: PrepareParams = PrepareParams()
    teacher: TeacherParams = TeacherParams()
    sampling: SamplingParams = SamplingParams()
    profile: ProfileParams = ProfileParams()
    plan: PlanParams = PlanParams(max_flops_ratio=0.69)
    prune: PruneParams = PruneParams()
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportParams = ReportParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    promote: PromoteParams = PromoteParams()

    @model_validator(mode="after")
    def _clips_suffice(self) -> Params:
        if self.profile.clips > self.prepare.clips.validation:
            raise ValueError(
                f"profile.clips {self.profile.clips} exceeds prepare.clips.validation "
                f"{self.prepare.clips.validation}"
            )
        if self.evaluate.clips > self.prepare.clips.test:
            raise ValueError(
                f"evaluate.clips {self.evaluate.clips} exceeds prepare.clips.test {self.prepare.clips.test}"
            )
        return self

    @model_validator(mode="after")
    def _clips_serve_the_protocol(self) -> Params:
        fvd, prepare = self.evaluate.fvd, self.prepare
        if fvd.extractor == "embedded":
            return self
        if (fvd.clips or 0) > self.evaluate.clips:
            raise ValueError(f"evaluate.fvd.clips {fvd.clips} exceeds evaluate.clips {self.evaluate.clips}")
        every = prepare.fps / (fvd.fps or prepare.fps)
        if abs(every - round(every)) > 1e-6 or every < 1:
            raise ValueError(
                f"evaluate.fvd.fps {fvd.fps:g} is not prepare.fps {prepare.fps:g} divided by a whole number"
            )
        span = ((fvd.frames or 1) - 1) * round(every) + 1
        if span > prepare.frames:
            raise ValueError(
                f"evaluate.fvd.frames {fvd.frames} span {span} prepared frames: "
                f"prepare.frames {prepare.frames} is too few"
            )
        return self


def known_keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Every dotted key that `params.yaml` may hold."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        dotted = prefix + (info.alias or name)
        keys.append(dotted)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, dotted + ".")
    return keys


def nearest_key(key: str) -> str | None:
    """The known dotted key most like `key`, or None where nothing is near."""
    keys = known_keys()
    tail = key.rsplit(".", 1)[-1]
    by_tail = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not close:
        close = [by_tail[t] for t in difflib.get_close_matches(tail, list(by_tail), n=1, cutoff=0.6)]
    return close[0] if close else None


def parse_params(data: Any, origin: str = "params.yaml") -> Params:
    """Turn plain data into typed parameters.

    Raises:
        ParamsError: naming each wrong key or value, and the nearest known key for an unknown one.
    """
    if not isinstance(data, dict):
        raise ParamsError(
            f"{origin} holds no parameters", expected="a mapping of sections", found=type(data).__name__
        )
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        lines = [_explain(item) for item in wrong[:_SHOWN]]
        if len(wrong) > _SHOWN:
            lines.append(f"and {len(wrong) - _SHOWN} more")
        raise ParamsError(
            f"{origin} cannot be used:\n" + "\n".join(f"  - {line}" for line in lines),
            fix="correct it, or start again from `--profile mini`; `vdmini doctor` checks it",
        ) from None


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = nearest_key(key)
        return f"unknown key `{_cut(key)}`" + (f": did you mean `{near}`?" if near else "")
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = "" if isinstance(value, dict | BaseModel) else f" (found {_cut(repr(value))})"
    return f"`{_cut(key) or 'params'}`: {message}{shown}"


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def load_params(path: Path) -> Params:
    """Read a `params.yaml`.

    Raises:
        ParamsError: when it is missing, not YAML, or does not fit.
    """
    try:
        data = read_yaml_file(path)
    except FileNotFoundError:
        raise ParamsError(
            f"there is no {path.name} here",
            expected=f"a project folder with {path.name} and dvc.yaml",
            found=str(path.parent.resolve()),
            fix="run inside the checkout, or lay out a project with `vdmini init DIR`",
        ) from None
    return parse_params(data if data is not None else {}, path.name)


def section_dict(params: Params, name: str) -> dict[str, Any]:
    """One section as plain JSON-able data, under the name it has in `params.yaml`."""
    data = params.model_dump(mode="json", by_alias=True)
    if name not in data:
        raise ParamsError(f"there is no section `{name}`", expected=", ".join(data))
    return data[name]


def is_number(value: object) -> TypeGuard[float]:
    """True for finite ints and floats (bools apart)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
