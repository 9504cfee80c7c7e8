"""Live bytes and operations of a computation that is only rehearsed, on the meta device.

Every operator of PyTorch passes the ledger: the storages of its results are booked when they are made and
struck out when the last tensor, or the autograd graph, lets go of them. The order of events is that of the
real run, so that the highest sum is the real one's, apart from what kernels use inside (`Ledger.scratch`)
and what allocators keep. On tensors with memory the same ledger counts a real run.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ACTIVATIONS, GRADIENTS = "activations", "gradients"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Ledger(TorchDispatchMode):
    """Books storages and operations of everything run inside its context.

    Attributes:
        live: bytes now, by kind (`activations`, `gradients`).
        peak: highest sum of `live` so far, gradients weighted by `gradient_share`.
        at_peak: `live` at that moment, unweighted.
        peak_phase: the phase it fell into.
        flops: operations by phase, two per multiply-add; convolutions, products and attention.
    """

    def __init__(self, gradient_share: float = 1.0, known: dict[Any, Any] | None = None) -> None:
        """Open the books.

        Args:
            gradient_share: part of the gradients that a worker keeps, 1/N where they are sharded.
            known: shapes that another ledger has met; it is added to.
        """
        super().__init__()
        self.gradient_share = gradient_share
        self.live = {ACTIVATIONS: 0, GRADIENTS: 0}
        self.at_peak, self.peak, self.peak_phase = dict(self.live), 0, ""
        self.flops: dict[str, int] = {}
        self.highest: dict[str, int] = {}
        self._phase = ""
        self._books: dict[int, tuple[int, str]] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self.known: dict[Any, Any] = {} if known is None else known

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Operations and peaks within the context count as `name`'s."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def watch_gradients(self, module: nn.Module) -> list[Any]:
        """Book the gradients of a module's parameters as such as soon as they arrive; returns the handles."""

        def arrived(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.reclassify(parameter.grad, GRADIENTS)

        return [p.register_post_accumulate_grad_hook(arrived) for p in module.parameters() if p.requires_grad]

    def reclassify(self, tensor: Tensor, kind: str) -> None:
        """Book a tensor that is in the books under another kind."""
        key = id(tensor.untyped_storage())
        if key in self._books:
            size, before = self._books[key]
            self.live[before] -= size
            self.live[kind] += size
            self._books[key] = (size, kind)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator and book what it made."""
        given = dict(kwargs or {})
        output = self._run(func, args, given)
        if not _aliases(func):  # a view of a weight is no new memory
            for leaf in (output,) if isinstance(output, Tensor) else tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self._book(leaf, args)
        return output

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator; on meta, one met before with the same shapes is not asked again.

        The shape functions of many operators are Python and slow, and a U-Net repeats itself.
        """
        if not _pure(func):
            return self._counted(func, args, kwargs, func(*args, **kwargs))
        try:
            key = (func, *map(_signature, args), *((k, _signature(v)) for k, v in kwargs.items()))
            made = self.known.get(key)
        except _NotMeta:
            return self._counted(func, args, kwargs, func(*args, **kwargs))
        if made is None:
            before = self.flops.get(self._phase, 0)
            output = self._counted(func, args, kwargs, func(*args, **kwargs))
            flops = self.flops.get(self._phase, 0) - before
            leaves = output if isinstance(output, tuple) else (output,)
            if all(leaf is None or _is_new(leaf, args) for leaf in leaves):
                shapes = [
                    leaf if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves
                ]
                self.known[key] = (isinstance(output, tuple), shapes, flops)
            return output
        several, shapes, flops = made
        if flops:
            self.flops[self._phase] = self.flops.get(self._phase, 0) + flops
        again = tuple(
            s if s is None else torch.empty_strided(s[0], s[1], dtype=s[2], device="meta") for s in shapes
        )
        return again if several else again[0]

    def _counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        counter = _counter(func)
        if counter is not None:
            count = counter(args, kwargs, output)
            self.flops[self._phase] = self.flops.get(self._phase, 0) + count
        return output

    def _book(self, tensor: Tensor, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._books or not size or key in _storages(args):
            return
        self._books[key] = (size, ACTIVATIONS)
        self.live[ACTIVATIONS] += size
        self._watched[key] = weakref.ref(storage, functools.partial(self._strike, key))
        now = self.live[ACTIVATIONS] + round(self.live[GRADIENTS] * self.gradient_share)
        self.highest[self._phase] = max(self.highest.get(self._phase, 0), now)
        if now > self.peak:
            self.peak, self.at_peak, self.peak_phase = now, dict(self.live), self._phase

    def _strike(self, key: int, _: Any = None) -> None:
        size, kind = self._books.pop(key)
        self.live[kind] -= size
        del self._watched[key]


class _NotMeta(Exception):
    """An argument has memory, or cannot be compared: the operator has to run."""


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotMeta
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    if isinstance(value, torch.Generator):
        raise _NotMeta
    return (type(value), value)  # 1, 1.0 and True are equal, and mean different things


def _storages(args: tuple[Any, ...]) -> set[int]:
    return {id(value.untyped_storage()) for value in args if isinstance(value, Tensor)}


def _is_new(leaf: Any, args: tuple[Any, ...]) -> bool:
    """Whether a result lies on meta, in memory of its own (`_unsafe_view` does not, and does not say so)."""
    return isinstance(leaf, Tensor) and leaf.is_meta and id(leaf.untyped_storage()) not in _storages(args)


@functools.cache
def _aliases(func: Any) -> bool:
    """Whether an operator returns what it was given: a view, or a tensor it wrote into."""
    return any(result.alias_info for result in func._schema.returns)


@functools.cache
def _pure(func: Any) -> bool:
    """Whether an operator makes new tensors alone: neither views nor writes."""
    return not func._schema.is_mutable and not _aliases(func)


@functools.cache
def _counter(func: Any) -> Callable[[tuple[Any, ...], dict[str, Any], Any], int] | None:
    """What counts an operator's operations from arguments and result; None where there are none to count."""
    name = func._schema.name
    if name == FLASH:
        return lambda args, _, __: int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if name == FLASH + "_backward":
        return lambda args, _, __: int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
    if count is None:
        return None
    return lambda args, kwargs, output: int(count(*args, **kwargs, out_val=output))
