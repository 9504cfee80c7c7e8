"""The files of a registered model: whether they are what `register` has written, and their digest.

A registered model carries code that servers run. `register` fetches it back from where it was put and holds
every file to this machine's own before it records the digest that all later readers demand.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.foreign_versions import file_digests, loader_of
from vdmini_core.artifacts import sha256_file

LOADER_FILE = Path(__file__).with_name("serving_model.py")
REQUIREMENTS, CONDA, PYTHON = "requirements.txt", "conda.yaml", "python_env.yaml"
BUILD = ("pip", "setuptools", "wheel")


def unlike_ours(folder: Path, student: Path, core: Path, runtime: Sequence[str]) -> tuple[str, ...]:
    """Files of a registered model that are not what this machine has put there, and those that lack.

    Args:
        folder: the model as it was fetched.
        student: the pipeline directory that was registered.
        core: the copy of `vdmini_core` that was.
        runtime: the requirements that were, `name==version`.
    """
    ours = {
        LOADER_FILE.name: sha256_file(LOADER_FILE),
        **{f"artifacts/{student.name}/{name}": digest for name, digest in file_digests(student).items()},
        **{f"code/{core.name}/{name}": digest for name, digest in file_digests(core).items()},
    }
    found = file_digests(folder)
    wrong = {name for name in ours if found.get(name) != ours[name]}
    # MLflow writes these from what it was told, with times and ids of its own.
    packages = [f"mlflow=={importlib.metadata.version('mlflow')}", *runtime]
    written = {
        "MLmodel": loader_of(folder) == "",
        REQUIREMENTS: _lines(folder / REQUIREMENTS) == packages,
        CONDA: _conda(folder / CONDA) == packages,
        PYTHON: _python(folder / PYTHON),
    }
    wrong |= {name for name, holds in written.items() if not holds}
    return tuple(sorted(wrong | (set(found) - set(ours) - set(written))))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def _yaml(path: Path) -> dict[str, object]:
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _conda(path: Path) -> object:
    """The packages that pip is to install; None where it names a channel or another package beside them."""
    found = _yaml(path)
    rest = found.get("dependencies")
    if not isinstance(rest, list) or found.get("channels") != ["conda-forge"]:
        return None
    plain = [str(item).partition("=")[0].partition("<")[0] for item in rest if not isinstance(item, dict)]
    inside = [item.get("pip") for item in rest if isinstance(item, dict)]
    return inside[0] if sorted(plain) == ["pip", "python"] and len(inside) == 1 else None


def _python(path: Path) -> bool:
    found = _yaml(path)
    build = found.get("build_dependencies")
    names = {str(item).partition("==")[0] for item in build} if isinstance(build, list) else {""}
    return found.get("dependencies") == [f"-r {REQUIREMENTS}"] and names <= set(BUILD)
