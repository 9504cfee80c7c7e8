"""The promotion gate: a pure function, so that nobody can talk their way around it.

`decide_promotion(candidate, champion, rules)` looks at numbers only; `tasks/promote.py` carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vdmini_core.errors import DataError
from vdmini_core.metrics.passport import Passport, require_comparable
from vdmini_core.params import PromoteParams, is_number

EVALUATE_AGAIN = "to do: `vdmini evaluate --force`, then `vdmini run`"
WAY_OUT = (
    "to do: set the parameters that differ back, so that the candidate is measured as the champion was; "
    "or measure the champion's parameters as these, in a workspace with `--set promote.alias=NAME`, "
    "and then `vdmini promote --set promote.alias=NAME` here (docs/metrics.md, Passport)"
)


@dataclass(frozen=True)
class Decision:
    """Outcome of the gate with every reason that was looked at."""

    outcome: Literal["promote", "keep"]
    reasons: tuple[str, ...]

    @property
    def promoted(self) -> bool:
        """True when the candidate becomes champion."""
        return self.outcome == "promote"


@dataclass(frozen=True)
class Candidate:
    """What the gate knows of a model version.

    Attributes:
        metrics: `artifacts/evaluate/metrics.json`.
        speedup: U-Net speed-up over the teacher, None where not measured.
        passport: measure (`fvd`, `content`, ...) -> how it was measured (`metrics.passport.Passport`).
    """

    metrics: Mapping[str, Any]
    speedup: float | None
    passport: Mapping[str, Any]


def decide_promotion(candidate: Candidate, champion: Candidate | None, rules: PromoteParams) -> Decision:
    """Whether `candidate` may become champion. A missing or non-finite figure never promotes."""
    failures: list[str] = []
    passes: list[str] = []
    recovered = _row(candidate.metrics, "recovered")
    pruned = _row(candidate.metrics, "pruned")
    needed = {
        "recovered.fvd_teacher": recovered.get("fvd_teacher"),
        "recovered.fvd_real": recovered.get("fvd_real"),
        "pruned.fvd_teacher": pruned.get("fvd_teacher"),
        "speedup": candidate.speedup,
    }
    missing = [name for name, value in needed.items() if not is_number(value)]
    if missing:
        return Decision("keep", tuple(f"{name} is missing or not a finite number" for name in missing))
    _check_recovery(recovered["fvd_teacher"], pruned["fvd_teacher"], rules, passes, failures)
    _check_speed(float(candidate.speedup or 0.0), rules, passes, failures)
    if champion is None:
        passes.append("there is no champion yet")
    else:
        _check_champion(candidate, champion, rules, passes, failures)
    return Decision("keep", tuple(failures)) if failures else Decision("promote", tuple(passes))


def _row(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    row = metrics.get(name)
    return row if isinstance(row, Mapping) else {}


def _check_recovery(
    recovered: float, pruned: float, rules: PromoteParams, passes: list[str], failures: list[str]
) -> None:
    limit = rules.max_fvd_teacher_ratio * pruned
    text = f"distance to the teacher {recovered:.4g} against {pruned:.4g} before recovery"
    (passes if recovered < limit else failures).append(
        text if recovered < limit else f"{text}: must be below {limit:.4g}"
    )


def _check_speed(speedup: float, rules: PromoteParams, passes: list[str], failures: list[str]) -> None:
    text = f"U-Net speed-up {speedup:.3g}x"
    (passes if speedup >= rules.min_speedup else failures).append(
        text if speedup >= rules.min_speedup else f"{text} is below {rules.min_speedup:.3g}x"
    )


def _check_champion(
    candidate: Candidate, champion: Candidate, rules: PromoteParams, passes: list[str], failures: list[str]
) -> None:
    theirs = _row(champion.metrics, "recovered").get("fvd_real")
    ours = _row(candidate.metrics, "recovered")["fvd_real"]
    way_out = EVALUATE_AGAIN
    try:
        measured = _passport(candidate, "the candidate's")
        way_out = WAY_OUT
        against = _passport(champion, "the champion's")
        remarks = require_comparable(measured, against, names=("the candidate", "the champion"))
    except DataError as error:
        failures.append(f"{' '.join(f'{error.problem}: {error.found}'.split())}; {way_out}")
        return
    if not is_number(theirs):
        failures.append(f"the champion's fvd_real is missing or not a finite number; {WAY_OUT}")
    elif ours > theirs * (1 + rules.max_fvd_regression):
        failures.append(
            f"fvd_real {ours:.4g} is worse than the champion's {theirs:.4g} "
            f"by more than {rules.max_fvd_regression:.0%}"
        )
    else:
        passes += [f"fvd_real {ours:.4g} against the champion's {theirs:.4g}", *remarks]


def _passport(version: Candidate, whose: str) -> Passport:
    return Passport.from_json(version.passport.get("fvd"), f"{whose} passport of fvd_real")
