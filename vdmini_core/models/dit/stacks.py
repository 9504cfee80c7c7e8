"""What is known of a transformer class: its stacks of like layers, and how its config counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
# (config, number of the layer, layers in the stack) -> why it has to stay, or "".
Pinned = Callable[[Config, int, int], str]


def nothing_pinned(_config: Config, _index: int, _count: int) -> str:
    """Every layer may go."""
    return ""


@dataclass(frozen=True)
class Stack:
    """A module list whose layers the data passes through one after another.

    Attributes:
        prefix: of unit names: `layer.3`, `double.7`.
        path: of the module list.
        count: config key that says how many layers there are.
        streams: a layer's arguments that it returns changed, in the order it returns them; a layer that is
            gone returns them as they came. The first is the video's.
        beside: module lists with one entry for each layer (or each group): they are cut in step.
        adds: whether the entries of `beside` return what is added to the video's stream; otherwise they are
            layers themselves.
        group: config key of a number n: the class tells every n-th layer from the others, so that n
            consecutive ones go together; None where all are alike.
        first: config keys that say how many of the first layers are of another kind.
        last: config keys that say how many of the last layers are.
        named: config key that lists numbers of layers.
        pinned: why a layer has to stay.
    """

    prefix: str
    path: str
    count: str
    streams: tuple[str, ...] = ("hidden_states",)
    beside: tuple[str, ...] = ()
    adds: bool = False
    group: str | None = None
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    named: str | None = None
    pinned: Pinned = nothing_pinned


@dataclass(frozen=True)
class Architecture:
    """One transformer class of diffusers.

    Attributes:
        stacks: in the order the data meets them.
        arguments: name of its input builder in `vdmini_core.models.dit.arguments`.
        layout: of the clip it is given: `BCFHW`, `BFCHW`, `BFHWC`, `tokens`, or `packed`: several streams in
            one sequence, whose features are not told apart by frame.
        shuffled: whether a frame's tokens come in another order than row by row.
        kind: `video`, or `image` for a class whose pipelines make or edit single images.
        text_tokens: tokens of a prompt as its pipeline pads it, for counting FLOPs.
        note: what a user should know, one clause.
    """

    stacks: tuple[Stack, ...]
    arguments: str
    layout: str = "BCFHW"
    shuffled: bool = False
    kind: str = "video"
    text_tokens: int = 512
    note: str = ""
