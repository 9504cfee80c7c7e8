"""Unit names of SVD-type and ModelScope-type U-Nets and where they live in the module tree.

`D.l.pair.j` is pair j of `down_blocks.l`, `U.k.pair.j` of `up_blocks.k`; `D.l`, `M`, `U.k` are blocks
(paper Fig. 1); `.temporal` behind a pair or `M` is its temporal sub-layer. Works on stock models, on
pruned ones (teacher naming) and on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any

from torch import nn

from vdmini_core.models.base import TracePoint
from vdmini_core.models.pruned_unet import (
    DroppedAttention,
    DroppedBlock,
    DroppedInnerDown,
    DroppedInnerUp,
    DroppedMixer,
    DroppedResnet,
    DroppedTemporal,
)

TEMPORAL = ".temporal"
# A pair's modules, one of each list that its block has, as the data meets them. SVD's resnets and attentions
# have their temporal part inside; ModelScope's blocks have lists of it.
PAIR_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions")


@dataclass(frozen=True)
class Pair:
    """One (ResBlock, Attention) pair.

    Attributes:
        name: unit name.
        block: name of its block.
        index: place in its block.
        modules: dotted paths of its modules in the order the data meets them, the resnet first.
        channels_in: hidden channels coming in, the skip of an up pair apart.
        channels_out: hidden channels going out.
        present: False in a model it was already cut from.
    """

    name: str
    block: str
    index: int
    modules: tuple[str, ...]
    channels_in: int
    channels_out: int
    present: bool

    @property
    def keeps_channels(self) -> bool:
        """Whether it can be left out without a projection."""
        return self.channels_in == self.channels_out

    @property
    def resnet(self) -> str:
        """Dotted path of its resnet."""
        return self.modules[0]

    @property
    def output(self) -> str:
        """Dotted path of the module whose output is the pair's."""
        return self.modules[-1]


def levels(unet: nn.Module) -> int:
    """Number of resolution levels."""
    return len(_config(unet).block_out_channels)


def block_names(unet: nn.Module) -> list[str]:
    """All block names in the order the data meets them."""
    count = levels(unet)
    return [f"D.{i}" for i in range(count)] + ["M"] + [f"U.{i}" for i in range(count)]


def block_of(name: str) -> str:
    """Name of the block a unit belongs to."""
    return name.removesuffix(TEMPORAL).split(".pair.")[0]


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
                    modules=_modules_at(module, block_path(unet, block), index),
                    channels_in=into if index == 0 else out,
                    channels_out=out,
                    present=not isinstance(resnet, DroppedResnet),
                )
            )
    return found


def temporal_units(unet: nn.Module) -> dict[str, tuple[str, ...]]:
    """Temporal sub-layer of every pair, and of `M`, that is there -> dotted paths of its modules.

    Empty where it was already cut. Modules are named down to what is called: a list never is.
    """
    owners = {pair.name: pair.modules for pair in pairs(unet) if pair.present}
    if mid_present(unet):
        mid: Any = unet.mid_block
        rows = [_modules_at(mid, "mid_block", index) for index in range(len(mid.resnets))]
        owners["M"] = tuple(path for row in rows for path in row)
    order = block_names(unet)
    return {
        name + TEMPORAL: tuple(path for module in modules for path in _temporal_parts(unet, module))
        for name, modules in sorted(owners.items(), key=lambda owner: order.index(block_of(owner[0])))
    }


def trace_points(unet: nn.Module) -> list[TracePoint]:
    """The way in, every module of a pair, every resampler, and the mid block whole, as the data meets them.

    Kept are the outputs of pairs and resamplers: skips come from them, and units start behind them; and of
    resnets that a temporal sub-layer starts behind. Of an innermost level that is gone nothing is listed:
    it only passes on.
    """
    entry = ["conv_in", *(["transformer_in"] if hasattr(unet, "transformer_in") else [])]
    points = [TracePoint(path, path == entry[-1]) for path in entry]
    inside = pairs(unet)
    for block in block_names(unet):
        path = block_path(unet, block)
        if block == "M":
            points.append(TracePoint(path, True))
            continue
        for pair in inside:
            if pair.block == block:
                kept = {pair.output, *(pair.resnet for path in pair.modules if list_of(path) == "temp_convs")}
                points += [TracePoint(module, module in kept) for module in pair.modules]
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


def _config(unet: nn.Module) -> Any:
    return unet.config


def _temporal_parts(unet: nn.Module, path: str) -> list[str]:
    """Of a spatio-temporal resnet or transformer: all that its spatial output does not pass through.

    A module that is temporal as a whole is its own part, a spatial one has none.
    """
    module = unet.get_submodule(path)
    if list_of(path).startswith("temp_"):
        return [] if isinstance(module, DroppedTemporal | DroppedAttention) else [path]
    if isinstance(getattr(module, "time_mixer", None), DroppedMixer | NoneType):
        return []
    layers: Any = getattr(module, "temporal_transformer_blocks", None)
    if layers is None:
        return [f"{path}.temporal_res_block", f"{path}.time_mixer"]
    blocks = [f"{path}.temporal_transformer_blocks.{index}" for index in range(len(layers))]
    return [f"{path}.time_pos_embed", *blocks, f"{path}.time_mixer"]


def list_of(path: str) -> str:
    """Name of the module list that a path leads into: `resnets` of `down_blocks.0.resnets.1`."""
    return path.split(".")[-2]


def _modules_at(block: Any, path: str, index: int) -> tuple[str, ...]:
    lists = [name for name in PAIR_LISTS if index < len(getattr(block, name, ()))]
    return tuple(f"{path}.{name}.{index}" for name in lists)


def _block_channels(unet: nn.Module, block: str) -> tuple[int, int]:
    channels = list(_config(unet).block_out_channels)
    side, index = block.split(".")
    if side == "U":
        channels.reverse()
    place = int(index)
    return channels[max(place - 1, 0)], channels[place]
