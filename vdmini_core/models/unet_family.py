"""What SVD-type and ModelScope-type U-Nets share as families: units, bypass, surgery, cuts.

A family adds how its U-Net is conditioned and sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models import removal, topology, unet_units
from vdmini_core.models.base import Cut, SamplingSettings, Student, TracePoint, Unit, Variant
from vdmini_core.models.pruned_unet import DroppedBlock, swap_modules
from vdmini_core.models.student import build_student


class UNetFamily:
    """The half of a family that looks at the U-Net's structure alone."""

    denoiser_name = "unet"

    def units(self, denoiser: nn.Module, settings: SamplingSettings, granularity: str = "both") -> list[Unit]:
        """Pairs, each block after its pairs; `M` counts as a pair too, it has no pairs inside.

        A block's parameters and FLOPs include its resampler; removing its pairs leaves that in place.
        With `temporal` the temporal sub-layer of every pair and of `M` comes after it.
        """
        return unet_units.list_units(denoiser, settings, granularity)

    @contextmanager
    def bypass(self, denoiser: nn.Module, unit: str, variant: Variant, seed: int = 0) -> Iterator[None]:
        """Within the context the unit is removed or replaced; afterwards the very same modules are back.

        removed: its residual branches and attention are dropped, exactly as surgery drops them. A pair that
        changes channels keeps its trained 1x1 shortcut; a block drops all its pairs and keeps its resampler;
        of a temporal sub-layer the spatial output passes on alone.

        replaced (paper Fig. 1, "re-initialised"): the same layers with fresh weights: every weight and bias
        drawn by its layer's default initialisation from `seed`, then scaled to the root mean square of the
        trained tensor so that only what was learned is lost, not the size of the signal; norms back to 1 and
        0, time mixers kept. The shortcuts of the unit are its own and are re-drawn too.
        """
        modules = _removed(denoiser, unit) if variant == "removed" else _replaced(denoiser, unit, seed)
        before = swap_modules(denoiser, modules)
        try:
            yield
        finally:
            swap_modules(denoiser, before)

    def trace_points(self, denoiser: nn.Module) -> list[TracePoint]:
        """Resnets, attentions and resamplers, `M` in one; outputs of pairs and resamplers are kept."""
        return topology.trace_points(denoiser)

    def feature_points(self, denoiser: nn.Module) -> dict[str, str]:
        """Pair (and `M`) -> path of the module whose output is its feature, (B*F, C, h, w).

        Attention modules return it in a 1-tuple.
        """
        points = {pair.name: pair.output for pair in topology.pairs(denoiser) if pair.present}
        if topology.mid_present(denoiser):
            points["M"] = "mid_block"
        order = topology.block_names(denoiser)
        return dict(sorted(points.items(), key=lambda item: order.index(topology.block_of(item[0]))))

    def prune(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> nn.Module:
        """A new, smaller denoiser: the stock class where its config can express the cut, else ours."""
        return build_student(denoiser, removed, channels=channels).model

    def outline(
        self,
        denoiser: nn.Module,
        removed: Sequence[str],
        channels: Mapping[str, Sequence[int]] | None = None,
    ) -> Student:
        """The student's shape and name map without its weights (meta device)."""
        return build_student(denoiser, removed, weights=False, channels=channels)

    def cuts(self, denoiser: nn.Module, settings: SamplingSettings) -> list[Cut]:
        """Every removable pair, `M`, the innermost level whole (named `inner`), and temporal sub-layers."""
        return unet_units.list_cuts(denoiser, settings)

    def passes(self, denoiser: nn.Module, settings: SamplingSettings) -> int:
        """Of one clip in one step of sampling: classifier-free guidance takes two."""
        return 2 if settings.guidance > 1 else 1

    def paper_cut(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Second pairs but for `D.2` and `U.1`, and `D.3`, `M`, `U.0` (paper Sec. 3.2)."""
        return removal.paper_units(denoiser)


def _unit_pairs(denoiser: nn.Module, unit: str) -> list[topology.Pair]:
    pairs = [pair for pair in topology.pairs(denoiser) if pair.present]
    chosen = [pair for pair in pairs if unit in (pair.name, pair.block)]
    if not chosen and not (unit == "M" and topology.mid_present(denoiser)):
        known = [pair.name for pair in pairs] + topology.block_names(denoiser)
        known += [name for name, paths in topology.temporal_units(denoiser).items() if paths]
        near = removal.nearest(unit, known)
        raise PlanError(f"there is no unit `{unit}` in this model", fix=f"did you mean `{near}`?")
    return chosen


def _removed(denoiser: nn.Module, unit: str) -> dict[str, nn.Module | None]:
    if temporal := topology.temporal_units(denoiser).get(unit):
        return removal.temporal_placeholders(temporal)
    modules: dict[str, nn.Module | None] = {}
    for pair in _unit_pairs(denoiser, unit):
        resnet: Any = denoiser.get_submodule(pair.resnet)
        shortcut = None if pair.keeps_channels else removal.shortcut_of(resnet)
        modules |= removal.pair_placeholders(pair, shortcut)
    return modules or {"mid_block": DroppedBlock()}


def _replaced(denoiser: nn.Module, unit: str, seed: int) -> dict[str, nn.Module | None]:
    paths = list(topology.temporal_units(denoiser).get(unit, ()))
    if not paths:
        paths = [path for pair in _unit_pairs(denoiser, unit) for path in pair.modules] or ["mid_block"]
    fresh: dict[str, nn.Module | None] = {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for path in paths:
            fresh[path] = reinitialised(denoiser.get_submodule(path))
    return fresh


def reinitialised(module: nn.Module) -> nn.Module:
    """A copy with fresh weights at the trained scale; must run under a seeded random state."""
    fresh = copy.deepcopy(module)
    for part in fresh.modules():
        reset: Any = getattr(part, "reset_parameters", None)
        if reset is None:
            continue
        scales = {name: p.float().square().mean().sqrt() for name, p in part.named_parameters(recurse=False)}
        reset()
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            continue
        for name, p in part.named_parameters(recurse=False):
            p.mul_((scales[name] / p.float().square().mean().sqrt().clamp_min(1e-30)).to(p.dtype))
    return fresh
