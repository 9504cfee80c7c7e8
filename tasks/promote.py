"""promote: the candidate becomes champion if the gate lets it; the decision is recorded with its reasons."""

from __future__ import annotations

from pathlib import Path

from tasks.gate import Decision, decide_promotion
from tasks.registry import candidate_of, version_by_alias
from tasks.stage import StageJob, StageOutcome
from tasks.tracking import connect
from vdmini_core.artifacts import write_json
from vdmini_core.errors import VDMiniError


def run(job: StageJob) -> StageOutcome:
    """Ask the gate about the candidate and move the champion alias if it says so."""
    name, rules = job.params.register_.name, job.params.promote
    client = connect(job.root)
    candidate = version_by_alias(client, name, job.params.register_.alias)
    if candidate is None:
        raise VDMiniError(
            f"`{name}` has no candidate", expected="a registered student", fix="run `vdmini register`"
        )
    champion = version_by_alias(client, name, rules.alias)
    number = str(candidate.version)
    if champion is not None and champion.version == candidate.version:
        decision = Decision("keep", (f"version {number} is the champion already",))
    else:
        decision = decide_promotion(
            candidate_of(candidate), candidate_of(champion) if champion else None, rules
        )
    if decision.promoted:
        if champion is not None:
            client.set_registered_model_alias(name, "previous", str(champion.version))
        client.set_registered_model_alias(name, rules.alias, number)
        client.set_model_version_tag(name, number, "vdmini.promotion", "; ".join(decision.reasons)[:4000])
    elif champion is None or champion.version != candidate.version:
        client.set_model_version_tag(name, number, "vdmini.refusal", "; ".join(decision.reasons)[:4000])
    write_json(job.out / "decision.json", {"outcome": decision.outcome, "reasons": list(decision.reasons)})
    for reason in decision.reasons:
        job.monitor.note(f"{decision.outcome}: {reason}")
    row = {
        "model": name,
        "candidate": number,
        "outcome": decision.outcome,
        "why": "; ".join(decision.reasons),
    }
    return StageOutcome(
        metrics={"outcome": decision.outcome}, timing={"version": number}, table=[row], title="Gate"
    )


def is_current(root: Path, name: str, candidate_alias: str, champion_alias: str) -> bool:
    """True where the candidate is the champion already."""
    client = connect(root)
    candidate = version_by_alias(client, name, candidate_alias)
    champion = version_by_alias(client, name, champion_alias)
    return candidate is not None and champion is not None and candidate.version == champion.version
