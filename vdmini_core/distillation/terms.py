"""Which terms a recovery has, and what its task loss looks at."""

from __future__ import annotations

from vdmini_core.distillation.consistency import OwnTask
from vdmini_core.params import DistillParams

TERMS = ("total", "task", "icd", "mca_generator", "mca_discriminator", "grad_norm")


def term_names(params: DistillParams) -> tuple[str, ...]:
    """`TERMS`, and in front of the gradient's norm those that are not part of the paper's loss."""
    extra = (
        ("adversarial_generator", params.lambda_adversarial),
        ("adversarial_discriminator", params.lambda_adversarial),
        ("feature_matching", params.lambda_feature_matching),
        ("r1", params.r1_gamma),
    )
    return (*TERMS[:-1], *(name for name, weight in extra if weight), TERMS[-1])


def task_weights(params: DistillParams, one_step: bool, own: OwnTask = "reconstruction") -> dict[str, float]:
    """How much of the task loss looks at real clips, at the teacher's prediction, and along its path."""
    kinds = ("reconstruction", "teacher", "consistency")
    if params.task_loss == "auto" and own != "reconstruction":
        return dict.fromkeys(kinds, 0.0) | {own if own == "consistency" else "reconstruction": 1.0}
    if params.task_loss == "auto":
        share = 0.5 if one_step else 0.0
        return {"reconstruction": 1.0 - share, "teacher": share, "consistency": 0.0}
    return {name: float(name == params.task_loss) for name in kinds}
