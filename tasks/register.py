"""register: the recovered student becomes a version of a registered MLflow model, with its evidence."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

import vdmini_core
from tasks.foreign_versions import demand_own_source, files_digest
from tasks.gate import Checks
from tasks.models import device_of
from tasks.once import once
from tasks.promotion_history import history
from tasks.provenance import check_student, provenance, without_hint_warning
from tasks.recipe import keep_recipe
from tasks.registered_files import LOADER_FILE, unlike_ours
from tasks.registry import (
    CHECKS_TAG,
    EVIDENCE_TAG,
    PASSPORT_TAG,
    PROVENANCE_TAGS,
    STUDENT_TAG,
    checks_of,
    ensure_model,
    evidence,
    student_identity,
    version_by_alias,
    version_of_student,
)
from tasks.registry_lock import turn_of
from tasks.serving_signature import signature_of
from tasks.stage import StageJob, StageOutcome, finished, temporary_files_in
from tasks.tracking import MLflowMonitor, connect, fetch_model, store_of_the_process
from vdmini_core.artifacts import write_json
from vdmini_core.errors import VDMiniError

# What a served student needs; nothing of the pipeline.
RUNTIME = (
    *("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "scipy", "pydantic"),
    *("av", "pillow", "tqdm", "pandas"),
)


def run(job: StageJob) -> StageOutcome:
    """Register the student once per identity; running again finds the version that is there."""
    # MLflow makes a whole copy of the model in the temporary folder.
    with temporary_files_in(job.work), store_of_the_process(job.root):  # a version's source is `models:/ID`
        return _register(job)


def _register(job: StageJob) -> StageOutcome:
    rules, client = job.params.register_, connect(job.root)
    identity = student_identity(job.root)
    ensure_model(client, rules.name)
    version = version_of_student(client, rules.name, identity)
    if version is not None and (problem := _not_as_registered(job, version)):
        job.monitor.note(f"version {version.version} {problem}: the student is registered anew")
        number = _log_version(job, identity, after=int(version.version))
    elif version is None:
        number = _log_version(job, identity)
    else:
        number = str(version.version)
        for key, value in rules.tags.items():
            client.set_model_version_tag(rules.name, number, key, value)
        job.monitor.note(f"this student is version {number} already")
    _point_at(client, rules.name, rules.alias, number)
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


def _point_at(client: MlflowClient, name: str, alias: str, number: str) -> None:
    """The candidate's alias; one that the gate has ever given is not for `register` to move."""
    with turn_of(client, name) as turn:
        if any(move.alias == alias for move in history(client, name)):
            raise VDMiniError(
                f"`{alias}` of `{name}` is given by the gate",
                expected="an alias of its own for what asks, as `candidate`",
                found=f"register.alias {alias}",
                fix="set register.alias to another name, then `vdmini promote`",
            )
        turn.check()
        client.set_registered_model_alias(name, alias, number)


def is_current(root: Path, name: str, alias: str) -> bool:
    """True where the alias already points at this very student."""
    if not (root / "artifacts" / "register" / "manifest.json").is_file():
        return False
    version = version_by_alias(connect(root), name, alias)
    if version is None or version.tags.get(STUDENT_TAG) != student_identity(root):
        return False
    return bool(checks_of(version).files)  # without a digest `run` registers the student anew


def _log_version(job: StageJob, identity: str, after: int = 0) -> str:
    if not isinstance(job.monitor, MLflowMonitor):
        raise VDMiniError("`register` needs MLflow", fix="run it through `vdmini register` or `vdmini run`")
    model_id = _log_model(job, job.monitor.run_id)
    source = f"models:/{model_id}"
    client = connect(job.root)
    tags = job.params.register_.tags | _tags(job.root, identity, _checked(job, source))
    keep_recipe(client, job.monitor.run_id, job.root)
    return str(_new_version(job, client, source, model_id, tags, after).version)


def _new_version(
    job: StageJob, client: MlflowClient, source: str, model_id: str, tags: dict[str, str], after: int
) -> ModelVersion:
    """One version of a student, though two projects register it at once or the server is asked again.

    `after`: number of the newest one that does not count, as its files are not what they were.
    """
    name = job.params.register_.name

    def made() -> ModelVersion | None:
        found = version_of_student(client, name, tags[STUDENT_TAG])
        return found if found is not None and int(found.version) > after else None

    with turn_of(client, name) as turn:
        found = made()
        if found is not None:
            return found
        turn.check()
        # One call makes the version with all its tags: a kill leaves a whole version or none.
        return once(
            lambda: client.create_model_version(
                name,
                source=source,
                run_id=job.monitor.run_id,  # type: ignore[attr-defined]
                tags=tags,
                await_creation_for=None,
                model_id=model_id,
            ),
            made,
        )


def _not_as_registered(job: StageJob, version: ModelVersion) -> str:
    """What is wrong with the files of a version that is there; empty where they are those of its digest.

    A version whose student did not load is tried again: what failed may have been the day.
    """
    told = checks_of(version)
    if not told.files:
        return "has no digest of its files"
    with tempfile.TemporaryDirectory() as folder:
        back = fetch_model(job.root, demand_own_source(version), Path(folder))
        if files_digest(back) != told.files:
            return "does not hold the files that were registered"
        if told.generates is True:
            return ""
        found = check_student(back / "artifacts" / "student", device_of(job))
    checks = json.dumps(asdict(replace(found, files=told.files)), sort_keys=True)
    connect(job.root).set_model_version_tag(version.name, str(version.version), CHECKS_TAG, checks)
    return ""


def _log_model(job: StageJob, run_id: str) -> str:
    student = job.artifact("distill") / "student"
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(sys.stderr),  # MLflow prints links to a server's pages; `--json` is alone there
        mlflow.start_run(run_id=run_id),
        without_hint_warning(),
    ):
        info = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(LOADER_FILE),
            artifacts={"pipeline": str(student)},
            code_paths=[str(_core_without_weights(Path(folder)))],
            pip_requirements=_requirements(),
            signature=signature_of(student),
            model_config={"device": "auto", "dtype": "auto"},  # what is not named here cannot be overridden
        )
    # MLflow has ended the run with the model; the stage goes on, and while it does a kill must find it open.
    connect(job.root).update_run(run_id, status="RUNNING")
    return str(info.model_id)


def _checked(job: StageJob, source: str) -> Checks:
    """Fetch the model back from where it was put, and see that it is ours, whole, safe, and makes a video."""
    student = job.artifact("distill") / "student"
    with tempfile.TemporaryDirectory() as folder:
        back = fetch_model(job.root, source, Path(folder) / "back")
        core = _core_without_weights(Path(folder))
        if wrong := unlike_ours(back, student, core, _requirements()):
            raise VDMiniError(
                "the registered model does not hold what was put there",
                expected="every file as it was written",
                found=", ".join(wrong[:5]),
                fix="`vdmini register` again; if that fails too, look who else writes to MLflow's artifacts",
            )
        return replace(
            check_student(back / "artifacts" / student.name, device_of(job)), files=files_digest(back)
        )


def _requirements() -> list[str]:
    return [f"{name}=={_installed(name)}" for name in RUNTIME]


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


def _tags(root: Path, identity: str, checks: Checks) -> dict[str, str]:
    plan, found = finished(root, "plan"), evidence(root)
    return {
        STUDENT_TAG: identity,
        EVIDENCE_TAG: json.dumps(found, sort_keys=True),
        PASSPORT_TAG: json.dumps(found["passport"].get("fvd"), sort_keys=True),
        CHECKS_TAG: json.dumps(asdict(checks), sort_keys=True),
        "vdmini.version": vdmini_core.__version__,
        "vdmini.plan": json.dumps(plan["metrics"], sort_keys=True)[:4000],
        **{PROVENANCE_TAGS[key]: value for key, value in provenance(root).items()},
    }
