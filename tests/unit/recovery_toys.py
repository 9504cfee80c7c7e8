"""A four-level toy U-Net, a family that calls it as SVD's is called, and batches of nothing much."""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from vdmini_core.distillation.data import RecoveryBatches, RecoveryData
from vdmini_core.distillation.recovery_step import RecoveryStep
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.params import DistillParams

FRAMES, GRID, CLIPS, TOP = 4, 8, 6, 700.0
SETTINGS = SamplingSettings(frames=FRAMES, height=64, width=64, fps=7, steps=1)
PAIRS = (
    ("down_blocks.0", "down_blocks.0"),
    ("down_blocks.2", "down_blocks.2"),
    ("up_blocks.1", "up_blocks.1"),
)


class ToyFamily:
    """SVD's preconditioning and conditioning, without the pipeline around it."""

    name, denoiser_name = "toy", "unet"

    def feature_points(self, denoiser: nn.Module) -> dict[str, str]:
        points = {f"D.{i}.pair.0": f"down_blocks.{i}.attentions.0" for i in range(3)}
        return {**points, "D.3.pair.0": "down_blocks.3.resnets.0", "M": "mid_block"}

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        sigma = sigma_B[:, None, None, None, None]
        image = conditions.tensors["image_latents"][:, None].expand(-1, noisy_BFChw.shape[1], -1, -1, -1)
        sample = torch.cat([noisy_BFChw / (sigma**2 + 1).sqrt(), image], dim=2)
        ids = conditions.tensors["added_time_ids"]
        embeds = conditions.tensors["image_embeds"]
        out = denoiser(sample, sigma_B.log() / 4, embeds, ids, return_dict=False)[0]
        return noisy_BFChw / (sigma**2 + 1) - out * sigma / (sigma**2 + 1).sqrt()

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        if settings.steps == 1:
            return torch.full((count,), TOP)
        return torch.exp(torch.randn(count, generator=generator))


class ShallowFamily(ToyFamily):
    """A toy of two levels, for what takes many steps."""

    def feature_points(self, denoiser: nn.Module) -> dict[str, str]:
        return {"D.0.pair.0": "down_blocks.0.attentions.0", "D.1.pair.0": "down_blocks.1.resnets.0"}


SHALLOW_PAIRS = (("down_blocks.0", "down_blocks.0"), ("up_blocks.1", "up_blocks.1"))


def toy_unet(seed: int = 0, width: int = 32, levels: int = 4) -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(seed)
    inner = levels - 1
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=(*("CrossAttnDownBlockSpatioTemporal",) * inner, "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * inner),
        block_out_channels=(width,) * levels,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(1,) * levels,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=FRAMES,
    )
    # a fresh network ends in noise of scale 1; a real one does not
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.3)
    return unet


def toy_data(seed: int = 0) -> RecoveryData:
    torch.manual_seed(seed)
    given = {
        "image_latents": torch.randn(CLIPS, 4, GRID, GRID),
        "image_embeds": torch.randn(CLIPS, 1, 16),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(CLIPS, 1),
    }
    return RecoveryData(torch.randn(CLIPS, FRAMES, 4, GRID, GRID), Conditions(given))


def toy_batches(
    batch_size: int = 2, settings: SamplingSettings = SETTINGS, dropout: float = 0.0
) -> RecoveryBatches:
    return RecoveryBatches(toy_data(), ToyFamily(), settings, batch_size, seed=3, dropout=dropout)  # type: ignore[arg-type]


def toy_params(**changes: object) -> DistillParams:
    return DistillParams.model_validate({"steps": 10, "batch_size": 2, "warmup_steps": 2, **changes})


def toy_step(
    params: DistillParams | None = None, student_seed: int = 1, shallow: bool = False, **kwargs: object
) -> RecoveryStep:
    params = params or toy_params()
    family, pairs, levels = (ShallowFamily(), SHALLOW_PAIRS, 2) if shallow else (ToyFamily(), PAIRS, 4)
    example = toy_batches().batch(0)
    return RecoveryStep(
        family,
        toy_unet(student_seed, levels=levels),
        toy_unet(0, levels=levels),
        pairs,
        params,
        example,
        **kwargs,  # type: ignore[arg-type]
    )
