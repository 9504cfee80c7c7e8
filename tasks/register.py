"""register: the recovered student becomes a version of a registered MLflow model, with its evidence."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc

import vdmini_core
from tasks.registry import (
    EVIDENCE_TAG,
    STUDENT_TAG,
    ensure_model,
    evidence,
    student_identity,
    version_by_alias,
    version_of_student,
)
from tasks.stage import StageJob, StageOutcome, finished
from tasks.tracking import MLflowMonitor, connect, tracking_uri
from vdmini_core.artifacts import sha256_file, write_json
from vdmini_core.errors import VDMiniError

# What a served student needs; nothing of the pipeline.
RUNTIME = (
    *("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "scipy", "pydantic"),
    *("ruamel.yaml", "av", "pillow", "tqdm", "pandas"),
)


def run(job: StageJob) -> StageOutcome:
    """Register the student once per identity; running again finds the version that is there."""
    rules, client = job.params.register_, connect(job.root)
    identity = student_identity(job.root)
    ensure_model(client, rules.name)
    version = version_of_student(client, rules.name, identity)
    if version is None:
        number = _log_version(job, identity)
    else:
        number = str(version.version)
        for key, value in rules.tags.items():
            client.set_model_version_tag(rules.name, number, key, value)
        job.monitor.note(f"this student is version {number} already")
    client.set_registered_model_alias(rules.name, rules.alias, number)
    facts = {"name": rules.name, "alias": rules.alias, "student": identity}
    write_json(job.out / "registration.json", facts)
    row = {
        "model": rules.name,
        "version": number,
        "alias": rules.alias,
        "uri": f"models:/{rules.name}@{rules.alias}",
    }
    return StageOutcome(
        metrics={"student": identity}, timing={"version": number}, table=[row], title="Registered"
    )


def is_current(root: Path, name: str, alias: str) -> bool:
    """True where the alias already points at this very student."""
    if not (root / "artifacts" / "register" / "manifest.json").is_file():
        return False
    version = version_by_alias(connect(root), name, alias)
    return version is not None and version.tags.get(STUDENT_TAG) == student_identity(root)


def _log_version(job: StageJob, identity: str) -> str:
    if not isinstance(job.monitor, MLflowMonitor):
        raise VDMiniError("`register` needs MLflow", fix="run it through `vdmini register` or `vdmini run`")
    mlflow.set_tracking_uri(tracking_uri(job.root))
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=job.monitor.run_id),
        warnings.catch_warnings(),
    ):
        # MLflow would have `predict` annotated, then refuse arrays and images; it sets its own filters.
        show = warnings.showwarning
        warnings.showwarning = lambda message, *more: (
            None if "type hints" in str(message) else show(message, *more)
        )
        info = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("serving_model.py")),
            artifacts={"pipeline": str(job.artifact("distill") / "student")},
            code_paths=[str(_core_without_weights(Path(folder)))],
            pip_requirements=[f"{name}=={_installed(name)}" for name in RUNTIME],
        )
    # One call makes the version with all its tags: a kill leaves a whole version or none.
    version = connect(job.root).create_model_version(
        job.params.register_.name,
        source=f"models:/{info.model_id}",
        run_id=job.monitor.run_id,
        tags=_tags(job.root, identity) | job.params.register_.tags,
        model_id=info.model_id,
    )
    return str(version.version)


def _core_without_weights(folder: Path) -> Path:
    # The registered model carries the code that loads it, not the teachers shipped with the package.
    target = folder / "vdmini_core"
    source = Path(vdmini_core.__file__).parent
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "templates")
    )
    return target


def _installed(name: str) -> str:
    return importlib.metadata.version(name).split("+")[0]


def _tags(root: Path, identity: str) -> dict[str, str]:
    lock = root / "dvc.lock"
    plan = finished(root, "plan")
    tags: dict[str, Any] = {
        STUDENT_TAG: identity,
        EVIDENCE_TAG: json.dumps(evidence(root), sort_keys=True),
        "vdmini.version": vdmini_core.__version__,
        "vdmini.plan": json.dumps(plan["metrics"], sort_keys=True)[:4000],
        "vdmini.teacher": finished(root, "teacher")["metrics"].get("fingerprint", "unknown"),
        "vdmini.dvc_lock": sha256_file(lock) if lock.is_file() else "none",
        "vdmini.git_commit": git_commit(root),
    }
    return {key: str(value) for key, value in tags.items()}


def git_commit(root: Path) -> str:
    """Commit of the project folder, `none` outside git."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return found.stdout.strip() or "none"
