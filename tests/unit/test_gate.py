"""The promotion gate, case by case: better, worse, equal, missing, NaN, measured differently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tasks.gate import Candidate, decide_promotion
from vdmini_core.metrics.passport import Side, features_passport
from vdmini_core.params import PromoteParams

RULES = PromoteParams()
FEATURES = {"extractor": "embedded", "dim": 64, "weights_sha256": "ab", "layer": "neck", "resize": "64 x 64"}
SIDE = Side(64, "test", ("decord",), "cd")


def passport(real: Side = SIDE, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"frames": 8, "fps": 8.0, "size": (64, 64), **changes}
    value = replace(features_passport(FEATURES, side=real, **settings), generated=Side(real.clips))
    return {"fvd": value.to_json()}


def candidate(
    fvd_real: Any = 10.0, fvd_teacher: Any = 2.0, pruned: Any = 9.0, speedup: Any = 1.5, **changes: Any
) -> Candidate:
    metrics = {
        "recovered": {"fvd_real": fvd_real, "fvd_teacher": fvd_teacher},
        "pruned": {"fvd_teacher": pruned},
    }
    return Candidate(metrics, speedup, passport(**changes))


OLD = Candidate(candidate().metrics, 1.5, {"extractors": {}, "clips": 64})


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
        (candidate(real=replace(SIDE, clips=32)), candidate(), False, "real.clips: 32 against 64"),
        (candidate(frames=16, fps=4), candidate(), False, "frames: 16 against 8 fps: 4.0 against 8.0"),
        (candidate(), OLD, False, "the champion's passport of fvd_real cannot be read"),
        (OLD, candidate(), False, "the candidate's passport of fvd_real cannot be read"),
        (OLD, None, True, "no champion yet"),
        (candidate(), candidate(fvd_real=None), False, "champion's fvd_real is missing"),
        (Candidate({}, 2.0, {}), None, False, "missing"),
        (Candidate({"recovered": "junk"}, 2.0, {}), None, False, "missing"),
    ],
)
def test_gate(new: Candidate, old: Candidate | None, promoted: bool, because: str) -> None:
    decision = decide_promotion(new, old, RULES)
    assert decision.promoted is promoted
    assert because in " ".join(decision.reasons)


@pytest.mark.parametrize("old", [candidate(frames=16), OLD, candidate(fvd_real=None)])
def test_a_champion_measured_otherwise_is_refused_with_the_way_out(old: Candidate) -> None:
    (reason,) = decide_promotion(candidate(), old, RULES).reasons
    assert "; to do: set the parameters that differ back" in reason
    assert "`vdmini promote --set promote.alias=NAME`" in reason
    (reason,) = decide_promotion(OLD, old, RULES).reasons
    assert reason.endswith("to do: `vdmini evaluate --force`, then `vdmini run`")


def test_other_versions_of_libraries_are_a_remark() -> None:
    newer = candidate()
    newer.passport["fvd"]["versions"]["torch"] = "9.9"
    decision = decide_promotion(newer, candidate(), RULES)
    assert decision.promoted
    assert any("version of torch: 9.9 against" in reason for reason in decision.reasons)
