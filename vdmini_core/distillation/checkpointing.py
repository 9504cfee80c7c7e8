"""Activation checkpointing: what a block computes inside is computed again when its gradient is."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vdmini_core.errors import TrainingError


def checkpoint_activations(*models: nn.Module) -> None:
    """Let diffusers models keep no more than the inputs of their layers, wherever gradient is wanted.

    A feature tap reads each output once: it is gone when the layers are computed for the second time.

    Raises:
        TrainingError: for a model that cannot.
    """
    for model in models:
        if not getattr(model, "_supports_gradient_checkpointing", False):
            raise TrainingError(
                f"{type(model).__name__} has no activation checkpointing",
                expected="a model that diffusers can do this with",
                fix="use distill.activation_checkpointing=false; distill.accumulation saves memory as well",
            )
        cast(Any, model).enable_gradient_checkpointing()
