"""Narrower insides: fewer channels between the two halves of a resnet or of a feed-forward network.

What comes in and goes out keeps its width, so residual streams, skip connections and the features that
recovery compares stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from vdmini_core.errors import ModelError, PlanError

FEED_FORWARD_STEP = 32  # of feed-forward networks; resnets give one channel of every normalisation group


@dataclass(frozen=True)
class InnerWidth:
    """One place whose inner channels can go.

    Attributes:
        path: dotted path of the resnet or feed-forward network.
        width: its inner channels.
        groups: normalisation groups they lie in, consecutive and equally large; 1 where there are none.
        step: how many go at a time.
    """

    path: str
    width: int
    groups: int
    step: int


def inner_widths(model: nn.Module) -> list[InnerWidth]:
    """Every place of a model, in the order of its modules."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
            groups = module.norm2.num_groups
            found.append(InnerWidth(path, module.norm2.num_channels, groups, groups))
        elif isinstance(module, FeedForward):
            width = _halves(module)[1].in_features
            found.append(InnerWidth(path, width, 1, FEED_FORWARD_STEP))
    return found


def narrow_places(model: nn.Module, widths: Mapping[str, int] | None) -> None:
    """Give the places of a config's `inner_widths` (dotted path -> channels) that many channels inside.

    Raises:
        ModelError: a path that the model has not, or a place without inner channels.
    """
    for path, channels in (widths or {}).items():
        try:
            narrow_inside(model.get_submodule(path), channels)
        except (AttributeError, PlanError) as error:
            raise ModelError(
                "the config's `inner_widths` do not fit the model",
                expected="dotted paths of resnets and feed-forward networks",
                found=f"{path}: {error.problem if isinstance(error, PlanError) else 'no such module'}",
                fix="copy the config.json that was written with the weights",
            ) from None


def narrow_inside(module: nn.Module, channels: int) -> None:
    """Give a resnet or feed-forward network `channels` inside, with fresh weights.

    Raises:
        PlanError: another kind of module.
    """
    if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
        _narrow_resnet(module, channels)
    elif isinstance(module, FeedForward):
        first, second = _halves(module)
        gates = first.out_features // second.in_features
        if channels != second.in_features:
            module.net[0].proj = nn.Linear(first.in_features, gates * channels)
            module.net[2] = nn.Linear(channels, second.out_features)
    else:
        raise PlanError(
            "this has no inner channels",
            expected="a resnet or a feed-forward network",
            found=type(module).__name__,
        )


def _narrow_resnet(resnet: ResnetBlock2D | TemporalResnetBlock, channels: int) -> None:
    first, second, norm = resnet.conv1, resnet.conv2, resnet.norm2
    if channels == first.out_channels:
        return
    kind: Any = type(first)
    options = {"kernel_size": first.kernel_size, "padding": first.padding}
    resnet.conv1 = kind(first.in_channels, channels, **options)
    resnet.norm2 = nn.GroupNorm(norm.num_groups, channels, norm.eps)
    resnet.conv2 = kind(channels, second.out_channels, **options)
    if resnet.time_emb_proj is not None:
        resnet.time_emb_proj = nn.Linear(resnet.time_emb_proj.in_features, channels)


def kept_part(model: nn.Module, name: str, weight: Tensor, kept: Mapping[str, Sequence[int]]) -> Tensor:
    """A copy of the weight `name` of a model without the inner channels that are not kept.

    Args:
        kept: path of a place -> its inner channels that stay, ascending; other places stay whole.
    """
    path = next((path for path in kept if name.startswith(path + ".")), None)
    if path is None:
        return weight.clone()
    inside, index = name.removeprefix(path + "."), torch.as_tensor(kept[path], device=weight.device)
    if inside.startswith("net.0."):  # gates lie behind the values they open
        width = _halves(model.get_submodule(path))[1].in_features
        count = len(weight) // width
        return weight[torch.cat([index + i * width for i in range(count)])].clone()
    if inside.split(".")[0] in ("conv1", "norm2", "time_emb_proj"):
        return weight[index].clone()
    if inside in ("conv2.weight", "net.2.weight"):
        return weight[:, index].clone()
    return weight.clone()


def _halves(network: Any) -> tuple[nn.Linear, nn.Linear]:
    """The linear layers of a feed-forward network, in and out."""
    return network.net[0].proj, network.net[2]


def groups_of(place: InnerWidth) -> Iterator[range]:
    """The channels of each of its normalisation groups."""
    size = place.width // place.groups
    return (range(i * size, (i + 1) * size) for i in range(place.groups))
