"""What people read about a decision: `decision/decision.json` and `decision.txt` on the version's run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tasks.gate import Candidate, Decision, row
from tasks.promotion_history import account, now
from tasks.registry import candidate_of
from vdmini_core.foreign import markdown_line
from vdmini_core.params import PromoteParams, is_number

FORCED_TAG = "vdmini.forced"
FOLDER = "decision"
SHOWN = ("fvd_real", "fvd_real_low", "fvd_real_high", "fvd_teacher", "params", "vae_decoder_params")


def decision_record(
    name: str,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    decision: Decision,
    rules: PromoteParams,
) -> dict[str, Any]:
    """Everything a decision rests on, ready for JSON."""
    return {
        "model": name,
        "candidate": str(candidate.version),
        "champion": str(champion.version) if champion else None,
        "outcome": decision.outcome,
        "forced": decision.forced,
        "reasons": list(decision.reasons),
        "rules": rules.model_dump(mode="json"),
        "facts": {
            who: _facts(candidate_of(version))
            for who, version in (("candidate", candidate), ("champion", champion))
            if version is not None
        },
        "at": now(),
        "by": account(),
    }


def _facts(version: Candidate) -> dict[str, Any]:
    found = {key: row(version.metrics, "recovered").get(key) for key in SHOWN} | {"speedup": version.speedup}
    numbers = {key: value if is_number(value) else None for key, value in found.items()}
    return {**numbers, "provenance": dict(version.provenance)}


def readable(record: Mapping[str, Any]) -> str:
    """The record as text: the outcome, why, and the figures side by side."""
    against = f"champion, version {record['champion']}" if record["champion"] else "no champion"
    lines = [
        f"{record['model']}, version {record['candidate']} against {against}: {record['outcome']}",
        f"{record['at']}, {record['by']}",
        "",
        *([f"forced: {record['forced']}", ""] if record["forced"] else []),
        *(f"- {reason}" for reason in record["reasons"]),
        "",
        f"{'':20} " + " ".join(f"{who:>14}" for who in record["facts"]),
    ]
    for key in (*SHOWN, "speedup"):
        values = [facts[key] for facts in record["facts"].values()]
        lines.append(f"{key:20} " + " ".join(f"{_shown(value):>14}" for value in values))
    rules = ", ".join(f"{key} {value}" for key, value in record["rules"].items())
    return "\n".join([*lines, "", f"rules: {rules}", ""])


def _shown(value: float | None) -> str:
    return "-" if value is None else format(value, "," if isinstance(value, int) else ".6g")


def keep_report(client: MlflowClient, version: ModelVersion, record: Mapping[str, Any]) -> list[str]:
    """Put the report on the run that made the version; returns what went wrong, for the notes.

    The decision stands with or without it: it is in the version's tags already.
    """
    if not version.run_id:
        return []
    try:
        text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        client.log_text(version.run_id, text, f"{FOLDER}/decision.json")
        client.log_text(version.run_id, readable(record), f"{FOLDER}/decision.txt")
    except (MlflowException, OSError) as error:
        return [f"the decision report did not reach MLflow: {str(error).splitlines()[0]}"]
    return []


def has_report(client: MlflowClient, version: ModelVersion) -> bool:
    """Whether the decision that made a version what it is lies on its run."""
    if not version.run_id:
        return False
    try:
        return bool(client.list_artifacts(version.run_id, FOLDER))
    except (MlflowException, OSError):
        return False


def add_note(client: MlflowClient, version: ModelVersion, text: str) -> None:
    """Add a dated line to the version's description, which is what its page shows first."""
    name, number = version.name, str(version.version)
    told = client.get_model_version(name, number).description
    line = markdown_line(f"{now()} {account()}: {text}")
    client.update_model_version(name, number, "\n\n".join(filter(None, (told, line))))
