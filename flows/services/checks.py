"""Signs in at a server and says what it found; used when the services start and by `vdmini doctor`."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from flows.services.setup import BUCKETS, DATABASES, PREFECT_FILE, Setup
from tasks.ray_runtime import python_path
from vdmini_core.errors import VDMiniError

TIMEOUT_S = 10
REFUSED = (401, 403)
TEAM = "`set -a; . .vdmini/services/team.env; set +a`, or the address and password of your own server"
START = "make services"


def postgres(setup: Setup) -> str:
    """Signs in to every database.

    Raises:
        VDMiniError: where one cannot be reached.
    """
    import psycopg2

    for name in DATABASES:
        try:
            psycopg2.connect(setup.database(name), connect_timeout=TIMEOUT_S).close()
        except psycopg2.OperationalError as error:
            said = str(error).strip().splitlines()[-1]
            wrong = "password authentication" in said
            raise VDMiniError(
                f"PostgreSQL: no way into `{name}`",
                found=said,
                fix="restore the services.json that the databases were made with" if wrong else START,
            ) from None
    return f"127.0.0.1:{setup.ports['postgres']}, {', '.join(DATABASES)}"


def s3(setup: Setup) -> str:
    """Signs in and looks for the buckets."""
    found = s3_buckets(setup.s3_settings())
    if missing := set(BUCKETS) - set(found):
        raise VDMiniError("S3: buckets are missing", found=", ".join(sorted(missing)), fix=START)
    return f"127.0.0.1:{setup.ports['s3']}, {', '.join(sorted(found))}"


def s3_buckets(settings: dict[str, str] | None = None) -> list[str]:
    """Buckets that these settings, or those of the environment, may see.

    Raises:
        VDMiniError: saying whether it is the server or the keys.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    given: dict[str, Any] = {}
    if settings is not None:
        given = {
            "endpoint_url": settings["AWS_ENDPOINT_URL"],
            "aws_access_key_id": settings["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": settings["AWS_SECRET_ACCESS_KEY"],
            "region_name": settings["AWS_DEFAULT_REGION"],
        }
    quick = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1})
    try:
        listed = boto3.Session().client("s3", config=quick, **given).list_buckets()["Buckets"]
    except NoCredentialsError:
        raise VDMiniError("S3: no keys", expected="AWS_ACCESS_KEY_ID and the like", fix=TEAM) from None
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise VDMiniError("S3: the keys were refused", found=code, fix=TEAM) from None
    except BotoCoreError as error:
        raise VDMiniError("S3: no answer", found=type(error).__name__, fix=START) from None
    return [bucket["Name"] for bucket in listed]


def mlflow(setup: Setup) -> str:
    """Signs in as the team does."""
    settings = setup.client_settings()
    return mlflow_at(
        setup.url("mlflow"), settings["MLFLOW_TRACKING_USERNAME"], settings["MLFLOW_TRACKING_PASSWORD"]
    )


def mlflow_at(url: str, user: str = "", password: str = "") -> str:
    """Asks an MLflow server for an experiment.

    Raises:
        VDMiniError: saying whether it is the server or the password.
    """
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    ask("MLflow", url, path, f"{user}:{password}" if user else "")
    return f"{_shown(url)}, signed in as {user}" if user else f"{_shown(url)} answers"


def prefect(setup: Setup) -> str:
    """Signs in as the team does."""
    settings = setup.client_settings()
    said = prefect_at(settings["PREFECT_API_URL"], settings["PREFECT_API_AUTH_STRING"])
    in_file = (setup.home / "prefect" / PREFECT_FILE).exists()
    return said + (", in a SQLite file: this PostgreSQL has no pg_trgm" if in_file else "")


def prefect_at(url: str, auth: str = "") -> str:
    """Asks a Prefect server how many flow runs it knows.

    Raises:
        VDMiniError: saying whether it is the server or the password.
    """
    count = ask("Prefect", url, "/flow_runs/count", auth, {})
    return f"{_shown(url)}, {count} flow runs" + (", signed in" if auth else "")


def ask(what: str, url: str, path: str, auth: str = "", body: dict[str, Any] | None = None) -> Any:
    """One JSON answer of a server; the password goes into a header, never into an address.

    Raises:
        VDMiniError: saying whether it is the server or the password.
    """
    request = urllib.request.Request(url.rstrip("/") + path)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if auth:
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        wrong = error.code in REFUSED
        raise VDMiniError(
            f"{what}: {'the password was refused' if wrong else 'an error'}",
            found=f"{_shown(url)} answers {error.code}",
            fix=TEAM if wrong else "look into its log",
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise VDMiniError(f"{what}: no answer", found=f"{_shown(url)}: {reason}", fix=START) from None


def _shown(url: str) -> str:
    return url.split("@")[-1].removeprefix("http://").removeprefix("https://")


def ray(setup: Setup, nodes: int = 2) -> str:
    """Counts the nodes that are alive, with the cluster's token."""
    return ray_at(f"127.0.0.1:{setup.ports['ray']}", nodes, setup.ray_settings())


def ray_at(address: str, nodes: int = 1, settings: dict[str, str] | None = None) -> str:
    """Counts the nodes of a cluster.

    Args:
        address: host:port of its head.
        nodes: as many are expected.
        settings: Ray's token, where it is not in the environment.

    Raises:
        VDMiniError: where it does not answer, refuses the token or has fewer nodes.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not _listens(host, int(port)):
        raise VDMiniError("Ray: no answer", found=address, fix=START)
    command = [sys.executable, "-m", "flows.services.ray_nodes", address]
    environment = {**os.environ, "PYTHONPATH": python_path(), **(settings or {})}
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise _ray_silent(address, (error.stderr or b"").decode(errors="replace")) from None
    if said.returncode != 0:
        raise _ray_silent(said.stderr.strip().splitlines()[-1], said.stderr)
    slots = json.loads(said.stdout)
    if len(slots) < nodes:
        raise VDMiniError("Ray: nodes are missing", expected=f"{nodes}", found=f"{len(slots)}", fix=START)
    return f"{address}, {len(slots)} nodes, {sum(slots):g} slots"


def _ray_silent(found: str, said: str) -> VDMiniError:
    if "InvalidAuthToken" in said:
        return VDMiniError("Ray: the token was refused", found=found, fix=TEAM)
    return VDMiniError("Ray: no answer", found=found, fix=START)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
