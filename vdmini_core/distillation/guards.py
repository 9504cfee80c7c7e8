"""What happened to a recovery besides its steps: where it was rolled back, and how its students measured.

Part of every checkpoint, so that a run that is killed and resumed decides as one that is not. Rollbacks
follow from numbers that all workers share, so all hold the same ones; validations are rank 0's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from vdmini_core.errors import TrainingError
from vdmini_core.params import DistillParams


@dataclass
class History:
    """Rollbacks and validations so far, as plain data.

    Attributes:
        rollbacks: `step` that broke, step it went `back_to`, `rate_scale` from then on, `reason`.
        validations: `step` and the measures of its averaged student.
        saved: step of the last checkpoint, 0 before the first.
        sight: what the discriminator sees of its clips before the first step (`discriminator.sight`).
    """

    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    saved: int = 0
    sight: list[float] = field(default_factory=list)

    @property
    def rate_scale(self) -> float:
        """Share of the scheduled learning rates that is in force."""
        return float(self.rollbacks[-1]["rate_scale"]) if self.rollbacks else 1.0

    def roll_back(self, error: TrainingError, step: int, params: DistillParams) -> None:
        """Note that `step` broke and is tried again from the last checkpoint at smaller rates.

        The batches are the same the second time, for they are a function of the step: the rates differ, and
        after a second failure at the same place they differ more.

        Raises:
            TrainingError: the error itself, when all rollbacks are spent.
        """
        if len(self.rollbacks) >= params.rollbacks:
            if not self.rollbacks:
                raise error
            raise TrainingError(
                error.problem,
                expected=error.expected,
                found="; ".join(filter(None, (error.found, self.told()))),
                fix=error.fix,
            ) from error
        scale = self.rate_scale * params.rollback_rate_scale
        self.rollbacks.append(
            {"step": step, "back_to": self.saved, "rate_scale": scale, "reason": error.problem}
        )

    def told(self) -> str:
        """The rollbacks in one line, empty where there were none."""
        if not self.rollbacks:
            return ""
        steps = [str(event["step"]) for event in self.rollbacks]
        times, places = ("time", "step") if len(steps) == 1 else ("times", "steps")
        return (
            f"rolled back {len(steps)} {times} at {places} {', '.join(steps)}: "
            f"learning rate x {self.rate_scale:.3g}"
        )

    def best(self, measure: str) -> int | None:
        """Step of the student with the smallest `measure`, the first of equals; None before the first."""
        finite = [row for row in self.validations if math.isfinite(row[measure])]
        return int(min(finite, key=lambda row: row[measure])["step"]) if finite else None

    def kept(self, params: DistillParams) -> int:
        """Step of the student that the run would keep if it ended at the last checkpoint."""
        best = self.best(params.select_by) if params.select == "best" else None
        return self.saved if best is None else best

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)


def film_name(step: int, index: int) -> str:
    """File name of the sample of one clip at one step; names sort as the steps do."""
    return f"step-{step:08d}-{index:02d}.mp4"
