"""The promotion gate, case by case: better, worse, equal, missing, NaN, measured differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.gate import Candidate, Checks, decide_promotion, overrule
from tasks.registry import CHECKS_TAG, checks_of, evidence
from vdmini_core.artifacts import sha256_file, write_json
from vdmini_core.errors import ParamsError, VDMiniError
from vdmini_core.metrics.passport import Side, features_passport
from vdmini_core.params import PromoteParams, parse_params

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
    return Candidate(metrics, speedup, passport(**changes), MADE_FROM, FINE)


MADE_FROM = {"teacher": "f00d", "plan": "91a4", "data": "da7a", "dvc_lock": "none", "code": "c0de"}
FINE = Checks(generates=True)
OLD = Candidate(candidate().metrics, 1.5, {"extractors": {}, "clips": 64}, MADE_FROM, FINE)


def measured(low: float, high: float, speedup: float = 1.5, params: int = 1000, **facts: Any) -> Candidate:
    """A version with the interval of its fvd_real, the value in the middle."""
    made = replace(
        candidate((low + high) / 2, speedup=speedup), speedup_range=(speedup - 0.03, speedup + 0.03)
    )
    rows = {**made.metrics["recovered"], "fvd_real_low": low, "fvd_real_high": high, "params": params}
    return replace(made, metrics={**made.metrics, "recovered": rows}, **facts)


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
        (OLD, None, False, "the candidate's passport of fvd_real cannot be read"),
        (candidate(), candidate(fvd_real=None), False, "champion's fvd_real is missing"),
        (Candidate({}, 2.0, {}, MADE_FROM, FINE), None, False, "missing"),
        (Candidate({"recovered": "junk"}, 2.0, {}, MADE_FROM, FINE), None, False, "missing"),
    ],
)
def test_gate(new: Candidate, old: Candidate | None, promoted: bool, because: str) -> None:
    decision = decide_promotion(new, old, RULES)
    assert decision.promoted is promoted
    assert because in " ".join(decision.reasons)


def test_a_candidate_without_an_interval_does_not_replace_one_that_has_it() -> None:
    champion = measured(9.0, 11.0)
    decision = decide_promotion(candidate(fvd_real=10.2), champion, RULES)
    assert not decision.promoted and "the candidate has no interval" in " ".join(decision.reasons)
    assert decide_promotion(measured(6.0, 8.0), candidate(), RULES).promoted  # the other way round it may


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


OLD_CUT = {**MADE_FROM, "plan": "01d"}
CHAMPION = replace(measured(9.0, 11.0), provenance=OLD_CUT)  # of another cut


@pytest.mark.parametrize(
    ("new", "promoted", "because"),
    [
        (measured(6.0, 8.0), True, "clearly better"),
        (measured(6.0, 8.0, speedup=1.2, params=2000), True, "clearly better"),
        (measured(8.0, 10.0), False, "neither better nor worse, the intervals overlap; and no gain"),
        (measured(9.0, 11.0), False, "neither better nor worse"),
        (measured(9.0, 11.0, speedup=1.575), True, "equal within their intervals; speed-up 1.57x"),
        (measured(9.0, 11.0, speedup=1.57), False, "no gain of 5% in speed or size"),
        (measured(9.0, 11.0, speedup=2.0, speedup_range=None), False, "fewer than 3 rounds timed"),
        (
            measured(9.0, 11.0, speedup=2.0, speedup_range=(1.53, 2.1)),
            False,
            "rounds from 1.53 to 2.1 and 1.47",
        ),
        (measured(9.0, 11.0, speedup=1.0, speedup_range=(0.9, 1.6), params=500), True, "not told apart"),
        (measured(9.0, 11.0, params=950), True, "950 parameters against 1,000"),
        (measured(9.0, 11.0, params=960), False, "no gain of 5%"),
        (measured(9.0, 11.0, speedup=1.8, params=1100), False, "without a loss in the other"),
        (measured(9.0, 11.0, speedup=1.0, params=500), False, "without a loss in the other"),
        (measured(9.0, 11.0, speedup=2.0, provenance={**MADE_FROM, "teacher": "0ther"}), False, "no gain"),
        (measured(9.0, 11.0, speedup=2.0, provenance=OLD_CUT), False, "same plan: equally fast"),
        (measured(9.0, 11.0, speedup=2.0, timed={"device": "fast"}), False, "device fast against unknown"),
        (measured(9.0, 11.0, speedup=1.1, params=500, timed={"device": "slow"}), True, "timed otherwise"),
        (measured(9.0, 11.0, params=500, provenance={**MADE_FROM, "teacher": "0ther"}), True, "500 param"),
        (measured(10.0, 12.0, speedup=2.0), False, "worse than the champion's 10 by more than 5%"),
        (measured(9.2, 11.2, speedup=2.0), True, "equal within"),
        (candidate(), False, "the candidate has no interval, the champion has one"),
    ],
)
def test_quality_by_intervals_then_speed_and_size(new: Candidate, promoted: bool, because: str) -> None:
    decision = decide_promotion(new, CHAMPION, RULES)
    assert decision.promoted is promoted, decision.reasons
    assert because in " ".join(decision.reasons)


def test_clearly_worse_is_refused_even_within_the_tolerance() -> None:
    (reason,) = decide_promotion(
        measured(10.2, 10.4, speedup=3.0), measured(9.9, 10.1), PromoteParams(max_fvd_regression=0.5)
    ).reasons
    assert "clearly worse, the intervals do not meet; to do: " in reason


def test_any_gain_will_do_with_min_gain_of_nought_but_none_is_none() -> None:
    rules = PromoteParams(min_gain=0)
    assert not decide_promotion(CHAMPION, CHAMPION, rules).promoted
    assert decide_promotion(measured(9.0, 11.0, params=999), CHAMPION, rules).promoted


@pytest.mark.parametrize(
    ("facts", "because"),
    [
        ({"checks": Checks(("unet/model.bin",), True)}, "not safetensors: unet/model.bin; to do: save the"),
        (
            {"checks": Checks(generates="ModelError: no weights")},
            "does not load and generate: ModelError: no",
        ),
        ({"checks": Checks()}, "it was never tried; to do: `vdmini register --force`"),
        (
            {"provenance": {}},
            "the teacher's fingerprint, the plan, the data version or DVC lock, the git comm",
        ),
        (
            {"provenance": {**MADE_FROM, "teacher": "unknown"}},
            "not recorded: the teacher's fingerprint; to do",
        ),
        ({"provenance": {**MADE_FROM, "data": "none"}}, "not recorded: the data version or DVC lock; to do"),
        ({"provenance": {**MADE_FROM, "code": ""}}, "not recorded: the git commit or code version; to do"),
        ({"rolled_back": "green frames"}, "was rolled back: green frames; to do: "),
    ],
)
@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_what_the_registration_found_keeps_the_best_figures_out(
    facts: dict[str, Any], because: str, champion: Candidate | None
) -> None:
    decision = decide_promotion(measured(1.0, 2.0, **facts), champion, RULES)
    assert not decision.promoted
    assert because in " ".join(decision.reasons)


@pytest.mark.parametrize("key", ["data", "dvc_lock"])
def test_one_record_of_the_data_is_enough(key: str) -> None:
    kept = {name: value for name, value in MADE_FROM.items() if name != "data"} | {key: "da7a"}
    assert decide_promotion(measured(1.0, 2.0, provenance=kept), None, RULES).promoted


def test_every_reason_to_keep_says_what_to_do() -> None:
    cases = [candidate(fvd_real=None), candidate(fvd_teacher=9.0), candidate(speedup=0.5), measured(20, 21)]
    for new in (*cases, CHAMPION, OLD, Candidate({}, None, {})):
        decision = decide_promotion(new, CHAMPION, RULES)
        assert not decision.promoted
        assert all("to do: " in reason for reason in decision.reasons), decision.reasons


@pytest.mark.parametrize(
    ("new", "promoted"),
    [
        (measured(20, 21), True),
        (candidate(fvd_real=None), True),
        (measured(9, 11, rolled_back="green frames"), True),
        (measured(1, 2, provenance={}), True),
        (measured(1, 2, checks=Checks(("a.pkl",), True)), False),
        (measured(1, 2, checks=Checks(generates="no weights")), False),
    ],
)
def test_a_person_overrules_judgement_but_not_files_that_are_unsafe_or_do_not_load(
    new: Candidate, promoted: bool
) -> None:
    decision = decide_promotion(new, CHAMPION, RULES)
    assert not decision.promoted
    overruled = overrule(decision, new, "demo on Friday")
    assert overruled.promoted is promoted
    assert overruled.forced == ("demo on Friday" if promoted else None)
    assert len(overruled.reasons) >= 1


def test_what_the_gate_lets_through_is_not_overruled() -> None:
    decision = decide_promotion(measured(1, 2), CHAMPION, RULES)
    assert overrule(decision, measured(1, 2), "why not") == decision


@pytest.mark.parametrize(
    "sections",
    [
        {"register": {"alias": "champion"}},
        {"register": {"alias": "previous"}},
        {"register": {"alias": "Champion-2-previous"}},
        {"promote": {"alias": "previous"}},
        {"promote": {"alias": "x-previous"}},
        {"register": {"alias": "best"}, "promote": {"alias": "best"}},
    ],
)
def test_no_parameter_leads_past_the_gate(sections: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match="alias"):
        parse_params(sections, "params.yaml")


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (9.0, 6.0)])
def test_bounds_that_do_not_hold_the_value_win_nothing(low: float, high: float) -> None:
    made = measured(low, high)
    recovered = {**made.metrics["recovered"], "fvd_real": 10.0}
    made = replace(made, metrics={**made.metrics, "recovered": recovered})
    decision = decide_promotion(made, measured(10.5, 11.5), RULES)
    assert not decision.promoted and "has no interval" in decision.reasons[0]


def test_what_the_gate_believes_is_set_by_no_parameter_and_no_edited_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="only `register` writes"):
        parse_params({"register": {"tags": {"vdmini.evidence": "{}"}}}, "params.yaml")
    folder = tmp_path / "artifacts" / "evaluate"
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", {"recovered": {"fvd_real": 2.0}})
    write_json(folder / "manifest.json", {"outputs": {"metrics.json": sha256_file(folder / "metrics.json")}})
    assert evidence(tmp_path)["metrics"]["recovered"] == {"fvd_real": 2.0}
    write_json(folder / "metrics.json", {"recovered": {"fvd_real": 0.1}})
    with pytest.raises(VDMiniError, match="changed after it was measured"):
        evidence(tmp_path)


@pytest.mark.parametrize(
    "tag", ["", "{", "[]", "{}", '{"unsafe": 1, "generates": true}', '{"generates": true}', '{"unsafe": []}']
)
def test_a_tag_of_checks_that_register_did_not_write_says_that_nothing_was_tried(tag: str) -> None:
    assert checks_of(SimpleNamespace(tags={CHECKS_TAG: tag})) == Checks()  # type: ignore[arg-type]
