"""What removing units means for the module tree: one canonical spelling, refusals, placeholders."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models import topology
from vdmini_core.models.pruned_unet import (
    DroppedAttention,
    DroppedBlock,
    DroppedInnerDown,
    DroppedInnerUp,
    DroppedMixer,
    DroppedResnet,
    DroppedTemporal,
)
from vdmini_core.models.topology import Pair


def canonical_units(unet: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """The same removal in its one canonical spelling, in the order the data meets the units.

    Blocks whose pairs all keep their channels are spelled as their pairs; the innermost level
    (`D.3 M U.0` together) stays three block names and swallows all inside; a pair, and `M`, swallows its
    temporal sub-layer.

    Raises:
        PlanError: for unknown names (naming the nearest), for units that are gone already, and for cuts the
            surgery cannot express.
    """
    wanted = list(dict.fromkeys(names))
    known = {pair.name: pair for pair in topology.pairs(unet)}
    order = _all_names(unet, known.values())
    _refuse_unknown(wanted, order)
    inner = topology.inner_blocks(unet)
    gone = {pair.name for pair in known.values() if not pair.present}
    gone |= set() if topology.mid_present(unet) else {"M"}
    gone |= set() if topology.inner_present(unet) else set(inner)
    if again := [name for name in wanted if name in gone]:
        raise PlanError(
            f"{', '.join(again)}: this model has lost them already",
            expected="units that `vdmini inspect` lists",
            fix="leave them out, or cut the teacher it came from",
        )
    whole_inner = set(inner) <= set(wanted)
    if whole_inner and (reason := topology.inner_reason(unet)):
        raise PlanError(
            f"{', '.join(inner)} cannot be removed", found=reason, fix="leave it out of the units to remove"
        )
    chosen: set[str] = set(inner) if whole_inner else set()
    for name in wanted:
        if whole_inner and topology.block_of(name) in inner:
            continue
        if name == "M" or name.endswith(topology.TEMPORAL):
            chosen.add(name)
        elif name in known:
            chosen.add(_removable(known[name]))
        else:
            chosen |= _block_as_pairs(unet, name, known)
    swallowed = {name + topology.TEMPORAL for name in chosen}
    return tuple(sorted(chosen - swallowed, key=order.index))


def placeholders(unet: nn.Module, names: Iterable[str]) -> dict[str, nn.Module | None]:
    """Dotted path -> what takes its place when `names` are removed (None: nothing)."""
    removed = canonical_units(unet, names)
    inner = topology.inner_blocks(unet)
    result: dict[str, nn.Module | None] = {}
    for pair in topology.pairs(unet):
        if pair.name in removed:
            result |= pair_placeholders(pair)
    for name, paths in topology.temporal_units(unet).items():
        if name in removed:
            result |= temporal_placeholders(paths)
    if "M" in removed:
        result["mid_block"] = DroppedBlock()
    if set(inner) <= set(removed):
        result[topology.block_path(unet, inner[0])] = DroppedInnerDown()
        result[topology.block_path(unet, inner[2])] = DroppedInnerUp()
        result[f"down_blocks.{topology.levels(unet) - 2}.downsamplers"] = None
    return result


def paper_units(unet: nn.Module) -> tuple[str, ...]:
    """The paper's recipe (Sec. 3.2, Table A4), canonical.

    The second pair of every block goes, but for the deepest level that stays (`D.2`, `U.1`), and the
    innermost level (`D.3`, `M`, `U.0`) goes whole.

    Raises:
        PlanError: fewer than three levels, one pair a block, or channels that do not fit.
    """
    count = topology.levels(unet)
    if count < 3:
        raise PlanError(
            "the paper's recipe needs three levels or more", found=f"{count} levels", fix="use recipe: auto"
        )
    kept = (f"D.{count - 2}", "U.1", *topology.inner_blocks(unet))
    second = [pair.name for pair in topology.pairs(unet) if pair.index == 1 and pair.block not in kept]
    if len(second) != 2 * (count - 2):
        raise PlanError("the paper's recipe needs two pairs or more in every block", fix="use recipe: auto")
    return canonical_units(unet, [*second, *topology.inner_blocks(unet)])


def pair_placeholders(pair: Pair, shortcut: nn.Module | None = None) -> dict[str, nn.Module | None]:
    """Placeholders of one pair; `shortcut` carries the path past it where channels change."""
    rest = pair.modules[1:]
    return {
        pair.resnet: DroppedResnet(pair.channels_out, shortcut),
        **{path: _passing(path) for path in rest},
    }


def shortcut_of(resnet: Any) -> nn.Module | None:
    """A resnet's own 1x1 shortcut, None where channels stay; of a spatio-temporal one its spatial part's."""
    return getattr(resnet, "spatial_res_block", resnet).conv_shortcut


def temporal_placeholders(paths: Iterable[str]) -> dict[str, nn.Module | None]:
    """Placeholders of one temporal sub-layer, whose modules `topology.temporal_units` names."""
    return {path: DroppedMixer() if path.endswith(".time_mixer") else _passing(path) for path in paths}


def _passing(path: str) -> nn.Module:
    """What passes its input on in the form that the block expects of the module at `path`."""
    return DroppedAttention() if topology.list_of(path).endswith("attentions") else DroppedTemporal()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`."""
    return (difflib.get_close_matches(name, list(known), n=1, cutoff=0.0) or [""])[0]


def _all_names(unet: nn.Module, pairs: Iterable[Pair]) -> list[str]:
    """Every name in the order the data meets them: a pair, its temporal sub-layer, ..., their block."""
    temporal = topology.temporal_units(unet)
    names: list[str] = []
    for block in topology.block_names(unet):
        for owner in (*(pair.name for pair in pairs if pair.block == block), block):
            inside = owner + topology.TEMPORAL
            names += [owner, inside] if inside in temporal else [owner]
    return names


def _refuse_unknown(names: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise PlanError(
                f"there is no unit `{name}` in this model",
                expected=f"names as `vdmini inspect` lists them, such as `{nearest(name, known)}`",
                found=name,
                fix=f"did you mean `{nearest(name, known)}`?",
            )


def _removable(pair: Pair) -> str:
    if not pair.keeps_channels:
        raise PlanError(
            f"{pair.name} cannot be removed",
            expected="a pair that keeps its number of channels",
            found=f"{pair.channels_in} channels in, {pair.channels_out} out",
            fix="leave it out of the units to remove",
        )
    return pair.name


def _block_as_pairs(unet: nn.Module, block: str, known: dict[str, Pair]) -> set[str]:
    inner = topology.inner_blocks(unet)
    if block in inner:
        raise PlanError(
            f"{block} cannot be removed on its own",
            expected=f"{', '.join(inner)} together, or pairs of {block}",
            fix=f"name all of {', '.join(inner)}, or the pairs `{block}.pair.0` and so on",
        )
    return {_removable(pair) for pair in known.values() if pair.block == block}
