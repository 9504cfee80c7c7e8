"""How long a pass takes, foretold from what it computes and what it moves (the roofline model).

Every operator of a pass on the meta device is charged the longer of two times: its floating point
operations at the device's rate, or the bytes it reads and writes at the device's bandwidth (Williams et al.,
"Roofline", CACM 2009). What an operator really reaches differs from shape to shape, so seconds are rough;
the ratio of two models that are built from the same parts is much better (`benchmarks/latency_model.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

MATRIX, VECTOR = 1024, 2**25  # sizes of the two measurements: 2 GFLOP, and 128 MiB read and written
# Operators that hand out the same memory under another shape: nothing moves.
_VIEWS = {"view", "_unsafe_view", "reshape", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze",
          "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "as_strided",
          "_reshape_alias"}  # fmt: skip


@dataclass(frozen=True)
class Roofline:
    """A device in two numbers.

    Attributes:
        flops_per_s: dense matrix products, in the number type that is meant.
        bytes_per_s: memory, read and write together.
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Charge:
    """What a pass costs: operations, bytes moved, seconds as foretold."""

    flops: int
    bytes: int
    seconds: float


def foretell(call: Callable[[], Any], device: Roofline) -> Charge:
    """The cost of `call`, which runs a model on meta tensors."""
    with torch.no_grad(), torch.device("meta"), _Charging(device) as charging:
        call()
    return Charge(charging.flops, charging.bytes, charging.seconds)


class _Charging(TorchDispatchMode):
    def __init__(self, device: Roofline) -> None:
        super().__init__()
        self.device, self.flops, self.bytes, self.seconds = device, 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        out = func(*args, **kwargs)
        if packet.__name__ in _VIEWS:
            return out
        moved = sum(_size(tensor) for tensor in _tensors((args, kwargs, out)))
        count = flop_registry.get(packet)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        self.flops += flops
        self.bytes += moved
        self.seconds += max(flops / self.device.flops_per_s, moved / self.device.bytes_per_s)
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def measure_device(device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 7) -> Roofline:
    """The two numbers of this machine: a square matrix product, and the sum of two long vectors.

    Args:
        device: `cpu` or `cuda`.
        dtype: number type of the matrix product.
        repeats: medians over so many measurements.
    """
    matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    vector = torch.randn(VECTOR // 4, device=device)
    out = torch.empty_like(vector)
    product = _seconds(lambda: matrix @ matrix, device, repeats)
    addition = _seconds(lambda: torch.add(vector, vector, out=out), device, repeats)
    return Roofline(2 * MATRIX**3 / product, 3 * VECTOR / addition)


def _seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    spent = []
    for _ in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return median(spent[1:])
