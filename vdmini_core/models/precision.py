"""Number types that models are sampled in: the words of `sampling.precision` and of `--dtype`.

Sampling in half precision keeps what adds up over the steps in float32: the latents between two calls of the
denoiser, and the arithmetic of noise levels, which go beyond float16. Noise is drawn in float32 and rounded,
so that a seed means the same clip at every precision; drawn in bfloat16 it would have 256 values.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from vdmini_core.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed in around a denoiser of this dtype: float32, or the dtype itself where it is wider."""
    return torch.promote_types(dtype, torch.float32)


def default_precision(device: str) -> str:
    """`bf16` on a GPU, much faster there and of float32's range; `fp32` on a CPU, which gains nothing."""
    return "bf16" if device.startswith("cuda") else "fp32"


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model takes: diffusers' own word, as some classes keep a few of their weights in float32."""
    return cast(Any, model).dtype if hasattr(model, "dtype") else next(model.parameters()).dtype


def choose(device: str = "auto", precision: str = "auto") -> tuple[str, torch.dtype]:
    """Where and in what to generate: `auto` is the GPU where there is one, and `default_precision` there.

    Raises:
        ModelError: for a precision that is not known.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = default_precision(device)
    if precision not in DTYPES:
        raise ModelError("there is no such dtype", expected="auto, " + ", ".join(DTYPES), found=precision)
    return device, DTYPES[precision]
