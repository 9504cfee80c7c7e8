"""Optimisers, learning rate and moving average of the recovery: small pieces, each a function or two."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vdmini_core.params import DistillParams

FINAL_RATE = 0.05  # share of the learning rate left at the last step
HEAD_BETAS = (0.5, 0.99)  # little momentum: the heads chase a moving student


TEMPORAL_PARTS = ("temporal", "time_mixer", "time_pos_embed")


def is_temporal(name: str) -> bool:
    """True for parameters of temporal layers, of their mixers with spatial ones and of the frame's number."""
    return any(part in name for part in TEMPORAL_PARTS)


def student_optimizer(student: nn.Module, params: DistillParams) -> torch.optim.AdamW:
    """AdamW with separate learning rates for spatial and temporal layers (the fragile ones in SVD)."""
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_temporal(name) == temporal], "scale": scale}
        for temporal, scale in ((False, 1.0), (True, params.temporal_learning_rate_scale))
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)


def head_optimizer(heads: nn.Module, params: DistillParams) -> torch.optim.AdamW:
    """AdamW for the discriminator's heads."""
    return torch.optim.AdamW(
        heads.parameters(), lr=params.head_learning_rate, betas=HEAD_BETAS, weight_decay=0.0, fused=True
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
        group["lr"] = rate * group.get("scale", 1.0)


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
        current = [parameters[name].detach() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - decay)

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
