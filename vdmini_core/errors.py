"""One kind of error for everything the user can mend: expected, found, what to do."""

from __future__ import annotations


class VDMiniError(Exception):
    """A mistake the user can mend; the command line prints it without a traceback and exits 1.

    Args:
        problem: what is wrong, one sentence.
        expected: what would have been right.
        found: what was there instead.
        fix: what to do next.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", fix: str = "") -> None:
        self.problem, self.expected, self.found, self.fix = problem, expected, found, fix
        lines = [problem]
        lines += [
            f"  {label}: {text}"
            for label, text in (("expected", expected), ("found", found), ("to do", fix))
            if text
        ]
        super().__init__("\n".join(lines))


class ParamsError(VDMiniError):
    """`params.yaml` or an override does not say what a stage can run."""


class ModelError(VDMiniError):
    """A model directory cannot be used as it is."""


class PlanError(VDMiniError):
    """A pruning plan cannot be made, or does not fit the model it is applied to."""


class DataError(VDMiniError):
    """Videos, clips or features cannot be used as they are."""


class TrainingError(VDMiniError):
    """A training run cannot go on (non-finite loss, diverged, wrong checkpoint)."""


class OutsideError(VDMiniError):
    """A server or the network did not do its part: the same again may go well, and schedules try it again."""
