"""By-passing parts of a spatio-temporal U-Net for a moment: skips closed, pairs left out.

Training uses it for its curriculum and to see which blocks are alive. A by-passed (ResBlock, Attention)
pair hands its input on; in an up block, the half that comes from below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

BLOCKS = ("D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3")


def block_of(unet: UNetSpatioTemporalConditionModel, name: str) -> Any:
    """The block called `D.i`, `M` or `U.i`."""
    if name == "M":
        return unet.mid_block
    blocks = unet.down_blocks if name.startswith("D") else unet.up_blocks
    return blocks[int(name[2:])]


@contextmanager
def replaced_forward(modules: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Each module runs the given function in place of its own forward."""
    earlier: list[tuple[nn.Module, Any]] = []
    try:
        for module, function in modules:
            earlier.append((module, vars(module).get("forward")))
            module.forward = function
        yield
    finally:
        for module, function in reversed(earlier):
            if function is None:
                del module.forward
            else:
                module.forward = function


def _pair_by_pass(block: Any, pair: int) -> list[tuple[nn.Module, Any]]:
    resnet = block.resnets[pair]
    channels = resnet.spatial_res_block.out_channels

    def hand_on(hidden_NCHW: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_NCHW[:, :channels]

    found: list[tuple[nn.Module, Any]] = [(resnet, hand_on)]
    attentions = getattr(block, "attentions", None)
    if attentions is not None and pair < len(attentions):
        found.append((attentions[pair], lambda hidden, *_, **__: (hidden,)))
    return found


@contextmanager
def without_pair(unet: UNetSpatioTemporalConditionModel, name: str, pair: int) -> Iterator[None]:
    """Leave out one pair; of `M`, which ends on a resnet, pair 1 is its attention and second resnet."""
    block = block_of(unet, name)
    if name == "M":
        modules: list[tuple[nn.Module, Any]] = [
            (block.attentions[0], lambda hidden, *_, **__: (hidden,)),
            (block.resnets[1], lambda hidden, *_, **__: hidden),
        ]
    else:
        modules = _pair_by_pass(block, pair)
    with replaced_forward(modules):
        yield


@contextmanager
def without_block(unet: UNetSpatioTemporalConditionModel, name: str) -> Iterator[None]:
    """Leave out every pair of an up block whose input already has its width."""
    with ExitStack() as stack:
        for pair in range(len(block_of(unet, name).resnets)):
            stack.enter_context(without_pair(unet, name, pair))
        yield


@contextmanager
def shared_frames(
    unet: UNetSpatioTemporalConditionModel, names: Sequence[str], frames: int
) -> Iterator[None]:
    """The named down blocks see the first frame of each clip alone, and hand it on for all frames.

    Until something tells the frames apart they differ by noise only; this is `frames` times cheaper.
    """

    def sharing(forward: Any) -> Any:
        def run(**inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
            once = {name: value[::frames] for name, value in inputs.items() if name != "image_only_indicator"}
            hidden, skips = forward(**once, image_only_indicator=inputs["image_only_indicator"][:, :1])
            return _repeated(hidden, frames), tuple(_repeated(skip, frames) for skip in skips)

        return run

    blocks = [block_of(unet, name) for name in names]
    with replaced_forward([(block, sharing(block.forward)) for block in blocks]):
        yield


def _repeated(x_BCHW: Tensor, frames: int) -> Tensor:
    return x_BCHW.repeat_interleave(frames, dim=0)


@contextmanager
def scaled_skips(
    unet: UNetSpatioTemporalConditionModel, names: Sequence[str], keep_BF: Tensor
) -> Iterator[None]:
    """Multiply the skips that enter the named up blocks by `keep_BF`, one factor per frame of the batch."""
    factor = keep_BF[:, None, None, None]

    def scale(_: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        skips = named["res_hidden_states_tuple"]
        return arguments, {**named, "res_hidden_states_tuple": tuple(s * factor.to(s.dtype) for s in skips)}

    handles = [block_of(unet, n).register_forward_pre_hook(scale, with_kwargs=True) for n in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def scale_skip_weights(unet: UNetSpatioTemporalConditionModel, name: str, factor: float) -> None:
    """Weaken what the named up block reads from its skips; what arrives from below is untouched."""
    block = block_of(unet, name)
    skips = [_skip_width(unet, name, pair) for pair in range(len(block.resnets))]
    for resnet, width in zip(block.resnets, skips, strict=True):
        spatial = resnet.spatial_res_block
        spatial.conv1.weight[:, -width:] *= factor
        spatial.conv_shortcut.weight[:, -width:] *= factor


def _skip_width(unet: UNetSpatioTemporalConditionModel, name: str, pair: int) -> int:
    block = block_of(unet, name)
    spatial = block.resnets[pair].spatial_res_block
    below = spatial.out_channels
    if pair == 0:
        index = int(name[2:])
        previous = unet.up_blocks[index - 1] if index else unet.mid_block
        below = previous.resnets[-1].spatial_res_block.out_channels
    return int(spatial.conv1.in_channels - below)
