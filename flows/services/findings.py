"""What `vdmini doctor` says of servers: those a run from this shell would use, and those set up here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.services import checks
from flows.services.setup import load, services_home
from vdmini_core.errors import VDMiniError

SETTINGS = (
    "MLFLOW_TRACKING_URI",
    "PREFECT_API_URL",
    "RAY_ADDRESS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
)


def configured(root: Path) -> list[dict[str, Any]]:
    """A row per server that the environment names; it is signed in at with what the environment says."""
    mlflow, prefect, ray, s3, s3_too = (os.environ.get(name, "") for name in SETTINGS)
    own = [
        _row("MLflow", _mlflow, mlflow, "a SQLite file in the project"),
        _row("Prefect", _prefect, prefect, "a temporary server for each run"),
        _row("Ray", checks.ray_at, ray, "a session for each run"),
        _row("S3", _buckets, s3 or s3_too, "Amazon's own, where an address names it"),
    ]
    return [*own, _remote(root)]


def _row(what: str, check: Callable[[str], str], address: str, without: str) -> dict[str, Any]:
    if not address:
        return _finding(what, "ok", f"not configured: {without}")
    try:
        return _finding(what, "ok", check(address))
    except VDMiniError as error:
        return _broken(what, error)


def _finding(what: str, state: str, detail: str, fix: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "detail": detail, "to do": fix}


def _broken(what: str, error: VDMiniError, remark: str = "") -> dict[str, Any]:
    detail = error.problem + remark + (f": {error.found}" if error.found else "")
    return _finding(what, "broken", detail, error.fix)


def _mlflow(uri: str) -> str:
    if not uri.startswith(("http://", "https://")):
        return uri.split("@")[-1]  # a database or a folder: the run itself opens it
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    return checks.mlflow_at(uri, user, password)


def _prefect(url: str) -> str:
    return checks.prefect_at(url, os.environ.get("PREFECT_API_AUTH_STRING", ""))


def _buckets(endpoint: str) -> str:
    return f"{endpoint.split('@')[-1]}, {', '.join(sorted(checks.s3_buckets())) or 'no bucket'}"


def _remote(root: Path) -> dict[str, Any]:
    """Whether DVC's default remote can be listed."""
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    what = "DVC remote"
    try:
        with Repo(str(root)) as repo:
            name = repo.config["core"].get("remote")
            if not name:
                return _finding(what, "ok", "not configured: outputs stay in this project's cache")
            remote = repo.cloud.get_remote_odb(name)
            bucket = remote.path.split("/")[0] if remote.fs.protocol == "s3" else remote.path
            remote.fs.ls(
                bucket
            )  # unlike `exists`, it tells a refusal and silence from a bucket that is not there
            return _finding(what, "ok", f"{name}: {remote.fs.unstrip_protocol(remote.path)}")
    except FileNotFoundError:
        return _finding(what, "broken", f"{name}: {bucket} is not there", "make the bucket or folder")
    except PermissionError as error:
        return _finding(what, "broken", f"{name}: the keys were refused: {error}", checks.TEAM)
    except (DvcException, OSError, ValueError, BotoCoreError, ClientError) as error:
        fix = f"`dvc remote list`; keys: {checks.TEAM}; servers: {checks.START}"
        return _finding(what, "broken", str(error).splitlines()[0], fix)


def set_up_here(root: Path) -> list[dict[str, Any]]:
    """A row per service of `make services`, signed in with the project's own passwords; none without them."""
    from flows.services.control import states
    from flows.services.programs import PROGRAMS

    try:
        setup = load(services_home(root))
        known = {} if setup is None else states(setup)
    except VDMiniError as error:
        return [_broken("services", error)]
    if setup is None:
        return []
    rows = []
    for program in PROGRAMS:
        what = f"service {program.says}"
        if set(known.values()) == {"STOPPED"}:
            rows.append(_finding(what, "absent", "stopped", "make services, when it is needed"))
            continue
        try:
            rows.append(_finding(what, "ok", program.check(setup)))
        except VDMiniError as error:
            rows.append(_broken(what, error, f" ({known[program.name]})"))
    return rows
