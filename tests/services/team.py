"""The servers of `make services` for the tests, and questions to them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.services.checks import ask
from flows.services.control import start, stop
from flows.services.setup import Setup, services_home
from tests.flows.conftest import make_project

# One worker a slot: the recovery of two spreads over both Ray nodes.
STORY = ("profile.granularity=block", "distill.workers=2")


@contextmanager
def team() -> Iterator[tuple[Path, Setup]]:
    """A project with running services, on ports of their own; all is gone afterwards."""
    before = os.environ.get("VDMINI_SERVICES_PORTS")
    os.environ["VDMINI_SERVICES_PORTS"] = "free"
    # Not pytest's own folder: PostgreSQL's account, where this is root, could not enter it.
    folder = Path(tempfile.mkdtemp(prefix="vdmini-team-"))
    folder.chmod(0o711)
    root = make_project(folder / "proj", *STORY)
    home = services_home(root)
    try:
        yield root, start(home)
    finally:
        stop(home)
        shutil.rmtree(folder)
        if before is None:
            del os.environ["VDMINI_SERVICES_PORTS"]
        else:
            os.environ["VDMINI_SERVICES_PORTS"] = before


def prefect(setup: Setup, path: str, body: dict[str, Any] | None = None) -> Any:
    """One answer of the Prefect server."""
    settings = setup.client_settings()
    return ask("Prefect", settings["PREFECT_API_URL"], path, settings["PREFECT_API_AUTH_STRING"], body)


def mlflow(setup: Setup, path: str, body: dict[str, Any] | None = None) -> Any:
    """One answer of the MLflow server."""
    settings = setup.client_settings()
    auth = f"{settings['MLFLOW_TRACKING_USERNAME']}:{settings['MLFLOW_TRACKING_PASSWORD']}"
    return ask("MLflow", setup.url("mlflow"), f"/api/2.0/mlflow{path}", auth, body)


def dump(setup: Setup) -> str:
    """Every row of every database, as text."""
    import psycopg2

    rows = []
    for database in ("mlflow", "mlflow_auth", "prefect"):
        connection = psycopg2.connect(setup.database(database))
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in cursor.fetchall():
                cursor.execute(f'SELECT t::text FROM "{table}" t')
                rows += [row for (row,) in cursor.fetchall()]
        connection.close()
    return "\n".join(rows)


def files_with(folder: Path, words: list[bytes]) -> list[str]:
    """Files below a folder that hold one of the words, outside PostgreSQL's own."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "postgres" not in path.relative_to(folder).parts[:1]:
            content = path.read_bytes()
            found += [f"{path.relative_to(folder)}" for word in words if word in content]
    return sorted(set(found))
