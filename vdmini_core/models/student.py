"""From a teacher U-Net and removed units to the student: its class, its config, its weights, one name map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from vdmini_core.models import removal, topology
from vdmini_core.models.base import Student
from vdmini_core.models.narrow import kept_part
from vdmini_core.models.pruned_unet import UNetSpatioTemporalPrunedModel, build_on_meta
from vdmini_core.models.pruned_unet3d import STUDENTS

OWN_ARGUMENTS = ("removed_units", "inner_widths")  # of the pruned class; all others are stock


def build_student(
    teacher: nn.Module,
    names: Iterable[str],
    weights: bool = True,
    channels: Mapping[str, Sequence[int]] | None = None,
) -> Student:
    """Cut `names` out of a copy of `teacher`.

    Args:
        teacher: stock or already pruned U-Net; it is not changed.
        names: units to remove.
        weights: False gives the student on the meta device.
        channels: path of a resnet or feed-forward network -> its inner channels that stay, ascending.

    Raises:
        PlanError: unknown units, or a cut that is not possible.
    """
    removed, kept = removal.canonical_units(teacher, names), dict(channels or {})
    layers = None if kept else _stock_layers(teacher, removed)
    if layers is not None:
        # Nothing removed leaves the config as it is written, down to the spelling.
        config = {**_config(teacher), **({"layers_per_block": layers} if removed else {})}
        student = build_on_meta(UNetSpatioTemporalConditionModel, config)
        layer_map = _stock_map(teacher, removed, student)
    else:
        widths = {path: len(index) for path, index in kept.items()}
        config = {
            **_config(teacher),
            "removed_units": list(_all_removed(teacher, removed)),
            "inner_widths": {**_narrowed(teacher), **widths} or None,
        }
        student = build_on_meta(_classes_of(teacher)[1], config)
        layer_map = {path: path for path in weight_groups(student)}
    if weights:
        copy_weights(teacher, student, layer_map, kept)
    return Student(student, layer_map, removed)


def copy_weights(
    teacher: nn.Module,
    student: nn.Module,
    layer_map: Mapping[str, str],
    kept: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Give the (meta) student its own copies of the teacher's weights, by the map and the channels kept."""
    source, state = teacher.state_dict(), {}
    for name in student.state_dict():
        group = group_of(name)
        origin = layer_map[group] + name.removeprefix(group)
        state[name] = kept_part(teacher, origin, source[origin], kept or {})
    student.load_state_dict(state, strict=True, assign=True)
    reference = next(teacher.parameters())
    for parameter in student.parameters():
        parameter.requires_grad_(reference.requires_grad)


def group_of(name: str) -> str:
    """The map's prefix of a weight: the resnet, attention or resampler it is in, else its top module."""
    parts = name.split(".")
    return ".".join(parts[:4]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]


def weight_groups(model: nn.Module) -> list[str]:
    """Every prefix of the map, in the order of the state dict."""
    return list(dict.fromkeys(group_of(name) for name in model.state_dict()))


def _config(unet: Any) -> dict[str, Any]:
    return {k: v for k, v in unet.config.items() if not k.startswith("_") and k not in OWN_ARGUMENTS}


def _narrowed(teacher: Any) -> dict[str, int]:
    """Inner widths of an already pruned teacher."""
    return dict(teacher.config.get("inner_widths") or {})


def _classes_of(teacher: nn.Module) -> tuple[Any, Any]:
    """The class of the whole architecture and the one that lacks units; ours is both."""
    if isinstance(teacher, UNetSpatioTemporalConditionModel):
        return UNetSpatioTemporalConditionModel, UNetSpatioTemporalPrunedModel
    for stock, pruned in STUDENTS.items():
        if type(teacher) in (stock, pruned):
            return stock, pruned
    return type(teacher), type(teacher)


def _all_removed(teacher: Any, removed: Sequence[str]) -> tuple[str, ...]:
    """The cut together with what an already pruned teacher lacks, against the full architecture."""
    earlier = tuple(teacher.config.get("removed_units") or ())
    if not earlier:
        return tuple(removed)
    whole = build_on_meta(_classes_of(teacher)[0], _config(teacher))
    return removal.canonical_units(whole, [*earlier, *removed])


def _stock_layers(teacher: Any, removed: Sequence[str]) -> list[int] | None:
    """`layers_per_block` of the stock config that equals the cut, or None where there is none.

    A stock level with n down pairs hands its slots to n + 1 up pairs in reverse order. The cut equals one
    where the kept up pairs take exactly the kept down pairs' outputs, each once, then the level's input.
    """
    beside_pairs = any(name == "M" or name.endswith(topology.TEMPORAL) for name in removed)
    if beside_pairs or not isinstance(teacher, UNetSpatioTemporalConditionModel):
        return None
    if isinstance(teacher, UNetSpatioTemporalPrunedModel):
        return None
    if not removed and type(teacher) is UNetSpatioTemporalConditionModel:
        return _layers_of(teacher)
    if not isinstance(teacher.config.transformer_layers_per_block, int):
        return None
    layers = []
    count = topology.levels(teacher)
    for level in range(count):
        down = [p for p in topology.pairs(teacher) if p.block == f"D.{level}"]
        up = [p for p in topology.pairs(teacher) if p.block == f"U.{count - 1 - level}"]
        slots = ["input"]
        for pair in down:
            slots.append(slots[-1] if pair.name in removed else pair.name)
        kept = [pair.name for pair in down if pair.name not in removed]
        taken = [slots[len(down) - pair.index] for pair in up if pair.name not in removed]
        if not kept or taken != [*reversed(kept), "input"]:
            return None
        layers.append(len(kept))
    return layers


def _layers_of(unet: Any) -> list[int]:
    layers = unet.config.layers_per_block
    return [layers] * topology.levels(unet) if isinstance(layers, int) else list(layers)


def _stock_map(teacher: nn.Module, removed: Sequence[str], student: nn.Module) -> dict[str, str]:
    kept: dict[str, list[topology.Pair]] = {}
    for pair in topology.pairs(teacher):
        if pair.name not in removed:
            kept.setdefault(pair.block, []).append(pair)
    layer_map = {path: path for path in weight_groups(student)}
    for pair in topology.pairs(student):
        origin = kept[pair.block][pair.index]
        layer_map |= dict(zip(pair.modules, origin.modules, strict=True))
    return layer_map
