"""Work-around: temporal convolutions computed as 2-D ones while training in bfloat16 on a CPU.

torch 2.13's CPU kernel for the weight gradient of `Conv3d(kernel=(3, 1, 1))` in bfloat16 reads memory it
never wrote: now and then single entries come out at 1e25 and more, the gradient norm is infinite and
clipping silently turns the whole update into zero. A (k, 1, 1) kernel over (F, H, W) is the same sum as a
(k, 1) kernel over (F, H * W), whose kernel is sound (and no slower).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


def _forward_as_2d(module: nn.Conv3d, x_BCFHW: Tensor) -> Tensor:
    weight = module.weight.squeeze(-1)
    out = F.conv2d(x_BCFHW.flatten(3), weight, module.bias, padding=(int(module.padding[0]), 0))
    return out.unflatten(3, x_BCFHW.shape[3:])


@contextmanager
def temporal_convolutions_as_2d(model: nn.Module) -> Iterator[None]:
    """Inside the context every stride-1 (k, 1, 1) convolution of `model` runs as a 2-D one."""
    changed = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv3d)
        and tuple(module.kernel_size[1:]) == (1, 1)
        and tuple(module.stride) == (1, 1, 1)
        and module.groups == 1
    ]
    for module in changed:
        module.forward = partial(_forward_as_2d, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward
