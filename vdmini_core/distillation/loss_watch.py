"""Whether a recovery still learns: the task loss against what it was at its best.

A single step tells little, for noise levels are drawn: it is the median of the last steps that is watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from vdmini_core.errors import TrainingError

WINDOW, ENOUGH = 20, 10  # steps of the median, and from how many on it counts
RISEN = 10.0  # times the smallest median so far
EXPLODED = 1000.0  # times the first task loss, in a single step
SMALL = 0.01  # a cut that hardly hurts starts near nothing, from where the levels drawn alone are far


@dataclass
class LossWatch:
    """The task loss so far, as plain data; part of every checkpoint, so that a resumed run decides alike.

    Attributes:
        first: of the first step; NaN before it.
        recent: of the last `WINDOW` steps.
        best: smallest median of `recent` so far.
    """

    first: float = math.nan
    recent: list[float] = field(default_factory=list)
    best: float = math.inf

    def see(self, loss: float, step: int) -> None:
        """Take in the task loss of `step` (from 1), averaged over the workers.

        Raises:
            TrainingError: when it has exploded, or for some steps been far above what it was before.
        """
        self.first = loss if math.isnan(self.first) else self.first
        if loss > EXPLODED * max(self.first, SMALL):
            raise _diverged(step, f"a task loss near {self.first:.3g}", loss)
        self.recent = [*self.recent, loss][-WINDOW:]
        if len(self.recent) < ENOUGH:
            return
        now = median(self.recent)
        self.best = min(self.best, now)
        if now > RISEN * max(self.best, SMALL):
            raise _diverged(step, f"a task loss near {self.best:.3g}, where its median has been", now)


def _diverged(step: int, expected: str, found: float) -> TrainingError:
    return TrainingError(
        f"the recovery diverged at step {step}",
        expected=expected,
        found=f"{found:.3g}",
        fix="lower distill.learning_rate or distill.max_grad_norm",
    )
