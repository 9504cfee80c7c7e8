"""Unit names of SVD-type U-Nets, where they live in the module tree, and which cuts are possible.

`D.l.pair.j` is pair j of `down_blocks.l`, `U.k.pair.j` of `up_blocks.k`; `D.l`, `M`, `U.k` are blocks
(paper Fig. 1). Works on stock models, on pruned ones (teacher naming) and on the meta device.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import TracePoint
from vdmini_core.models.pruned_unet import (
    DroppedAttention,
    DroppedBlock,
    DroppedInnerDown,
    DroppedInnerUp,
    DroppedResnet,
)


@dataclass(frozen=True)
class Pair:
    """One (ResBlock, Attention) pair.

    Attributes:
        name: unit name.
        block: name of its block.
        index: place in its block.
        resnet: dotted path.
        attention: dotted path, None in blocks without attention.
        channels_in: hidden channels coming in, the skip of an up pair apart.
        channels_out: hidden channels going out.
        present: False in a model it was already cut from.
    """

    name: str
    block: str
    index: int
    resnet: str
    attention: str | None
    channels_in: int
    channels_out: int
    present: bool

    @property
    def keeps_channels(self) -> bool:
        """Whether it can be left out without a projection."""
        return self.channels_in == self.channels_out

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted paths of its modules."""
        return (self.resnet,) if self.attention is None else (self.resnet, self.attention)

    @property
    def output(self) -> str:
        """Dotted path of the module whose output is the pair's."""
        return self.attention or self.resnet


def levels(unet: nn.Module) -> int:
    """Number of resolution levels."""
    return len(_config(unet).block_out_channels)


def block_names(unet: nn.Module) -> list[str]:
    """All block names in the order the data meets them."""
    count = levels(unet)
    return [f"D.{i}" for i in range(count)] + ["M"] + [f"U.{i}" for i in range(count)]


def block_path(unet: nn.Module, name: str) -> str:
    """Dotted path of a block."""
    if name == "M":
        return "mid_block"
    side, index = name.split(".")
    return f"{'down' if side == 'D' else 'up'}_blocks.{index}"


def inner_blocks(unet: nn.Module) -> tuple[str, str, str]:
    """The innermost level: last down block, mid block, first up block."""
    return f"D.{levels(unet) - 1}", "M", "U.0"


def pairs(unet: nn.Module) -> list[Pair]:
    """Every pair in the order the data meets them; none of blocks that are gone."""
    found: list[Pair] = []
    for block in block_names(unet):
        module = unet.get_submodule(block_path(unet, block))
        if block == "M" or isinstance(module, DroppedInnerDown | DroppedInnerUp):
            continue
        into, out = _block_channels(unet, block)
        for index, resnet in enumerate(module.resnets):  # type: ignore[arg-type]
            found.append(
                Pair(
                    name=f"{block}.pair.{index}",
                    block=block,
                    index=index,
                    resnet=f"{block_path(unet, block)}.resnets.{index}",
                    attention=f"{block_path(unet, block)}.attentions.{index}"
                    if hasattr(module, "attentions")
                    else None,
                    channels_in=into if index == 0 else out,
                    channels_out=out,
                    present=not isinstance(resnet, DroppedResnet),
                )
            )
    return found


def trace_points(unet: nn.Module) -> list[TracePoint]:
    """`conv_in`, every resnet, attention and resampler, and the mid block whole, as the data meets them.

    Kept are the outputs of pairs and resamplers: skips come from them, and units start behind them. Of an
    innermost level that is gone nothing is listed: it only passes on.
    """
    points = [TracePoint("conv_in", True)]
    inside = pairs(unet)
    for block in block_names(unet):
        path = block_path(unet, block)
        if block == "M":
            points.append(TracePoint(path, True))
            continue
        for pair in inside:
            if pair.block == block:
                points += [TracePoint(module, module == pair.output) for module in pair.modules]
        resamplers = getattr(unet.get_submodule(path), _resampler(block), None)
        points += [TracePoint(f"{path}.{_resampler(block)}.{i}", True) for i in range(len(resamplers or ()))]
    return points


def _resampler(block: str) -> str:
    return "downsamplers" if block.startswith("D") else "upsamplers"


def mid_present(unet: nn.Module) -> bool:
    """Whether the mid block is still there."""
    return not isinstance(unet.mid_block, DroppedBlock)


def inner_present(unet: nn.Module) -> bool:
    """Whether the innermost level is still there."""
    return not isinstance(unet.down_blocks[-1], DroppedInnerDown)  # type: ignore[index]


def inner_reason(unet: nn.Module) -> str:
    """Why the innermost level cannot go; empty where it can."""
    channels = _config(unet).block_out_channels
    if len(channels) < 2:
        return "the only level"
    if channels[-1] != channels[-2]:
        return f"its {channels[-1]} channels feed a level of {channels[-2]}"
    return ""


def canonical_units(unet: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """The same removal in its one canonical spelling, in the order the data meets the units.

    Blocks whose pairs all keep their channels are spelled as their pairs; the innermost level
    (`D.3 M U.0` together) stays three block names and swallows its pairs.

    Raises:
        PlanError: for unknown names (naming the nearest) and for cuts the surgery cannot express.
    """
    wanted = list(dict.fromkeys(names))
    known = {pair.name: pair for pair in pairs(unet)}
    blocks = block_names(unet)
    _refuse_unknown(wanted, [*known, *blocks])
    inner = inner_blocks(unet)
    whole_inner = set(inner) <= set(wanted)
    if whole_inner and inner_reason(unet):
        raise PlanError(f"{', '.join(inner)} cannot be removed", found=inner_reason(unet))
    chosen: set[str] = set(inner) if whole_inner else set()
    for name in wanted:
        if name == "M":
            chosen.add("M")
        elif name in known:
            if not (whole_inner and known[name].block in inner):
                chosen.add(_removable(known[name]))
        elif not (whole_inner and name in inner):
            chosen |= _block_as_pairs(unet, name, known)
    order = [*known, *blocks]
    return tuple(sorted(chosen, key=lambda name: _order(unet, name, order)))


def placeholders(unet: nn.Module, names: Iterable[str]) -> dict[str, nn.Module | None]:
    """Dotted path -> what takes its place when `names` are removed (None: nothing)."""
    removed = canonical_units(unet, names)
    inner = inner_blocks(unet)
    result: dict[str, nn.Module | None] = {}
    for pair in pairs(unet):
        if pair.name in removed:
            result |= pair_placeholders(pair)
    if "M" in removed:
        result["mid_block"] = DroppedBlock()
    if set(inner) <= set(removed):
        result[block_path(unet, inner[0])] = DroppedInnerDown()
        result[block_path(unet, inner[2])] = DroppedInnerUp()
        result[f"down_blocks.{levels(unet) - 2}.downsamplers"] = None
    return result


def paper_units(unet: nn.Module) -> tuple[str, ...]:
    """The paper's recipe (Sec. 3.2, Table A4), canonical.

    The second pair of every block goes, but for the deepest level that stays (`D.2`, `U.1`), and the
    innermost level (`D.3`, `M`, `U.0`) goes whole.

    Raises:
        PlanError: fewer than three levels, one pair a block, or channels that do not fit.
    """
    count = levels(unet)
    if count < 3:
        raise PlanError("the paper's recipe needs three levels or more", found=f"{count} levels")
    kept = (f"D.{count - 2}", "U.1", *inner_blocks(unet))
    second = [pair.name for pair in pairs(unet) if pair.index == 1 and pair.block not in kept]
    if len(second) != 2 * (count - 2):
        raise PlanError("the paper's recipe needs two pairs or more in every block")
    return canonical_units(unet, [*second, *inner_blocks(unet)])


def pair_placeholders(pair: Pair, shortcut: nn.Module | None = None) -> dict[str, nn.Module | None]:
    """Placeholders of one pair; `shortcut` carries the path past it where channels change."""
    result: dict[str, nn.Module | None] = {pair.resnet: DroppedResnet(pair.channels_out, shortcut)}
    if pair.attention is not None:
        result[pair.attention] = DroppedAttention()
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`."""
    return (difflib.get_close_matches(name, list(known), n=1, cutoff=0.0) or [""])[0]


def _config(unet: nn.Module) -> Any:
    return unet.config


def _block_channels(unet: nn.Module, block: str) -> tuple[int, int]:
    channels = list(_config(unet).block_out_channels)
    side, index = block.split(".")
    if side == "U":
        channels.reverse()
    place = int(index)
    return channels[max(place - 1, 0)], channels[place]


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
    inner = inner_blocks(unet)
    if block in inner:
        raise PlanError(
            f"{block} cannot be removed on its own",
            expected=f"{', '.join(inner)} together, or pairs of {block}",
            fix=f"name all of {', '.join(inner)}, or the pairs `{block}.pair.0` and so on",
        )
    return {_removable(pair) for pair in known.values() if pair.block == block}


def _order(unet: nn.Module, name: str, order: list[str]) -> tuple[int, int]:
    block = name.split(".pair.")[0]
    return block_names(unet).index(block), order.index(name)
