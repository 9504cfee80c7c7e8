"""Registered versions are foreign: whoever may write to the registry or its storage chose what is in them.

`reproduce` and `evaluate-registered` take a recipe and a student from there. They run none of its code; what
they read is looked at here first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionStartEvent

from tasks.provenance import unsafe_files
from tasks.registry import checks_of
from vdmini_core.artifacts import digest_of, read_json, sha256_file
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.foreign import JSON_BYTES, is_plain_name

LOADER, LOADED = "mlflow.pyfunc.loaders.code_model", "serving_model.py"
SOURCES = ("models:/", "runs:/")
YAML_BYTES = 2**20
DEEPEST = 16  # params.yaml has 4
ROLL_BACK = "`vdmini rollback`, and look who changed it"
WAY_OUT = "look who changed the artifacts of its run or its tags on MLflow"


def demand_plain_version(version: ModelVersion, name: str) -> None:
    """Refuse a server's answer that names another model: folders here are called after it.

    Raises:
        VDMiniError: naming both.
    """
    told, number = str(version.name), str(version.version)
    if told != name or not is_plain_name(name) or not number.isdecimal():
        raise VDMiniError(
            "the registry answers with another version than was asked for",
            expected=name,
            found=f"{told!r}, version {number!r}",
            fix="ask who runs the server of MLFLOW_TRACKING_URI",
        )


def demand_own_source(version: ModelVersion) -> str:
    """The version's source, where it is what `register` writes: no folder of this machine, no address.

    Raises:
        VDMiniError: for any other.
    """
    source = str(version.source)
    if not source.startswith(SOURCES) or ".." in source:
        raise VDMiniError(
            f"version {version.version} of `{version.name}` was not registered by `vdmini register`",
            expected="a source models:/ID",
            found=source[:200],
            fix="register the student again in the project that made it",
        )
    return source


def file_digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def files_digest(folder: Path) -> str:
    """One sha256 over names and bytes of all files of a registered model."""
    return digest_of(file_digests(folder))


def demand_own_student(folder: Path, version: ModelVersion, fix: str = ROLL_BACK) -> Path:
    """The student in a registered model that was fetched, where the model is of our making.

    Its loader is not imported: pipelines are loaded by the code that is installed here.

    Args:
        folder: the model as it came.
        version: for the message.
        fix: what to do about a version that is not as it was.

    Raises:
        ModelError: for another loader, a pickled model, files that are not safe to load, or any file that is
            not as it was registered.
    """
    problem = f"version {version.version} of `{version.name}` "
    if loader := loader_of(folder):
        raise ModelError(
            problem + "is loaded by code that is not ours",
            expected=f"{LOADER} with {LOADED}",
            found=loader[:200],
            fix=fix,
        )
    student = folder / "artifacts" / "student"
    if not (student / "model_index.json").is_file():
        raise ModelError(problem + "holds no student", expected="artifacts/student", found="none", fix=fix)
    if unsafe := unsafe_files(student):
        raise ModelError(
            problem + "holds files that are not safe to load",
            expected="safetensors and plain text",
            found=", ".join(unsafe[:5]),
            fix=fix,
        )
    registered = checks_of(version).files
    if not registered:
        raise ModelError(
            problem + "has no digest of its files",
            expected="one among the facts that `register` writes",
            fix="`vdmini register --force` in the project that made it, which makes a new version",
        )
    if (found := files_digest(folder)) != registered:
        raise ModelError(
            problem + "does not hold the files that were registered",
            expected=f"digest {registered}",
            found=found,
            fix=fix,
        )
    return student


def loader_of(folder: Path) -> str:
    """What a registered model says it is loaded by; empty where that is our own loader."""
    flavor = _flavor(folder / "MLmodel")
    loader, code = str(flavor.get("loader_module")), Path(str(flavor.get("model_code_path"))).name
    if (loader, code) == (LOADER, LOADED) and not flavor.get("python_model"):
        return ""
    return f"{loader} with {flavor.get('python_model') or code}"


def _flavor(path: Path) -> Mapping[str, Any]:
    try:
        demand_plain_yaml(path)
        flavor = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["flavors"]["python_function"]
    except (VDMiniError, OSError, YAMLError, UnicodeDecodeError, LookupError, TypeError):
        return {}
    return flavor if isinstance(flavor, Mapping) else {}


def demand_plain_yaml(path: Path) -> None:
    """Refuse YAML with tags (objects), aliases (a kB of them unfolds to GBs) or absurd size or depth.

    Raises:
        VDMiniError: naming what was met.
    """
    found = f"{path.stat().st_size:,} bytes" if path.stat().st_size > YAML_BYTES else ""
    depth = 0
    try:
        for event in () if found else YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8")):
            depth += isinstance(event, CollectionStartEvent)
            if isinstance(event, AliasEvent):
                found = f"the alias *{event.anchor}"
            elif tag := getattr(event, "tag", None):
                found = f"the tag {tag}"
            elif depth > DEEPEST:
                found = f"more than {DEEPEST} openings before the first end"
            depth -= type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent")
            if found:
                break
    except (YAMLError, UnicodeDecodeError) as error:
        found = str(error).split("\n")[0]
    if found:
        raise VDMiniError(
            f"{path.name} is not as `vdmini register` writes it",
            expected="plain YAML without tags and aliases",
            found=found[:200],
            fix=WAY_OUT,
        )


def read_recipe(folder: Path) -> dict[str, Any]:
    """A recipe that was fetched: plain files of the known names, and the facts that are read from it.

    Raises:
        VDMiniError: naming what is there that should not be, or lacks.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in ("params.yaml", "dvc.lock", "recipe.json", "plan") or (
            path.parent.name == "plan" and path.suffix == ".json" and name.count("/") == 1
        )
        if not known or path.is_symlink() or path.stat().st_size > JSON_BYTES:
            raise VDMiniError(
                "the recipe holds a file that `vdmini register` does not write",
                expected="params.yaml, recipe.json, dvc.lock and plan/*.json",
                found=name[:200],
                fix=WAY_OUT,
            )
    demand_plain_yaml(folder / "params.yaml")
    recipe = read_json(folder / "recipe.json")
    if wrong := _wrong(recipe):
        raise VDMiniError(
            "recipe.json is not as `vdmini register` writes it",
            expected="data, provenance, libraries and outputs, all texts",
            found=wrong,
            fix=WAY_OUT,
        )
    return dict(recipe)


def _wrong(recipe: Any) -> str:
    """What is not as it should be, or nothing."""
    if not isinstance(recipe, dict):
        return type(recipe).__name__
    for key in ("provenance", "libraries"):
        if not _texts(recipe.get(key)):
            return key
    # Nothing here gives it to git; whoever does next must not find an option in it.
    if not re.fullmatch(r"[0-9a-f]{7,64}|none", recipe["provenance"].get("git_commit", "none")):
        return f"git_commit {recipe['provenance']['git_commit']!r}"[:200]
    outputs, data = recipe.get("outputs"), recipe.get("data")
    if not isinstance(outputs, dict) or not all(_texts(found) for found in outputs.values()):
        return "outputs"
    if not isinstance(data, dict) or not isinstance(data.get("videos") or "", str):
        return "data"
    return "" if all(isinstance(data.get(key), str) for key in ("source", "version")) else "data"


def _texts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
