"""Units and cuts of SVD-type and ModelScope-type U-Nets: what may be removed, its parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vdmini_core.models import topology
from vdmini_core.models.base import Cut, SamplingSettings, Unit
from vdmini_core.models.flops import denoiser_flops


def list_units(denoiser: nn.Module, settings: SamplingSettings, granularity: str) -> list[Unit]:
    """Every unit in the order the data meets them; see `UNetFamily.units`."""
    flops = denoiser_flops(denoiser, settings)
    pairs = topology.pairs(denoiser)
    temporal = topology.temporal_units(denoiser) if granularity == "temporal" else {}
    units: list[Unit] = []

    def add(unit: Unit) -> None:
        units.append(unit)
        name = unit.name + topology.TEMPORAL
        if paths := temporal.get(name):
            units.append(_temporal_unit(denoiser, name, paths, flops))

    for block in topology.block_names(denoiser):
        inside = [pair for pair in pairs if pair.block == block]
        if granularity != "block":
            for pair in inside:
                if pair.present:
                    add(_pair_unit(denoiser, pair, flops))
        has_module = topology.mid_present(denoiser) if block == "M" else bool(inside)
        if has_module and (granularity != "pair" or block == "M"):
            add(_block_unit(denoiser, block, inside, flops))
    return units


def list_cuts(denoiser: nn.Module, settings: SamplingSettings) -> list[Cut]:
    """Every decision of the planner; see `UNetFamily.cuts`.

    A cut conflicts with all cuts that are part of it: a pair with its temporal sub-layer, the innermost
    level with everything inside. That level is offered as long as none of its blocks is gone.
    """
    flops = denoiser_flops(denoiser, settings)
    temporal = {name: paths for name, paths in topology.temporal_units(denoiser).items() if paths}
    removable: dict[str, tuple[str, ...]] = {
        pair.name: pair.modules for pair in topology.pairs(denoiser) if pair.present and pair.keeps_channels
    }
    if topology.mid_present(denoiser):
        removable["M"] = ("mid_block",)
    found = []
    for name, paths in removable.items():
        inside = tuple(part for part in (name + topology.TEMPORAL,) if part in temporal)
        found.append(_cut(denoiser, flops, name, (name,), paths, inside))
    finer = [_cut(denoiser, flops, n, (n,), paths, optional=True) for n, paths in temporal.items()]
    inner = topology.inner_blocks(denoiser)
    if _inner_whole(denoiser, inner) and not topology.inner_reason(denoiser):
        inside = tuple(cut.name for cut in (*found, *finer) if topology.block_of(cut.name) in inner)
        downsampler = f"down_blocks.{topology.levels(denoiser) - 2}.downsamplers"
        paths = (*(topology.block_path(denoiser, name) for name in inner), downsampler)
        found.append(_cut(denoiser, flops, "inner", inner, paths, inside))
    return found + finer


def _inner_whole(denoiser: nn.Module, inner: Sequence[str]) -> bool:
    """Whether each block of the innermost level still has something: only then are its names a removal."""
    left = {pair.block for pair in topology.pairs(denoiser) if pair.present}
    left |= {"M"} if topology.mid_present(denoiser) else set()
    return set(inner) <= left


def _parameters(denoiser: nn.Module, paths: Sequence[str]) -> int:
    return sum(p.numel() for path in paths for p in denoiser.get_submodule(path).parameters())


def _cut(
    denoiser: nn.Module,
    flops: dict[str, int],
    name: str,
    units: tuple[str, ...],
    paths: Sequence[str],
    conflicts: tuple[str, ...] = (),
    optional: bool = False,
) -> Cut:
    saved = sum(flops.get(path, _below(flops, path)) for path in paths)
    return Cut(name, units, _parameters(denoiser, paths), saved, conflicts, optional)


def _below(flops: dict[str, int], path: str) -> int:
    """Operations of a module list, which is never called itself: the sum over its members."""
    depth = path.count(".") + 1
    return sum(n for p, n in flops.items() if p.startswith(path + ".") and p.count(".") == depth)


def _pair_unit(denoiser: nn.Module, pair: topology.Pair, flops: dict[str, int]) -> Unit:
    reason = "" if pair.keeps_channels else f"changes channels from {pair.channels_in} to {pair.channels_out}"
    return Unit(
        name=pair.name,
        kind="pair",
        modules=pair.modules,
        parameters=_parameters(denoiser, pair.modules),
        flops=sum(flops.get(path, 0) for path in pair.modules),
        removable=pair.keeps_channels,
        reason=reason,
    )


def _temporal_unit(denoiser: nn.Module, name: str, paths: tuple[str, ...], flops: dict[str, int]) -> Unit:
    return Unit(
        name=name,
        kind="temporal",
        modules=paths,
        parameters=_parameters(denoiser, paths),
        flops=sum(flops.get(path, 0) for path in paths),
        removable=True,
    )


def _block_unit(denoiser: nn.Module, block: str, inside: list[topology.Pair], flops: dict[str, int]) -> Unit:
    path = topology.block_path(denoiser, block)
    return Unit(
        name=block,
        kind="block",
        modules=(path,),
        parameters=_parameters(denoiser, [path]),
        flops=flops.get(path, 0),
        removable=not (reason := _block_reason(denoiser, block, inside)),
        reason=reason,
    )


def _block_reason(denoiser: nn.Module, block: str, inside: list[topology.Pair]) -> str:
    inner = topology.inner_blocks(denoiser)
    if block == "M":
        return ""
    if block in inner:
        impossible = topology.inner_reason(denoiser)
        return impossible or f"only together with {' and '.join(name for name in inner if name != block)}"
    changing = [pair.name for pair in inside if not pair.keeps_channels]
    return f"{', '.join(changing)} changes channels" if changing else ""
