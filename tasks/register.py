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
from tasks.foreign_versions import files_digest
from tasks.gate import Checks
from tasks.models import device_of
from tasks.once import once
from tasks.promotion_history import history
from tasks.provenance import check_student, provenance, without_hint_warning
from tasks.recipe import keep_recipe
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
from vdmini_core.artifacts import tree_digests, write_json
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
    if version is None:
        number = _log_version(job, identity)
    else:
        number = str(version.version)
        for key, value in rules.tags.items():
            client.set_model_version_tag(rules.name, number, key, value)
        _complete(job, version)
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
    return bool(checks_of(version).files)  # a version of an earlier release lacks them: `run` completes it


def _log_version(job: StageJob, identity: str) -> str:
    if not isinstance(job.monitor, MLflowMonitor):
        raise VDMiniError("`register` needs MLflow", fix="run it through `vdmini register` or `vdmini run`")
    model_id = _log_model(job, job.monitor.run_id)
    source = f"models:/{model_id}"
    client = connect(job.root)
    tags = job.params.register_.tags | _tags(job.root, identity, _checked(job, source))
    keep_recipe(client, job.monitor.run_id, job.root)
    return str(_new_version(job, client, source, model_id, tags).version)


def _new_version(
    job: StageJob, client: MlflowClient, source: str, model_id: str, tags: dict[str, str]
) -> ModelVersion:
    """One version of a student, though two projects register it at once or the server is asked again."""
    name = job.params.register_.name
    with turn_of(client, name) as turn:
        found = version_of_student(client, name, tags[STUDENT_TAG])
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
            lambda: version_of_student(client, name, tags[STUDENT_TAG]),
        )


def _complete(job: StageJob, version: ModelVersion) -> None:
    """Give a version that an earlier release registered what the gate and `reproduce` look for today."""
    before = checks_of(version)
    # What failed may have been the day, so one that was refused is looked at again.
    if before.files and before.generates is True:
        return
    client = connect(job.root)
    found = _checked(job, version.source)
    if before.files and found.files != before.files:
        found = Checks(generates="its files are not those that were registered", files=before.files)
    tags = _tags(job.root, version.tags[STUDENT_TAG], found)
    if version.run_id:
        keep_recipe(client, version.run_id, job.root)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)


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
            python_model=str(Path(__file__).with_name("serving_model.py")),
            artifacts={"pipeline": str(student)},
            code_paths=[str(_core_without_weights(Path(folder)))],
            pip_requirements=[f"{name}=={_installed(name)}" for name in RUNTIME],
            signature=signature_of(student),
            model_config={"device": "auto", "dtype": "auto"},  # what is not named here cannot be overridden
        )
    # MLflow has ended the run with the model; the stage goes on, and while it does a kill must find it open.
    connect(job.root).update_run(run_id, status="RUNNING")
    return str(info.model_id)


def _checked(job: StageJob, source: str) -> Checks:
    """Fetch the student back from where it was put, and see that it is whole, safe, and makes a video."""
    student = job.artifact("distill") / "student"
    with tempfile.TemporaryDirectory() as folder:
        back = fetch_model(job.root, source, Path(folder))
        files, copy = files_digest(back), back / "artifacts" / student.name
        if tree_digests(copy) != tree_digests(student):
            return Checks(generates="the registered files are not those of artifacts/distill", files=files)
        return replace(check_student(copy, device_of(job)), files=files)


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
