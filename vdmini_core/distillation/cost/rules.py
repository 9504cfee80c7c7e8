"""What a real device does differently from the meta device: attention in one kernel, bf16 by autocast.

`torch.autocast` knows no meta device, so its rules are stated here (torch 2.13, `autocast_mode.h`) for the
operators that video U-Nets are made of.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Kind = Literal["cpu", "cuda"]

LOWERED = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.matmul, torch.bmm,
    torch.mm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm,
}  # fmt: skip
QKV = ("query", "key", "value")
# On a GPU these run in float32; on a CPU they take what they get.
RAISED_ON_GPU = {
    F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm, F.softmax, torch.softmax, Tensor.softmax,
    torch.exp, torch.log, torch.pow, Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.square,
    torch.sum, Tensor.sum, F.softplus, F.mse_loss, torch.norm, Tensor.norm,
}  # fmt: skip


class DeviceRules(TorchFunctionMode):
    """Within the context the meta device allocates as a device of kind `kind` would.

    Args:
        kind: of the device that is rehearsed.
        bf16: whether the real run would stand in `torch.autocast(kind, torch.bfloat16)`.
    """

    def __init__(self, kind: Kind, bf16: bool) -> None:
        super().__init__()
        self.kind, self.bf16 = kind, bf16
        self._lowered: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(self, *args: Any) -> None:
        """Autocast forgets its copies of the weights here; the graph may still hold them."""
        self._lowered.clear()
        super().__exit__(*args)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast as autocast does, and call; attention never makes its matrix."""
        given = kwargs or {}
        if func is Tensor.cpu and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype)  # a table is looked up: any row will do
        if self.bf16 and func in LOWERED:
            args = tuple(self._lower(value) for value in args)
            given = {key: self._lower(value) for key, value in given.items()}
        elif self.bf16 and self.kind == "cuda" and func in RAISED_ON_GPU:
            args = tuple(_raise(value) for value in args)
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(given[name] for name in QKV[len(args) :]))[:3]
            if query.is_meta:
                return _flash(query, key, value, bool(given.get("is_causal", False)), given.get("attn_mask"))
        return func(*args, **given)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._lowered:  # weights that learn are cast once a context
            self._lowered[id(value)] = (value, value.to(torch.bfloat16))
        return self._lowered[id(value)][1]


def _raise(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Fused attention: beside its output a kernel of any device keeps one number per query and head.

    A mask of truth values is made one of numbers first, and kept.
    """
    mask = mask.to(query.dtype) if mask is not None and mask.dtype == torch.bool else mask
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=None
    )[0]
    return out
