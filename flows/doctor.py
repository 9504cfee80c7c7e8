"""`vdmini doctor`: is everything there, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from vdmini_core.errors import VDMiniError
from vdmini_core.params import load_params

_CORE = ("torch", "diffusers", "transformers", "decord", "av")
_PIPELINE = ("prefect", "ray", "mlflow", "dvc", "dvc-s3", "boto3")
MIN_FREE_GIB = 2


def examine(root: Path) -> list[dict[str, Any]]:
    """One finding per thing looked at: what, state (`ok`, `absent`, `broken`), detail, to do."""
    findings = [_python(), *(_library(name, "vdmini") for name in _CORE)]
    findings += [_library(name, "vdmini[pipeline]") for name in _PIPELINE]
    findings += [_accelerator(), _disk(root), _params(root), _dvc(root), _writable(root)]
    return findings + _servers(root)


def _finding(what: str, state: str, detail: str, fix: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "detail": detail, "to do": fix}


def _python() -> dict[str, Any]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return _finding("Python", "ok" if fine else "broken", version, "" if fine else "use Python 3.11 or newer")


def _library(name: str, extra: str) -> dict[str, Any]:
    try:
        return _finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return _finding(name, "broken", "not installed", f'pip install "{extra}"')


def _accelerator() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return _finding("accelerator", "broken", str(error), "install torch")
    if torch.cuda.is_available():
        return _finding("accelerator", "ok", torch.cuda.get_device_name(0))
    return _finding("accelerator", "absent", f"none; {os.cpu_count()} CPU cores", "fine for nano and mini")


def _disk(root: Path) -> dict[str, Any]:
    free = shutil.disk_usage(root).free / 2**30
    fine = free >= MIN_FREE_GIB
    return _finding("disk", "ok" if fine else "broken", f"{free:.1f} GiB free", "" if fine else "make room")


def _params(root: Path) -> dict[str, Any]:
    try:
        load_params(root / "params.yaml")
    except VDMiniError as error:
        return _finding("params.yaml", "broken", error.problem, error.fix)
    return _finding("params.yaml", "ok", "every key is known, every value fits")


def _dvc(root: Path) -> dict[str, Any]:
    fix = "run inside the checkout, or `vdmini init DIR`"
    if not (root / "dvc.yaml").is_file():
        return _finding("DVC project", "broken", "no dvc.yaml here", fix)
    if not (root / ".dvc").is_dir():
        return _finding("DVC project", "broken", "no .dvc folder here", fix)
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        from tasks.mending import mend
    except ModuleNotFoundError:  # a row above says so
        return _finding("DVC project", "ok", "dvc.yaml and .dvc are there")
    try:
        mended = mend(Repo(str(root)))
    except DvcException as error:
        return _finding("DVC project", "broken", str(error).splitlines()[0], "`dvc status` says more")
    return _finding("DVC project", "ok", "; ".join(["dvc.yaml and .dvc are there", *mended]))


def _writable(root: Path) -> dict[str, Any]:
    fine = os.access(root, os.W_OK)
    return _finding("project folder", "ok" if fine else "broken", "writable" if fine else "read-only")


def _servers(root: Path) -> list[dict[str, Any]]:
    try:
        from flows.services.findings import configured, set_up_here

        return configured(root) + set_up_here(root)
    except ModuleNotFoundError as error:  # a row above says so
        return [_finding("servers", "absent", f"not looked at without {error.name}")]
