"""What a family is: the few things that differ between architectures, behind one small interface.

Shape letters: B batch, F frames, C channels, H height, W width (pixels), h w (latent), D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vdmini_core.models.inputs import ClipInputs, Need

Variant = Literal["removed", "replaced"]


@dataclass(frozen=True)
class Unit:
    """What may be removed: a (ResBlock, Attention) pair, its temporal sub-layer, a U-Net block, a DiT layer.

    Attributes:
        name: stable name: `D.1.pair.1`, `D.1.pair.1.temporal`, `D.1`, `M`, `U.2.pair.0`, `double.7`.
        kind: `pair`, `temporal`, `block` or `layer`.
        modules: dotted paths of its modules inside the denoiser.
        parameters: number of its parameters.
        flops: floating point operations of one pass (two per multiply-add), batch 1.
        removable: whether surgery can express its removal on its own.
        reason: why not, where it is not removable.
    """

    name: str
    kind: Literal["pair", "temporal", "block", "layer"]
    modules: tuple[str, ...]
    parameters: int
    flops: int
    removable: bool
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return {**asdict(self), "modules": list(self.modules)}


@dataclass(frozen=True)
class Conditions:
    """What the denoiser is told beside the noisy sample, for a batch of clips.

    `tensors` holds named tensors whose first dimension is B (SVD: `image_latents` (B, C, h, w),
    `image_embeds` (B, 1, D), `added_time_ids` (B, 3)), so that a batch can be sliced, cached and sent.
    """

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def slice(self, start: int, stop: int) -> Conditions:
        """Rows `start` to `stop` of every tensor."""
        return Conditions({name: tensor[start:stop] for name, tensor in self.tensors.items()})

    def select(self, index: Tensor) -> Conditions:
        """The rows `index` (1-d long) of every tensor."""
        return Conditions({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditions:
        """Move every tensor; cast the floating ones."""
        return Conditions(
            {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self.tensors.items()}
        )


@dataclass(frozen=True)
class SamplingSettings:
    """How a pipeline directory wants to be sampled (its `vdmini.json`, or the family's defaults).

    `latent_scale` is the pipeline's own: pixels per latent cell, 2 ** (VAE levels - 1). `load_settings`
    reads it from the VAE, so that everything that sees the denoiser alone knows the latent size. So are
    `frame_scale`, frames per latent frame (the first frame apart, which has its own), `rescaled_schedule`
    (noise levels are those of VideoCrafter2, which scales the clean sample), and what the scheduler shifts
    noise levels by: `flow_shift`, times of a flow-matching model or squared levels of CogVideoX; `log_shift`
    and `log_shift_per_token`, the logarithm of a further factor and what each latent cell adds (LTX-Video).
    """

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance: float = 1.0
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    decode_chunk_size: int = 8
    latent_scale: int = 8
    rescaled_schedule: bool = False
    frame_scale: int = 1
    flow_shift: float = 1.0
    log_shift: float = 0.0
    log_shift_per_token: float = 0.0

    @property
    def latent_frames(self) -> int:
        """Number of latent frames."""
        return (self.frames - 1) // self.frame_scale + 1

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents (h, w)."""
        return self.height // self.latent_scale, self.width // self.latent_scale


@dataclass(frozen=True)
class TracePoint:
    """One module in the order the data meets them; together they see the whole way through the denoiser.

    Attributes:
        path: dotted path in the denoiser.
        kept: whether its output reaches anything but the next module: a unit starts behind it, or a skip
            connection does. Of other outputs the shape is enough.
    """

    path: str
    kept: bool


@dataclass(frozen=True)
class Cut:
    """One decision of the planner: a removal with its exact, additive saving.

    Attributes:
        name: of the decision; the unit's own name where it is one unit.
        units: what it removes, as plans spell it.
        parameters: parameters saved.
        flops: operations of one pass saved.
        conflicts: names of decisions it cannot be combined with (they are part of it).
        optional: whether planners leave it alone unless a name or a row of the profile asks for it.
    """

    name: str
    units: tuple[str, ...]
    parameters: int
    flops: int
    conflicts: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Student:
    """A student and where each part of it comes from.

    Attributes:
        model: the student (on the meta device where only its shape was asked for).
        layer_map: student module path prefix -> teacher module path prefix, for every weight.
        removed: the removal in its one canonical spelling.
    """

    model: nn.Module
    layer_map: dict[str, str]
    removed: tuple[str, ...]


@runtime_checkable
class Family(Protocol):
    """One model family; implementations are stateless and registered by pipeline class name."""

    name: str
    denoiser_name: str  # component name in the pipeline: "unet" or "transformer"
    needs: tuple[Need, ...]  # what of `ClipInputs` its conditions are made from

    def units(self, denoiser: nn.Module, settings: SamplingSettings, granularity: str = "both") -> list[Unit]:
        """Every unit in the order the data meets them, with parameters and FLOPs.

        Granularity is `pair`, `block`, `both`, or `temporal`: both, and temporal sub-layers where it has any.
        """
        ...

    def bypass(
        self, denoiser: nn.Module, unit: str, variant: Variant, seed: int = 0
    ) -> AbstractContextManager[None]:
        """Within the context the unit is removed or replaced; afterwards the model is as before."""
        ...

    def trace_points(self, denoiser: nn.Module) -> list[TracePoint]:
        """Every module in the order the data meets them; every unit starts at one."""
        ...

    def feature_points(self, denoiser: nn.Module) -> dict[str, str]:
        """Unit or block name -> dotted path of the module whose output is its feature (B*F, C, h, w)."""
        ...

    def prune(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> nn.Module:
        """A new, smaller denoiser with the kept weights copied by the plan's own name map.

        `channels`: module path -> the inner channels that stay there (`vdmini_core.models.narrow`).
        """
        ...

    def outline(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> Student:
        """The student's shape and name map without its weights (meta device)."""
        ...

    def cuts(self, denoiser: nn.Module, settings: SamplingSettings) -> list[Cut]:
        """Everything the planner may decide on."""
        ...

    def paper_cut(self, denoiser: nn.Module) -> tuple[str, ...]:
        """The units the paper removes from this architecture."""
        ...

    def conditions(
        self, pipeline: Any, inputs: ClipInputs, settings: SamplingSettings, seed: int | Sequence[int]
    ) -> Conditions:
        """First frames, prompts or both, as the family `needs` -> what the denoiser is conditioned on.

        One seed serves every clip alike, a sequence gives each clip its own; batches do not matter.

        Raises:
            ModelError: when the inputs lack what the family needs.
        """
        ...

    def encode_clips(self, pipeline: Any, clips_BFHWC: Tensor) -> Tensor:
        """Clips uint8 (B, F, H, W, 3) -> scaled latents (B, F, C, h, w)."""
        ...

    def decode_latents(self, pipeline: Any, latents_BFChw: Tensor, settings: SamplingSettings) -> Tensor:
        """Scaled latents (B, F, C, h, w) -> clips uint8 (B, F, H, W, 3)."""
        ...

    def noise(self, denoiser: nn.Module, settings: SamplingSettings, seeds: Sequence[int]) -> Tensor:
        """Unit Gaussian noise (B, F, C, h, w), one generator per clip so that batches do not matter."""
        ...

    def denoise(
        self, denoiser: nn.Module, noisy_BFChw: Tensor, sigma_B: Tensor, conditions: Conditions
    ) -> Tensor:
        """One call of the denoiser with the base model's own preconditioning: predicted clean latents."""
        ...

    def sample(
        self,
        pipeline: Any,
        denoiser: nn.Module,
        noise_BFChw: Tensor,
        conditions: Conditions,
        settings: SamplingSettings,
    ) -> Tensor:
        """Unit noise -> clean latents (B, F, C, h, w), equal to the stock pipeline's own sampling."""
        ...

    def passes(self, denoiser: nn.Module, settings: SamplingSettings) -> int:
        """Passes of the denoiser for one clip in one step of `sample`: two where guidance needs both."""
        ...

    def training_sigmas(self, settings: SamplingSettings, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels (count,) for recovery: the top level alone for a one-step teacher."""
        ...
