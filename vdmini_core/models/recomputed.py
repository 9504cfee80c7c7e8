"""Layers of ModelScope-type U-Nets that diffusers cannot compute a second time, made to."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

LISTS = ("resnets", "temp_convs")


class Recomputed:
    """Mixed into a layer's class: its inside is computed again for the backward pass where that is on.

    The switch and the function are those that `ModelMixin.enable_gradient_checkpointing` sets.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own."""
        inside: Any = super().forward  # type: ignore[misc]
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(functools.partial(inside, **kwargs), *args)
        return inside(*args, **kwargs)


def recompute_layers(model: nn.Module) -> None:
    """Let the resnets and temporal convolutions of a U-Net's blocks know the switch; attention does.

    The class is changed, not the instance: a deep copy of the model is whole and its own.
    """
    for path, layer in list(model.named_modules()):
        listed = path.split(".")[-2:-1]
        weighted = next(layer.parameters(), None) is not None
        if listed and listed[0] in LISTS and weighted and not hasattr(layer, "gradient_checkpointing"):
            cls: Any = type(layer)
            layer.__class__ = _recomputed(cls)


@functools.cache
def _recomputed(cls: Any) -> Any:
    return type(cls.__name__, (Recomputed, cls), {"__module__": cls.__module__})
