"""Parameters of the recovery: of the denoiser, and of a cut VAE decoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vdmini_core.params.section import Section


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
    mca_loss: Literal["hinge", "paired"] = Field(
        "hinge", description="paired: each answer against the teacher's to the same clip (relativistic)"
    )
    mca_generator: Literal["hinge", "log"] = Field("hinge", description="the student's side of hinge")
    mca_start_step: int = Field(0, ge=0, description="the heads learn alone before this step")
    lambda_adversarial: float = Field(
        0.0, ge=0, description="as L_MCA with heads of its own, but against real clips: SF-V's own loss"
    )
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
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        share = self.batch_size // self.workers
        # Fewer workers (from min_workers on) have larger shares, even or not.
        if share % self.accumulation:
            raise ValueError(
                f"a worker's share of {share} clips (batch_size / workers {self.workers}) is not a multiple "
                f"of accumulation {self.accumulation}"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillParams:
        if self.mca_loss == "paired" and self.mca_generator == "log":
            raise ValueError("mca_generator log is a partner of mca_loss hinge: paired has its own")
        if self.lambda_feature_matching and not self.lambda_mca:
            raise ValueError("lambda_feature_matching needs the discriminator's encoder: lambda_mca above 0")
        if self.r1_gamma and not (self.lambda_mca or self.lambda_adversarial):
            raise ValueError("r1_gamma needs a discriminator: lambda_mca or lambda_adversarial above 0")
        if self.parallel == "fsdp2" and self.optimizer == "adamw8bit":
            raise ValueError("adamw8bit keeps its state in blocks that fsdp2 cannot take apart: use adamw")
        if self.parallel == "fsdp2" and self.depth in ("lora", "auto"):
            raise ValueError("adapters are small: parallel: ddp trains them; fsdp2 wants depth: full")
        if self.lambda_task == self.lambda_icd == self.lambda_mca == self.lambda_adversarial == 0:
            names = "lambda_task, lambda_icd, lambda_mca and lambda_adversarial"
            raise ValueError(f"{names} are all 0: nothing would be learned")
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
