"""By-passing parts of a spatio-temporal U-Net for a moment: pairs left out, blocks that see one frame a clip.

Training uses it to save work and to see which blocks are alive. A by-passed (ResBlock, Attention)
pair hands its input on; in an up block, the half that comes from below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def stream_width(unet: UNetSpatioTemporalConditionModel, name: str, pair: int) -> int:
    """Channels that reach a pair of an up block from below; the others of its input are the skip's."""
    if pair:
        return int(block_of(unet, name).resnets[pair].spatial_res_block.out_channels)
    index = int(name[2:])
    previous: Any = unet.up_blocks[index - 1] if index else unet.mid_block
    return int(previous.resnets[-1].spatial_res_block.out_channels)
