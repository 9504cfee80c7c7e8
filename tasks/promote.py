"""promote: the candidate becomes champion if the gate lets it; the decision is recorded with its reasons."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from tasks.decision_report import FORCED_TAG, add_note, decision_record, has_report, keep_report
from tasks.foreign_versions import demand_own_source, demand_own_student
from tasks.gate import Decision, decide_promotion, overrule
from tasks.promotion_history import account, finish_begun, move_champion, now
from tasks.registry import ROLLED_BACK_TAG, candidate_of, version_by_alias
from tasks.registry_lock import Turn, turn_of
from tasks.stage import StageJob, StageOutcome, temporary_files_in
from tasks.tracking import connect, fetch_model
from vdmini_core.artifacts import digest_of, write_json
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.params import Params, PromoteParams, load_params

DECISION_TAG = "vdmini.decision"
FILES = "files"  # in a decision that the files themselves made
LOOK_AGAIN = "look who changed it on MLflow; `vdmini register --force` registers the student anew"
_insisted: ContextVar[str | None] = ContextVar("insisted", default=None)


@contextmanager
def insisting(reason: str) -> Iterator[None]:
    """Inside, the gate's judgement is overruled; `reason` is recorded with the version.

    No parameter: `params.yaml` must not be able to open the gate for good.

    Raises:
        VDMiniError: for an empty reason.
    """
    if not reason.strip():
        raise VDMiniError("the gate is not overruled without a reason", fix="--reason TEXT")
    token = _insisted.set(reason.strip())
    try:
        yield
    finally:
        _insisted.reset(token)


def run(job: StageJob) -> StageOutcome:
    """Ask the gate about the candidate and move the champion alias if it says so."""
    params, client = job.params, connect(job.root)
    name, alias, insisted = params.register_.name, params.register_.alias, _insisted.get()
    looked_at = _look_at_files(job, client, insisted)
    candidate, decision, record = promote_candidate(
        client, name, alias, params.promote, insisted, looked_at=looked_at
    )
    if record["champion"] == record["candidate"] and has_report(client, candidate):
        # Nothing was asked of the gate: what it said when it made the champion stays as it was told.
        decision = Decision("keep", (f"version {candidate.version} is the champion already",))
    else:
        with temporary_files_in(job.work):
            problems = keep_report(client, candidate, record)
        for problem in problems:
            job.monitor.note(problem)
    write_json(job.out / "decision.json", {"outcome": decision.outcome, "reasons": list(decision.reasons)})
    for reason in decision.reasons:
        job.monitor.note(f"{decision.outcome}: {reason}")
    row = {
        "model": params.register_.name,
        "candidate": str(candidate.version),
        "outcome": decision.outcome,
        "why": "; ".join(decision.reasons),
    }
    return StageOutcome(
        {"outcome": decision.outcome}, timing={"version": str(candidate.version)}, table=[row], title="Gate"
    )


def _look_at_files(job: StageJob, client: MlflowClient, insisted: str | None) -> str:
    """Fetch the candidate where it is about to be promoted: what `register` saw may have been changed since.

    Before it is our turn, for a large model takes longer than a turn lasts.

    Returns:
        The version that was looked at; empty where the gate keeps the champion anyway.

    Raises:
        ModelError: for a loader that is not ours, or files that are not safe to load.
    """
    params = job.params
    candidate = version_by_alias(client, params.register_.name, params.register_.alias)
    champion = version_by_alias(client, params.register_.name, params.promote.alias)
    if candidate is None or (champion is not None and champion.version == candidate.version):
        return ""
    if not _decide(candidate, champion, params.promote, insisted).promoted:
        return ""
    try:
        look_at_files(job.root, candidate, LOOK_AGAIN, job.work)
    except ModelError as error:
        _record_refusal(client, params, str(candidate.version), error)
        raise
    return str(candidate.version)


def look_at_files(root: Path, version: ModelVersion, fix: str, place: Path | None = None) -> None:
    """Fetch a version to `place`, and see that its files are those that were registered.

    Raises:
        ModelError: as `demand_own_student`.
    """
    with tempfile.TemporaryDirectory(dir=place) as folder:
        demand_own_student(fetch_model(root, demand_own_source(version), Path(folder)), version, fix)


def _record_refusal(client: MlflowClient, params: Params, number: str, error: ModelError) -> None:
    """Leave on the version that was looked at why its files kept it out, as any other answer of the gate."""
    name, rules = params.register_.name, params.promote
    with turn_of(client, name) as turn:
        candidate = client.get_model_version(name, number)
        champion = version_by_alias(client, name, rules.alias)
        decision = Decision("keep", (" ".join(str(error).split()),))
        told = {"outcome": "keep", "reasons": list(decision.reasons), FILES: "not as registered"}
        record = _question(rules, candidate, champion) | told
        turn.check()
        client.set_model_version_tag(name, number, DECISION_TAG, json.dumps(record, sort_keys=True))
    keep_report(client, candidate, decision_record(name, candidate, champion, decision, rules))


def promote_candidate(
    client: MlflowClient,
    name: str,
    candidate_alias: str,
    rules: PromoteParams,
    insisted: str | None = None,
    *,
    looked_at: str | None = None,
) -> tuple[ModelVersion, Decision, dict[str, Any]]:
    """Decide about the candidate and carry it out, while nobody else changes the model's aliases.

    Args:
        client: of the registry.
        name: of the registered model.
        candidate_alias: alias of the version that asks.
        rules: of the gate; `rules.alias` is what it asks for.
        insisted: why the gate is overruled, None where it is not.
        looked_at: the only version that may be promoted, as its files were looked at; empty: none; None: any.

    Returns:
        The candidate, the decision, and its record for people (`decision_report.decision_record`).

    Raises:
        VDMiniError: where there is no candidate, or others hold the aliases for too long.
    """
    if version_by_alias(client, name, candidate_alias) is None:
        raise VDMiniError(
            f"`{name}` has no candidate", expected="a registered student", fix="run `vdmini register`"
        )
    with turn_of(client, name) as turn:
        finish_begun(turn)
        candidate = version_by_alias(client, name, candidate_alias)
        champion = version_by_alias(client, name, rules.alias)
        assert candidate is not None
        if champion is not None and champion.version == candidate.version:
            told = f"version {candidate.version} is the champion already"
            decision = _decided(candidate) or Decision("keep", (told,))
        else:
            decision = _decide(candidate, champion, rules, insisted)
            if decision.promoted and looked_at not in (None, str(candidate.version)):
                raise VDMiniError(
                    f"another version of `{name}` became candidate meanwhile",
                    expected=f"version {looked_at}" if looked_at else "one that the gate keeps out",
                    found=f"version {candidate.version}",
                    fix="run `vdmini promote` again",
                )
            _carry_out(turn, candidate, champion, decision, rules)
    return candidate, decision, decision_record(name, candidate, champion, decision, rules)


def _decide(
    candidate: ModelVersion, champion: ModelVersion | None, rules: PromoteParams, insisted: str | None
) -> Decision:
    facts = candidate_of(candidate)
    decision = decide_promotion(facts, candidate_of(champion) if champion else None, rules)
    return decision if insisted is None else overrule(decision, facts, insisted)


def _carry_out(
    turn: Turn,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    decision: Decision,
    rules: PromoteParams,
) -> None:
    """Record the decision on the version, then move the alias where it says so."""
    client, name, number = turn.client, turn.name, str(candidate.version)
    record = _question(rules, candidate, champion) | {
        "outcome": decision.outcome,
        "reasons": list(decision.reasons),
    }
    turn.check()
    client.set_model_version_tag(name, number, DECISION_TAG, json.dumps(record, sort_keys=True))
    if not decision.promoted:
        return
    if decision.forced is not None:
        told = {"reason": decision.forced, "by": account(), "at": now(), "gate": list(decision.reasons)}
        client.set_model_version_tag(name, number, FORCED_TAG, json.dumps(told, sort_keys=True))
        add_note(client, candidate, f"promoted against the gate: {decision.forced}")
    before = str(champion.version) if champion else None
    if decision.forced is not None:
        move_champion(turn, "force", rules.alias, before, number, decision.forced)
    else:
        move_champion(turn, "promote", rules.alias, before, number, "; ".join(decision.reasons))
    if ROLLED_BACK_TAG in candidate.tags:
        client.delete_model_version_tag(name, number, ROLLED_BACK_TAG)


def _decided(champion: ModelVersion) -> Decision | None:
    """The decision that made a version champion, where it was killed before it could be written down here."""
    told = json.loads(champion.tags.get(DECISION_TAG, "{}"))
    forced = json.loads(champion.tags.get(FORCED_TAG, "{}")).get("reason")
    return (
        Decision("promote", tuple(told["reasons"]), forced=forced)
        if told.get("outcome") == "promote"
        else None
    )


def is_current(root: Path) -> bool:
    """True where the candidate is champion, or was refused against this champion by these rules."""
    params = load_params(root / "params.yaml")
    name, client = params.register_.name, connect(root)
    candidate = version_by_alias(client, name, params.register_.alias)
    champion = version_by_alias(client, name, params.promote.alias)
    if _insisted.get() is not None:
        return False
    if candidate is None or not (root / "artifacts" / "promote" / "manifest.json").is_file():
        return False
    if champion is not None and candidate.version == champion.version:
        return True
    decided = json.loads(candidate.tags.get(DECISION_TAG, "{}"))
    asked = _question(params.promote, candidate, champion)
    # Files are no fact of a version's tags: what was said of them is asked again.
    judged = decided.get("outcome") == "keep" and FILES not in decided
    return judged and {key: decided.get(key) for key in asked} == asked


def _question(rules: PromoteParams, candidate: ModelVersion, champion: ModelVersion | None) -> dict[str, Any]:
    """All that a decision depends on; facts change where a version is registered again or measured anew."""
    facts = {
        who: digest_of(json.dumps(asdict(candidate_of(version)), sort_keys=True))
        for who, version in (("candidate", candidate), ("champion", champion))
        if version is not None
    }
    rested_on = {"facts": facts, "rules": rules.model_dump(mode="json")}
    return {"champion": str(champion.version) if champion else None, **rested_on}
