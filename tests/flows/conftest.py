"""A project folder of its own for every pipeline test, with the nano profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.project import change_params, lay_out
from tasks.versioning import init_repository

VDMINI = Path(sys.executable).with_name("vdmini")
SERVED = "VDMINI_TESTS_PREFECT"


def make_project(folder: Path, *assignments: str) -> Path:
    lay_out(folder)
    init_repository(folder)
    # One worker a run is enough here: test_distill has two, and every process costs seconds to start.
    change_params(folder, profile="nano", assignments=("distill.workers=1", *assignments))
    return folder


def environment(**extra: str) -> dict[str, str]:
    """Of a process: nothing of the user's own, and the tests' Prefect server where one runs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "VDMINI_", "DVC_"))
    }
    served = {"PREFECT_API_URL": os.environ[SERVED]} if SERVED in os.environ else {}
    return {**clean, "PATH": path, **served, **extra}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the runs of this process: Prefect starts one for each run otherwise, which costs 10 s.

    `test_compress.py` has a run that starts its own.
    """
    from tests.services.serving import free_port, server

    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--no-services"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR"}
    url = f"http://127.0.0.1:{port}/api"
    with server(command, f"{url}/health", folder, PREFECT_HOME=str(folder), **quiet):
        os.environ[SERVED] = url
        yield url
        del os.environ[SERVED]


def vdmini(
    root: Path, *arguments: str, check: bool = True, timeout: float = 900, **extra: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(VDMINI), *arguments],
        cwd=root,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def dvc_status(root: Path) -> Any:
    """What DVC finds changed; nothing is `{}`."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A nano project that `vdmini run` has brought to its end once; tests must leave it up to date."""
    root = make_project(tmp_path_factory.mktemp("nano") / "proj")
    vdmini(root, "run")
    yield root
