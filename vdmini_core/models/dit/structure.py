"""What families of transformers share: units, bypass, surgery, cuts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import Cut, SamplingSettings, Student, TracePoint, Unit, Variant
from vdmini_core.models.dit import layers
from vdmini_core.models.dit.counting import dit_flops
from vdmini_core.models.dit.layers import Layer, layers_of
from vdmini_core.models.dit.student import build_student
from vdmini_core.models.pruned_unet import swap_modules
from vdmini_core.models.removal import nearest
from vdmini_core.models.unet_family import reinitialised


class TransformerFamily:
    """The half of a family that looks at the transformer's structure alone, for every class of the table."""

    denoiser_name = "transformer"

    def units(self, denoiser: nn.Module, settings: SamplingSettings, granularity: str = "both") -> list[Unit]:
        """Every layer, or group of layers, in the order the data meets them; of any granularity the same."""
        flops = dit_flops(denoiser, settings)
        return [
            Unit(
                name=layer.name,
                kind="layer",
                modules=layer.modules,
                parameters=_parameters(denoiser, layer),
                flops=sum(flops.get(path, 0) for path in layer.modules),
                removable=not layer.reason,
                reason=layer.reason,
            )
            for layer in layers_of(denoiser)
        ]

    def passes(self, denoiser: nn.Module, settings: SamplingSettings) -> int:
        """Of one clip in one step of sampling: classifier-free guidance takes two."""
        return 2 if settings.guidance > 1 else 1

    @contextmanager
    def bypass(self, denoiser: nn.Module, unit: str, variant: Variant, seed: int = 0) -> Iterator[None]:
        """Within the context the unit is removed or replaced; afterwards the very same modules are back.

        removed: the layer hands its streams on. replaced: the same layers with fresh weights at the trained
        scale, as in `UNetFamily.bypass`.
        """
        layer = _layer_named(denoiser, unit)
        if variant == "removed":
            modules = layers.placeholders(denoiser, layer)
        else:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed)
                modules = {path: reinitialised(denoiser.get_submodule(path)) for path in layer.modules}
        before = swap_modules(denoiser, modules)
        try:
            yield
        finally:
            swap_modules(denoiser, before)

    def trace_points(self, denoiser: nn.Module) -> list[TracePoint]:
        """Every module of every unit in the order the data meets them."""
        return layers.trace_points(denoiser)

    def feature_points(self, denoiser: nn.Module) -> dict[str, str]:
        """Unit -> path of the layer whose output is its feature; taps give it as (B*F, C, h, w)."""
        return {layer.name: layer.output for layer in layers_of(denoiser)}

    def prune(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> nn.Module:
        """A new, smaller model of the same stock class.

        Raises:
            PlanError: for a cut that the class cannot express, and for `channels`: whole layers go here.
        """
        _refuse_channels(channels)
        return build_student(denoiser, removed).model

    def outline(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> Student:
        """The student's shape and name map without its weights (meta device)."""
        _refuse_channels(channels)
        return build_student(denoiser, removed, weights=False)

    def cuts(self, denoiser: nn.Module, settings: SamplingSettings) -> list[Cut]:
        """Every unit that may go."""
        units = self.units(denoiser, settings)
        return [Cut(u.name, (u.name,), u.parameters, u.flops) for u in units if u.removable]

    def paper_cut(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Every fifth layer of each stack.

        The paper gives no layers for HunyuanVideo, only a speed-up of 1.25 (Table 2): a fifth of the work.

        Raises:
            PlanError: for a model with nothing to remove.
        """
        return self.spread_cut(denoiser, 5)

    def spread_cut(self, denoiser: nn.Module, every: int) -> tuple[str, ...]:
        """One layer in `every`, of each stack, evenly; first and last layers stay where they can.

        Raises:
            PlanError: for a model with nothing to remove.
        """
        chosen = []
        for stack in dict.fromkeys(layer.stack for layer in layers_of(denoiser)):
            inside = [layer for layer in layers_of(denoiser) if layer.stack == stack]
            chosen += [layer.name for layer in inside[every - 2 : -1 : every] if not layer.reason]
        if not chosen:
            raise PlanError(
                f"this model has too few layers to remove one in {every}",
                expected=f"{every} or more in a stack",
            )
        return layers.canonical_layers(denoiser, chosen)


def _layer_named(denoiser: nn.Module, unit: str) -> Layer:
    known = {layer.name: layer for layer in layers_of(denoiser)}
    if unit not in known:
        raise PlanError(
            f"there is no unit `{unit}` in this model", fix=f"did you mean `{nearest(unit, known)}`?"
        )
    return known[unit]


def _parameters(denoiser: nn.Module, layer: Layer) -> int:
    modules = (denoiser.get_submodule(path) for path in layer.modules)
    return sum(p.numel() for module in modules for p in module.parameters())


def _refuse_channels(channels: Any) -> None:
    if channels:
        raise PlanError(
            "inner channels of transformers are not cut",
            expected="whole layers",
            found=f"channels of {len(channels)} modules",
            fix="use another recipe than depgraph",
        )
