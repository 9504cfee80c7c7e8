"""Units of a transformer: single layers, or groups of them where the class tells every n-th one apart."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdmini_core.errors import PlanError
from vdmini_core.models.base import TracePoint
from vdmini_core.models.dit.stacks import Stack
from vdmini_core.models.dit.table import architecture_of
from vdmini_core.models.removal import nearest


@dataclass(frozen=True)
class Layer:
    """One unit of a transformer.

    Attributes:
        name: `layer.3`, `double.7`, `group.2`.
        stack: it belongs to.
        indices: of its layers in the stack.
        modules: dotted paths of its modules in the order the data meets them.
        output: path of the module whose output is the unit's.
        reason: why it has to stay, or "".
    """

    name: str
    stack: Stack
    indices: tuple[int, ...]
    modules: tuple[str, ...]
    output: str
    reason: str


class DroppedLayer(nn.Module):
    """In place of a layer: hands its streams on, in the form the layer returned them.

    Args:
        layer: it stands for; its `forward` says which argument is which.
        streams: names of the arguments to return.
        zero: how many of them, from the first, come back as zeros.
    """

    def __init__(self, layer: nn.Module, streams: tuple[str, ...], zero: int = 0) -> None:
        super().__init__()
        self.signature = inspect.signature(layer.forward)
        self.streams, self.zero = streams, zero

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer is given -> its streams: one, or a tuple."""
        given = self.signature.bind(*args, **kwargs).arguments
        out = [given.get(name) for name in self.streams]
        out = [self._blank(stream) if place < self.zero else stream for place, stream in enumerate(out)]
        return out[0] if len(out) == 1 else tuple(out)

    @staticmethod
    def _blank(stream: Tensor | None) -> Tensor | None:
        return None if stream is None else torch.zeros_like(stream)


def group_size(config: Any, stack: Stack) -> int:
    """How many consecutive layers go together; 1 where each may go alone."""
    if stack.group is None or (stack.group == "cross_attn_interval" and not config["is_train_face"]):
        return 1
    return max(1, int(config[stack.group]))


def stack_length(denoiser: nn.Module, stack: Stack) -> int:
    """Number of layers in a stack."""
    return len(denoiser.get_submodule(stack.path))  # type: ignore[arg-type]


def layers_of(denoiser: Any) -> list[Layer]:
    """Every unit in the order the data meets them."""
    return [layer for stack in architecture_of(denoiser).stacks for layer in _units_of_stack(denoiser, stack)]


def _units_of_stack(denoiser: Any, stack: Stack) -> list[Layer]:
    config, count = denoiser.config, stack_length(denoiser, stack)
    size = group_size(config, stack)
    beside = [path for path in stack.beside if len(getattr(denoiser, path, ()))]
    found = []
    starts = list(range(0, count - count % size, size))
    for number, start in enumerate(starts):
        indices = tuple(range(start, start + size))
        found.append((f"{stack.prefix}.{start}" if size == 1 else f"group.{number}", number, indices))
    rest = range(count - count % size, count) if size > 1 else ()
    found += [(f"{stack.prefix}.{index}", len(starts), (index,)) for index in rest]
    return [
        _layer(
            stack,
            name,
            indices,
            [f"{path}.{number}" for path in beside if number < len(starts)],
            config,
            count,
        )
        for name, number, indices in found
    ]


def _layer(
    stack: Stack, name: str, indices: tuple[int, ...], beside: list[str], config: Any, count: int
) -> Layer:
    own = [f"{stack.path}.{index}" for index in indices]
    reason = next((found for i in indices if (found := stack.pinned(config, i, count))), "")
    output = own[-1] if stack.adds or not beside else beside[-1]
    return Layer(name, stack, indices, (own[0], *beside, *own[1:]), output, reason)


def canonical_layers(denoiser: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The same removal, each unit once, in the order the data meets them.

    Raises:
        PlanError: for unknown names (naming the nearest) and for units that have to stay.
    """
    known = {layer.name: layer for layer in layers_of(denoiser)}
    wanted = set(names)
    for name in sorted(wanted - set(known)):
        near = nearest(name, known)
        raise PlanError(
            f"there is no unit `{name}` in this model",
            expected=f"names as `vdmini inspect` lists them, such as `{near}`",
            found=name,
            fix=f"did you mean `{near}`?",
        )
    for name in (name for name in known if name in wanted and known[name].reason):
        raise PlanError(
            f"{name} cannot be removed", found=known[name].reason, fix="leave it out of the units to remove"
        )
    return tuple(name for name in known if name in wanted)


def placeholders(denoiser: Any, layer: Layer) -> dict[str, nn.Module | None]:
    """Dotted path -> what takes its place when the unit is removed."""
    stack, found = layer.stack, {}
    for path in layer.modules:
        module = denoiser.get_submodule(path)
        if stack.adds and path.rpartition(".")[0] in stack.beside:
            found[path] = DroppedLayer(module, stack.streams[:1], zero=1)
        else:  # a control layer's hint is nothing, its control stream passes on
            found[path] = DroppedLayer(module, stack.streams, zero=int(stack.count == stack.named))
    return found  # type: ignore[return-value]


def trace_points(denoiser: Any) -> list[TracePoint]:
    """Every module of every unit in the order the data meets them."""
    return [TracePoint(path, True) for layer in layers_of(denoiser) for path in layer.modules]
