"""Exact operations of any transformer of the table, without memory for its weights.

Some classes look into their inputs (masks, numbers of frames), which a run on the meta device cannot answer.
So weights are on the meta device and inputs are real: what is computed from inputs alone is computed, and
everything a weight touches has a shape only.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vdmini_core.errors import ModelError
from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.dit.arguments import Maker, arguments
from vdmini_core.models.dit.student import config_of
from vdmini_core.models.dit.table import architecture_of
from vdmini_core.models.pruned_unet import build_on_meta

MOST_MASKED_CELLS = 4096


class ShapesWhereWeightsAre(TorchDispatchMode):
    """Runs an operation on the meta device as soon as one of its tensors is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            return func(*args, **(kwargs | {"device": torch.device("meta")}))
        if not any(tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [place for mask in args[1] for place in _places(mask)])
        args = tuple(_shape_only(argument) for argument in args)
        kwargs = {name: _shape_only(argument) for name, argument in kwargs.items()}
        if isinstance(kwargs.get("device"), torch.device):
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among an operation's arguments: they lie open or in one list."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from (part for part in argument if isinstance(part, Tensor))


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask with values as the places it chooses, whose number is known; other indices as they are."""
    is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
    return index.nonzero(as_tuple=True) if is_mask else (index,)  # type: ignore[union-attr]


def _shape_only(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_shape_only(part) for part in argument)
    if not isinstance(argument, Tensor) or argument.is_meta:
        return argument
    return torch.empty_like(argument, device="meta")


def dit_flops(denoiser: Any, settings: SamplingSettings, text_tokens: int | None = None) -> dict[str, int]:
    """Operations of one pass at batch 1, per module path; "" is the total.

    Args:
        text_tokens: of the prompt; as the class's pipeline pads it where None.

    Raises:
        ModelError: for a class whose attention cannot be counted.
    """
    config = json.dumps(config_of(denoiser), sort_keys=True)
    most = denoiser.config.get("max_text_seq_length")
    tokens = text_tokens or architecture_of(denoiser).text_tokens
    tokens = tokens if most is None else min(tokens, most)
    cls: Any = type(denoiser)
    return dict(_counted(cls, config, settings.latent_frames, *settings.latent_size, tokens))


@functools.lru_cache(maxsize=64)
def _counted(cls: Any, config: str, frames: int, height: int, width: int, tokens: int) -> dict[str, int]:
    model: Any = build_on_meta(cls, json.loads(config))
    for module in model.modules():
        real_tables(module, root=module is model)
    given = arguments(model, Maker(1, frames, height, width, tokens))
    prefix = type(model).__name__ + "."
    with torch.no_grad(), ShapesWhereWeightsAre(), FlopCounterMode(display=False) as counter:
        try:
            model(**given, return_dict=False)
        except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, NameError) as error:
            raise ModelError(
                f"the operations of {type(model).__name__} cannot be counted",
                found=str(error).strip().split("\n")[0],
                fix="measure its time instead (plan.timing)",
            ) from error
    counts = {
        path.removeprefix(prefix): sum(by_operator.values())
        for path, by_operator in counter.get_flop_counts().items()
        if path.startswith(prefix)
    }
    return {**counts, "": counter.get_total_flops()}


def video_decoder_flops(vae: Any, settings: SamplingSettings) -> dict[str, int]:
    """Operations of decoding one clip by a video autoencoder, as its own `decode` cuts it; "" is the total.

    Raises:
        ModelError: where its attention over all cells of several frames is masked cell by cell: too many.
    """
    height, width = settings.latent_size
    masked = type(vae).__name__ == "AutoencoderKLHunyuanVideo"
    if masked and settings.latent_frames * height * width > MOST_MASKED_CELLS:
        raise ModelError(
            "the operations of this decoder cannot be counted at this size",
            expected=f"{MOST_MASKED_CELLS} latent cells or fewer",
            found=f"{settings.latent_frames} x {height} x {width}",
        )
    model: Any = build_on_meta(type(vae), config_of(vae))
    for module in model.modules():
        real_tables(module, root=False)
    channels = vae.config.get("z_dim") or vae.config["latent_channels"]
    latents = torch.zeros(1, channels, settings.latent_frames, height, width, device="meta")
    with torch.no_grad(), ShapesWhereWeightsAre(), FlopCounterMode(display=False) as counter:
        model.decode(latents)
    return {"": counter.get_total_flops()}


def real_tables(module: nn.Module, root: bool) -> None:
    """Zeros for buffers, plain tensors and the model's own parameters: small, and some are looked at."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and value.is_meta:
            setattr(module, name, torch.zeros_like(value, device="cpu"))
    for name, parameter in list(module.named_parameters(recurse=False)) if root else ():
        zeros = torch.zeros_like(parameter, device="cpu")
        setattr(module, name, nn.Parameter(zeros, requires_grad=False))
