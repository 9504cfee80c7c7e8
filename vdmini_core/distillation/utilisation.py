"""How well a recovery uses its GPU: operations of a step by the models, over what the GPU could have done."""

from __future__ import annotations

from typing import Any

from torch import nn

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.flops import denoiser_flops

# Dense 10^12 operations a second as their makers state them: bf16 with sums in fp32, and fp32 without TF32.
PEAK_TERAFLOPS = {
    "B200": {"bf16": 2250.0, "fp32": 75.0},
    "H200": {"bf16": 989.0, "fp32": 67.0},
    "H100 PCIe": {"bf16": 756.0, "fp32": 51.0},
    "H100": {"bf16": 989.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "L40S": {"bf16": 362.0, "fp32": 91.6},
    "L4": {"bf16": 121.0, "fp32": 30.3},
    "A10": {"bf16": 125.0, "fp32": 31.2},
    "RTX 4090": {"bf16": 165.2, "fp32": 82.6},
    "RTX 3090": {"bf16": 71.0, "fp32": 35.6},
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations a second of a GPU by its name; None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    for name, peaks in PEAK_TERAFLOPS.items():
        if all(word in words for word in name.split()):
            return peaks[precision] * 1e12
    return None


def step_flops(
    student: nn.Module,
    teacher: nn.Module,
    points: tuple[str, ...],
    settings: SamplingSettings,
    *,
    taught: bool = True,
    consistent: bool = False,
) -> int:
    """Operations one clip needs in one step, by the models: two per multiply-add, heads left out as small.

    The student forward and backward (3 passes), the teacher forward where a term reads it, and for L_MCA its
    encoder on real and fake (2) and backward to the fake (1). What is computed twice to save memory does not
    count: that is utilisation of the model, not of the hardware.

    Args:
        points: of the encoder (`encoder_points`), empty without L_MCA.
        taught: some term reads the teacher's prediction.
        consistent: the task is consistency: the teacher is asked a second time, for the target.

    Raises:
        ModelError: for a transformer whose attention cannot be counted.
    """
    whole: dict[str, Any] = denoiser_flops(teacher, settings)
    total = 3 * denoiser_flops(student, settings)[""]
    total += (int(taught or consistent) + int(consistent)) * whole[""]
    return int(total + 3 * sum(whole.get(path, 0) for path in points))
