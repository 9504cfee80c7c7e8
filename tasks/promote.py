"""promote: the candidate becomes champion if the gate lets it; the decision is recorded with its reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from tasks.gate import Decision, decide_promotion
from tasks.registry import candidate_of, version_by_alias
from tasks.stage import StageJob, StageOutcome
from tasks.tracking import connect
from vdmini_core.artifacts import write_json
from vdmini_core.errors import VDMiniError
from vdmini_core.params import Params, load_params, section_dict

DECISION_TAG = "vdmini.decision"
PREVIOUS = "previous"


def run(job: StageJob) -> StageOutcome:
    """Ask the gate about the candidate and move the champion alias if it says so."""
    name, rules = job.params.register_.name, job.params.promote
    client = connect(job.root)
    candidate = version_by_alias(client, name, job.params.register_.alias)
    if candidate is None:
        raise VDMiniError(
            f"`{name}` has no candidate", expected="a registered student", fix="run `vdmini register`"
        )
    champion, number = version_by_alias(client, name, rules.alias), str(candidate.version)
    if champion is not None and champion.version == candidate.version:
        decision = _decided(candidate) or Decision("keep", (f"version {number} is the champion already",))
    else:
        theirs = candidate_of(champion) if champion else None
        decision = decide_promotion(candidate_of(candidate), theirs, rules)
        record = _question(job.params, champion) | {
            "outcome": decision.outcome,
            "reasons": list(decision.reasons),
        }
        client.set_model_version_tag(name, number, DECISION_TAG, json.dumps(record, sort_keys=True))
    if decision.promoted and (champion is None or champion.version != candidate.version):
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(champion.version))
        client.set_registered_model_alias(name, rules.alias, number)
    write_json(job.out / "decision.json", {"outcome": decision.outcome, "reasons": list(decision.reasons)})
    for reason in decision.reasons:
        job.monitor.note(f"{decision.outcome}: {reason}")
    row = {
        "model": name,
        "candidate": number,
        "outcome": decision.outcome,
        "why": "; ".join(decision.reasons),
    }
    return StageOutcome({"outcome": decision.outcome}, timing={"version": number}, table=[row], title="Gate")


def _decided(champion: ModelVersion) -> Decision | None:
    """The decision that made a version champion, where it was killed before it could be written down here."""
    told = json.loads(champion.tags.get(DECISION_TAG, "{}"))
    return Decision("promote", tuple(told["reasons"])) if told.get("outcome") == "promote" else None


def is_current(root: Path) -> bool:
    """True where the candidate is champion, or was refused against this champion by these rules."""
    params = load_params(root / "params.yaml")
    name, client = params.register_.name, connect(root)
    candidate = version_by_alias(client, name, params.register_.alias)
    champion = version_by_alias(client, name, params.promote.alias)
    if candidate is None or not (root / "artifacts" / "promote" / "manifest.json").is_file():
        return False
    if champion is not None and candidate.version == champion.version:
        return True
    decided = json.loads(candidate.tags.get(DECISION_TAG, "{}"))
    asked = _question(params, champion)
    return decided.get("outcome") == "keep" and {key: decided.get(key) for key in asked} == asked


def _question(params: Params, champion: ModelVersion | None) -> dict[str, Any]:
    """What a decision depends on beside the candidate itself."""
    return {
        "champion": str(champion.version) if champion else None,
        "rules": section_dict(params, "promote"),
    }
