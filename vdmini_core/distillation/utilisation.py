"""How well a recovery uses its GPU: operations of a step by the models, over what the GPU could have done."""

from __future__ import annotations

from typing import Any

from torch import nn

from vdmini_core.models.base import SamplingSettings
from vdmini_core.models.flops import denoiser_flops


def step_flops(
    student: nn.Module,
    teacher: nn.Module,
    points: tuple[str, ...],
    settings: SamplingSettings,
    *,
    taught: bool = True,
    consistent: bool = False,
    judges: int = 1,
) -> int:
    """Operations one clip needs in one step, by the models: two per multiply-add, heads left out as small.

    The student forward and backward (3 passes), the teacher forward where a term reads it, and for a
    discriminator its encoder on the fake (1), backward to it (1) and on every kind of real (1). What is
    computed twice to save memory does not count: that is utilisation of the model, not of the hardware.

    Args:
        points: of the encoder (`encoder_points`), empty without a discriminator.
        taught: some term reads the teacher's prediction.
        consistent: the task is consistency: the teacher is asked a second time, for the target.
        judges: what the fake is held against: the teacher's answer (L_MCA), real clips, or both (2).

    Raises:
        ModelError: for a transformer whose attention cannot be counted.
    """
    whole: dict[str, Any] = denoiser_flops(teacher, settings)
    total = 3 * denoiser_flops(student, settings)[""]
    total += (int(taught or consistent) + int(consistent)) * whole[""]
    return int(total + (2 + judges) * sum(whole.get(path, 0) for path in points))
