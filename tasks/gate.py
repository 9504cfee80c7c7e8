"""The promotion gate: a pure function, so that nobody can talk their way around it.

`decide_promotion(candidate, champion, rules)` looks at facts only; `register` gathers them, `promote`
carries the decision out. The rules in words: docs/operations.md, "The registry and its gate".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tasks.gate_quality import Change, Speed, costs, quality
from vdmini_core.errors import DataError
from vdmini_core.metrics.passport import Passport, require_comparable
from vdmini_core.params import PromoteParams, is_number

EVALUATE_AGAIN = "to do: `vdmini evaluate --force`, then `vdmini run`"
REGISTER_AGAIN = "to do: `vdmini register --force` in the project that made it"
BETTER_STUDENT = "to do: change the plan or recover longer, then `vdmini run`"
WAY_OUT = (
    "to do: set the parameters that differ back, so that the candidate is measured as the champion was; "
    "or measure the champion's parameters as these, in a workspace with `--set promote.alias=NAME`, "
    "and then `vdmini promote --set promote.alias=NAME` here (docs/metrics.md, Passport)"
)
# Each line: any one of these facts will do.
PROVENANCE = {
    "the teacher's fingerprint": ("teacher",),
    "the plan": ("plan",),
    "the data version or DVC lock": ("data", "dvc_lock"),
    "the git commit or code version": ("git_commit", "code"),
}
UNKNOWN = (None, "", "none", "unknown")


@dataclass(frozen=True)
class Decision:
    """Outcome of the gate with every reason that was looked at; `forced` says why a person overruled it."""

    outcome: Literal["promote", "keep"]
    reasons: tuple[str, ...]
    forced: str | None = None

    @property
    def promoted(self) -> bool:
        """True when the candidate becomes champion."""
        return self.outcome == "promote"


@dataclass(frozen=True)
class Checks:
    """What `register` found out about the files it registered.

    Attributes:
        unsafe: files that could run code when loaded, or call themselves safetensors and are not.
        generates: True where the student was loaded from the registry and made a clip of its length;
            else what went wrong, or that nobody tried.
        files: digest of all files of the registered model, its loader and requirements too, as they were
            then (`foreign_versions.files_digest`); empty where an earlier release registered it.
    """

    unsafe: tuple[str, ...] = ()
    generates: bool | str = "it was never tried"
    files: str = ""


@dataclass(frozen=True)
class Candidate:
    """What the gate knows of a model version.

    Attributes:
        metrics: rows of `artifacts/evaluate/metrics.json`, intervals and costs included.
        speedup: the denoiser's speed-up over the teacher, None where not measured.
        timed: how that was measured (`registry.TIMED`): speed-ups of another device or size say nothing.
        speedup_range: of the slowest and the fastest round; None where too few rounds were timed to tell.
        passport: measure (`fvd`, `content`, ...) -> how it was measured (`metrics.passport.Passport`).
        provenance: what it was made from and by; keys as in `PROVENANCE`.
        checks: of the registered files.
        rolled_back: why a person took this version out of service, None where nobody did.
    """

    metrics: Mapping[str, Any]
    speedup: float | None
    passport: Mapping[str, Any]
    provenance: Mapping[str, str | None] = field(default_factory=dict)
    checks: Checks = Checks()
    rolled_back: str | None = None
    timed: Mapping[str, Any] = field(default_factory=dict)
    speedup_range: tuple[float, float] | None = None


def decide_promotion(candidate: Candidate, champion: Candidate | None, rules: PromoteParams) -> Decision:
    """Whether `candidate` may become champion. A missing or non-finite figure never promotes."""
    failures = [*_unusable(candidate), *_unknown_origin(candidate)]
    passes: list[str] = []
    if candidate.rolled_back is not None:
        failures.append(
            f"this version was champion and was rolled back: {candidate.rolled_back}; {BETTER_STUDENT}, or "
            "`vdmini promote --force --reason TEXT` where the reason no longer holds"
        )
    missing = _missing(candidate)
    if missing:
        failures += [f"{name} is missing or not a finite number; {EVALUATE_AGAIN}" for name in missing]
    else:
        _check_recovery(candidate, rules, passes, failures)
        _check_speed(float(candidate.speedup or 0.0), rules, passes, failures)
        if champion is not None:
            _check_champion(candidate, champion, rules, passes, failures)
    if champion is None:
        _check_first(candidate, passes, failures)
    return Decision("keep", tuple(failures)) if failures else Decision("promote", tuple(passes))


def overrule(decision: Decision, candidate: Candidate, reason: str) -> Decision:
    """The decision after a person insisted: judgements yield, files that are unsafe or do not load do not."""
    unusable = _unusable(candidate)
    if decision.promoted or unusable:
        return decision if decision.promoted else replace(decision, reasons=tuple(unusable))
    told = (line.partition("; to do: ")[0] for line in decision.reasons)
    return Decision("promote", tuple(f"overruled: {line}" for line in told), forced=reason)


def _unusable(candidate: Candidate) -> list[str]:
    found = []
    if candidate.checks.unsafe:
        names = ", ".join(candidate.checks.unsafe[:5])
        found.append(
            f"files that are not safetensors: {names}; to do: save the student with safetensors "
            "(`vdmini prune --force`, then `vdmini run`) and delete them"
        )
    if candidate.checks.generates is not True:
        found.append(
            f"the registered student does not load and generate: {candidate.checks.generates}; "
            f"{REGISTER_AGAIN}; if it fails again, `vdmini distill --force`, then `vdmini run`"
        )
    return found


def _unknown_origin(candidate: Candidate) -> list[str]:
    missing = [
        what
        for what, keys in PROVENANCE.items()
        if all(candidate.provenance.get(key) in UNKNOWN for key in keys)
    ]
    return [f"where it comes from is not recorded: {', '.join(missing)}; {REGISTER_AGAIN}"] if missing else []


def _missing(candidate: Candidate) -> list[str]:
    recovered, pruned = row(candidate.metrics, "recovered"), row(candidate.metrics, "pruned")
    needed = {
        "recovered.fvd_teacher": recovered.get("fvd_teacher"),
        "recovered.fvd_real": recovered.get("fvd_real"),
        "pruned.fvd_teacher": pruned.get("fvd_teacher"),
        "speedup": candidate.speedup,
    }
    return [name for name, value in needed.items() if not is_number(value)]


def row(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A row of the metrics, empty where it is missing or no row."""
    found = metrics.get(name)
    return found if isinstance(found, Mapping) else {}


def _check_recovery(
    candidate: Candidate, rules: PromoteParams, passes: list[str], failures: list[str]
) -> None:
    ours, theirs = row(candidate.metrics, "recovered"), row(candidate.metrics, "pruned")
    recovered, pruned = ours["fvd_teacher"], theirs["fvd_teacher"]
    limit = rules.max_fvd_teacher_ratio * pruned
    text = f"distance to the teacher {recovered:.4g} against {pruned:.4g} before recovery"
    if recovered >= limit:
        failures.append(f"{text}: must be below {limit:.4g}; {BETTER_STUDENT}")
        return
    passes.append(text)
    if quality(ours, theirs, "fvd_teacher") is Change.EQUAL:
        passes.append("remark: those two intervals overlap, so that recovery is not shown beyond doubt")


def _check_speed(speedup: float, rules: PromoteParams, passes: list[str], failures: list[str]) -> None:
    text = f"denoiser speed-up {speedup:.3g}x"
    if speedup >= rules.min_speedup:
        passes.append(text)
    else:
        failures.append(
            f"{text} is below {rules.min_speedup:.3g}x; to do: prune more (`plan.max_latency_ratio`), or "
            "set `promote.min_speedup` to what you need"
        )


def _check_first(candidate: Candidate, passes: list[str], failures: list[str]) -> None:
    """The first champion has to say how it was measured, or nothing could ever be held against it."""
    try:
        _passport(candidate, "the candidate's")
    except DataError as error:
        failures.append(f"{' '.join(f'{error.problem}: {error.found}'.split())}; {EVALUATE_AGAIN}")
    else:
        passes.append("there is no champion yet")


def _check_champion(
    candidate: Candidate, champion: Candidate, rules: PromoteParams, passes: list[str], failures: list[str]
) -> None:
    """Equal passports first, then quality, then what it costs."""
    ours, theirs = row(candidate.metrics, "recovered"), row(champion.metrics, "recovered")
    way_out = EVALUATE_AGAIN
    try:
        measured = _passport(candidate, "the candidate's")
        way_out = WAY_OUT
        against = _passport(champion, "the champion's")
        remarks = require_comparable(measured, against, names=("the candidate", "the champion"))
    except DataError as error:
        failures.append(f"{' '.join(f'{error.problem}: {error.found}'.split())}; {way_out}")
        return
    if not is_number(theirs.get("fvd_real")):
        failures.append(f"the champion's fvd_real is missing or not a finite number; {WAY_OUT}")
        return
    passes += remarks
    text = f"fvd_real {ours['fvd_real']:.4g} against the champion's {theirs['fvd_real']:.4g}"
    change = quality(ours, theirs, "fvd_real")
    if ours["fvd_real"] > theirs["fvd_real"] * (1 + rules.max_fvd_regression):
        failures.append(
            f"fvd_real {ours['fvd_real']:.4g} is worse than the champion's {theirs['fvd_real']:.4g} "
            f"by more than {rules.max_fvd_regression:.0%}; {BETTER_STUDENT}"
        )
    elif change is Change.WORSE:
        failures.append(f"{text}: clearly worse, the intervals do not meet; {BETTER_STUDENT}")
    elif change is Change.EQUAL:
        _check_gain(candidate, champion, rules, text, passes, failures)
    elif change is Change.BETTER:
        passes.append(f"{text}: clearly better, the intervals do not meet")
    elif all(is_number(theirs.get(f"fvd_real_{end}")) for end in ("low", "high")):
        failures.append(f"{text}: the candidate has no interval, the champion has one; {EVALUATE_AGAIN}")
    else:
        passes.append(f"{text}; intervals are not known on both sides: judged by the values alone")


def _check_gain(
    candidate: Candidate,
    champion: Candidate,
    rules: PromoteParams,
    text: str,
    passes: list[str],
    failures: list[str],
) -> None:
    """Equal quality has to be faster or smaller, and not give the gain back in the other."""
    same_teacher = candidate.provenance.get("teacher") == champion.provenance.get("teacher")
    otherwise = _timed_otherwise(candidate.timed, champion.timed)
    # One architecture is as fast as itself: two timings of it differ by what else the machine did.
    same_plan = same_teacher and candidate.provenance.get("plan") == champion.provenance.get("plan")
    found = costs(
        row(candidate.metrics, "recovered"),
        row(champion.metrics, "recovered"),
        (_speed(candidate), _speed(champion)) if same_teacher and not otherwise and not same_plan else None,
        rules.min_gain,
    )
    changes = {change for change, _ in found}
    lines = [line for _, line in found] or ["neither speed nor size of both is known"]
    if otherwise:
        lines.append(f"speed-ups do not count, they were timed otherwise: {otherwise}")
    if same_plan:
        lines.append("both are cut by the same plan: equally fast")
    said = ", ".join(lines)
    if Change.BETTER in changes and Change.WORSE not in changes:
        passes.append(f"{text}: equal within their intervals; {said}")
    else:
        failures.append(
            f"{text}: neither better nor worse, the intervals overlap; and no gain of "
            f"{rules.min_gain:.0%} in speed or size without a loss in the other: {said}; "
            f"{BETTER_STUDENT}; or measure on more clips (`evaluate.clips`), which narrows the intervals"
        )


def _speed(version: Candidate) -> Speed:
    return Speed(version.speedup, version.speedup_range)


def _timed_otherwise(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What differs in how two speed-ups were measured; empty where nothing does."""
    keys = sorted({*ours, *theirs})
    differ = [key for key in keys if ours.get(key) != theirs.get(key)]
    return "; ".join(
        f"{key} {ours.get(key, 'unknown')} against {theirs.get(key, 'unknown')}" for key in differ
    )


def _passport(version: Candidate, whose: str) -> Passport:
    return Passport.from_json(version.passport.get("fvd"), f"{whose} passport of fvd_real")
