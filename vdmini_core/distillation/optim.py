"""Optimisers, learning rate and moving average of the recovery: small pieces, each a function or two."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.distillation.sharding import part, whole
from vdmini_core.errors import TrainingError
from vdmini_core.params import DistillParams

FINAL_RATE = 0.05  # share of the learning rate left at the last step
HEAD_BETAS = (0.5, 0.99)  # little momentum: the heads chase a moving student


TEMPORAL_PARTS = ("temporal", "time_mixer", "time_pos_embed")  # SVD
TEMPORAL_MODULES = {
    "temp_convs",
    "temp_attentions",
    "transformer_in",
}  # ModelScope
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def is_temporal(name: str) -> bool:
    """True for parameters of temporal layers, of their mixers with spatial ones and of the frame's number."""
    return any(part in name for part in TEMPORAL_PARTS) or bool(TEMPORAL_MODULES & set(name.split(".")))


def student_optimizer(student: nn.Module, params: DistillParams) -> torch.optim.Optimizer:
    """AdamW with separate learning rates for spatial and temporal layers (the fragile ones in SVD).

    Raises:
        TrainingError: 8-bit AdamW asked for where no library has it.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_temporal(name) == temporal], "scale": scale}
        for temporal, scale in ((False, 1.0), (True, params.temporal_learning_rate_scale))
    ]
    groups = [group for group in groups if group["params"]]
    rates: dict[str, Any] = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if params.optimizer == "adamw8bit":
        return adamw8bit()(groups, **rates)
    return torch.optim.AdamW(groups, **rates, fused=_fused(student))


def adamw8bit() -> Callable[..., torch.optim.Optimizer]:
    """AdamW with its two moments in 8 bits (arXiv 2110.02861), from bitsandbytes or torchao.

    Raises:
        TrainingError: when neither can be imported.
    """
    for library in ("bitsandbytes.optim", "torchao.optim"):
        try:
            found: Callable[..., torch.optim.Optimizer] = importlib.import_module(library).AdamW8bit
        except (ImportError, AttributeError):
            continue
        return found
    raise TrainingError(
        "there is no 8-bit AdamW in this environment",
        expected="the package bitsandbytes or torchao",
        found="neither",
        fix="install one of them, or use distill.optimizer=adamw",
    )


def _fused(module: nn.Module) -> bool:
    return all(parameter.device.type in FUSED_DEVICES for parameter in module.parameters())


def head_optimizer(heads: nn.Module, params: DistillParams) -> torch.optim.AdamW:
    """AdamW for the discriminator's heads."""
    return torch.optim.AdamW(
        heads.parameters(),
        lr=params.head_learning_rate,
        betas=HEAD_BETAS,
        weight_decay=0.0,
        fused=_fused(heads),
    )


def rate_at(step: int, params: DistillParams) -> float:
    """Share of the learning rate at step `step` (from 0): warm-up, then half a cosine to `FINAL_RATE`."""
    warmup = min(params.warmup_steps, params.steps // 2)  # a short run must not end inside its warm-up
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, params.steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times the group's own scale."""
    for group in optimizer.param_groups:
        scaled = rate * group.get("scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)  # torchao keeps the rate in a tensor and refuses another one
        else:
            group["lr"] = scaled


class MovingAverage:
    """Exponential moving average of what learns; short at first, so that it forgets the cut model.

    The decay at update t is min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present parameters, those that learn."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = dict(model.named_parameters())
        current = [part(parameters[name].detach()) for name in self.tensors]
        torch._foreach_lerp_([part(tensor) for tensor in self.tensors.values()], current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's parameters with the average."""
        parameters = dict(model.named_parameters())
        for name, tensor in self.tensors.items():
            parameters[name].copy_(tensor)


def gradients(module: nn.Module) -> Iterator[Tensor]:
    """Gradients of a module's parameters, zeros where none arrived: every worker holds the same list."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            yield parameter.grad


def part_norms(student: nn.Module, heads: nn.Module) -> dict[str, float]:
    """Norms of the present gradients of spatial and temporal layers and of the heads, where there are any."""
    parts: dict[str, list[Tensor]] = {"spatial": [], "temporal": [], "heads": []}
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            parts["temporal" if is_temporal(name) else "spatial"].append(parameter.grad)
    parts["heads"] = [p.grad for p in heads.parameters() if p.grad is not None]
    norms = {name: whole(nn.utils.get_total_norm(grads)).float() for name, grads in parts.items() if grads}
    return dict(zip(norms, torch.stack([*norms.values()]).tolist(), strict=True)) if norms else {}
