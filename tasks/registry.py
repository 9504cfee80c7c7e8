"""The MLflow model registry as `register` and `promote` use it: versions, aliases, their evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from tasks.gate import Candidate, Checks
from vdmini_core.artifacts import MANIFEST, digest_of, read_json, sha256_file
from vdmini_core.errors import VDMiniError
from vdmini_core.params import FEWEST_ROUNDS, is_number

EVIDENCE_TAG = "vdmini.evidence"
STUDENT_TAG = "vdmini.student"
CHECKS_TAG = "vdmini.checks"
PASSPORT_TAG = "vdmini.passport"
ROLLED_BACK_TAG = "vdmini.rolled_back"
# What a speed-up depends on beside the two models, as `timing.json` has it.
TIMED = ("device", "dtype", "batch", "frames", "resolution")
PROVENANCE_TAGS = {
    "teacher": "vdmini.teacher",
    "plan": "vdmini.plan_sha256",
    "data": "vdmini.data",
    "dvc_lock": "vdmini.dvc_lock",
    "git_commit": "vdmini.git_commit",
    "code": "vdmini.code",
}


def _is(error: MlflowException, code: int) -> bool:
    return error.error_code == ErrorCode.Name(code)


def ensure_model(client: MlflowClient, name: str) -> None:
    """Make the registered model where it does not exist; two runs at once are fine."""
    try:
        client.create_registered_model(name, description="Video diffusion student made by VDMini")
    except (MlflowException, RestException) as error:
        if not _is(error, RESOURCE_ALREADY_EXISTS):
            raise


def version_by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version an alias points at, or None where the registry itself says that there is none."""
    try:
        number = client.get_registered_model(name).aliases.get(alias)
    except (MlflowException, RestException) as error:
        # Something between us and the registry may answer 404, too: that is not its word.
        if _is(error, RESOURCE_DOES_NOT_EXIST) and not str(error).startswith("API request to"):
            return None
        raise
    return None if number is None else client.get_model_version(name, str(number))


def version_of_student(client: MlflowClient, name: str, student: str) -> ModelVersion | None:
    """The newest version registered from the very same student and evidence, or None."""
    found = [
        version
        for version in client.search_model_versions(f"name = '{name}'")
        if version.tags.get(STUDENT_TAG) == student
    ]
    return max(found, key=lambda version: int(version.version)) if found else None


def student_identity(root: Path) -> str:
    """One hash for the student's files and the metrics measured on it."""
    artifacts = root / "artifacts"
    return digest_of(
        {
            "student": read_json(artifacts / "distill" / "manifest.json")["outputs"],
            "metrics": read_json(artifacts / "evaluate" / "metrics.json"),
        }
    )


def evidence(root: Path) -> dict[str, Any]:
    """What the gate reads, kept as one tag of the model version.

    Raises:
        VDMiniError: where `metrics.json` is not what `evaluate` wrote.
    """
    folder = root / "artifacts" / "evaluate"
    recorded = read_json(folder / MANIFEST)["outputs"].get("metrics.json")
    if sha256_file(folder / "metrics.json") != recorded:
        raise VDMiniError(
            "artifacts/evaluate/metrics.json was changed after it was measured",
            expected=f"SHA-256 {recorded}, as evaluate's manifest has it",
            fix="`vdmini evaluate --force`",
        )
    metrics = read_json(folder / "metrics.json")
    timing = read_json(folder / "timing.json") if (folder / "timing.json").is_file() else {}
    rows = {name: metrics[name] for name in ("teacher", "pruned", "recovered") if name in metrics}
    kept = {
        row: {key: value for key, value in values.items() if isinstance(value, int | float)}
        for row, values in rows.items()
    }
    speedup = timing.get("speedup", {}).get("unet")
    rounds = timing.get("details", {}).get("unet", {}).get("recovered", {}).get("repeats", 0)
    return {
        "metrics": kept,
        "speedup": speedup,
        "speedup_range": timing.get("speedup_range", {}).get("unet") if rounds >= FEWEST_ROUNDS else None,
        "timed": {key: timing[key] for key in TIMED if key in timing},
        "passport": metrics.get("passport", {}),
    }


def candidate_of(version: ModelVersion) -> Candidate:
    """Evidence of a registered version; empty evidence never promotes."""
    data = _tag(version, EVIDENCE_TAG)
    return Candidate(
        data.get("metrics", {}),
        data.get("speedup"),
        data.get("passport", {}),
        {key: version.tags.get(tag) for key, tag in PROVENANCE_TAGS.items()},
        checks_of(version),
        _tag(version, ROLLED_BACK_TAG).get("reason"),
        data.get("timed", {}),
        _range(data.get("speedup_range")),
    )


def checks_of(version: ModelVersion) -> Checks:
    """What `register` found out about a version's files."""
    found = _tag(version, CHECKS_TAG)
    unsafe, generates = found.get("unsafe"), found.get("generates")
    if not isinstance(unsafe, list) or not isinstance(generates, bool | str):
        return Checks()  # no tag of ours
    return Checks(tuple(map(str, unsafe)), generates, str(found.get("files", "")))


def _range(found: Any) -> tuple[float, float] | None:
    if isinstance(found, list) and len(found) == 2 and all(map(is_number, found)):
        return float(found[0]), float(found[1])
    return None


def _tag(version: ModelVersion, key: str) -> dict[str, Any]:
    try:
        data = json.loads(version.tags.get(key) or "{}")
    except json.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}
