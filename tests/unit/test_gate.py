"""The promotion gate, case by case: better, worse, equal, missing, NaN, measured differently."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.gate import Candidate, decide_promotion
from vdmini_core.params import PromoteParams

RULES = PromoteParams()
PASSPORT = {"extractor": "embedded", "clips": 64}


def candidate(
    fvd_real: Any = 10.0, fvd_teacher: Any = 2.0, pruned: Any = 9.0, speedup: Any = 1.5, **passport: Any
) -> Candidate:
    metrics = {
        "recovered": {"fvd_real": fvd_real, "fvd_teacher": fvd_teacher},
        "pruned": {"fvd_teacher": pruned},
    }
    return Candidate(metrics, speedup, {**PASSPORT, **passport})


@pytest.mark.parametrize(
    ("new", "old", "promoted", "because"),
    [
        (candidate(), None, True, "no champion yet"),
        (candidate(fvd_real=8.0), candidate(), True, "against the champion's"),
        (candidate(), candidate(), True, "against the champion's"),
        (candidate(fvd_real=10.4), candidate(), True, "against the champion's"),
        (candidate(fvd_real=10.6), candidate(), False, "worse than the champion"),
        (candidate(fvd_teacher=9.0), None, False, "before recovery"),
        (candidate(speedup=0.9), None, False, "below 1x"),
        (candidate(fvd_real=None), None, False, "missing"),
        (candidate(fvd_teacher=float("nan")), None, False, "missing or not a finite"),
        (candidate(fvd_real=float("inf")), None, False, "missing or not a finite"),
        (candidate(fvd_real=True), None, False, "missing or not a finite"),
        (candidate(speedup=None), None, False, "speedup is missing"),
        (candidate(clips=32), candidate(), False, "measured differently"),
        (candidate(), candidate(fvd_real=None), False, "champion's fvd_real is missing"),
        (Candidate({}, 2.0, {}), None, False, "missing"),
        (Candidate({"recovered": "junk"}, 2.0, {}), None, False, "missing"),
    ],
)
def test_gate(new: Candidate, old: Candidate | None, promoted: bool, because: str) -> None:
    decision = decide_promotion(new, old, RULES)
    assert decision.promoted is promoted
    assert because in " ".join(decision.reasons)
