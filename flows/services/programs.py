"""What runs, in which order, and how each is started; no command line holds a secret."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.services import checks, postgres
from flows.services.setup import PREFECT_FILE, USER, Setup, write_private
from tasks.ray_runtime import python_path

# What a server may see of the environment it is started from; the rest might be somebody's secret.
PASSED_ON = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE"),
)
RAY_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Program:
    """One server.

    Attributes:
        says: for people.
        after: servers that have to answer first.
        command: its command line, which every account of the machine can read.
        environment: its variables; secrets belong here.
        check: signs in and says what it found, or raises.
        stop_signal: what it ends by.
        own_group: whether its children are told to end by itself, not by the process manager.
    """

    name: str
    says: str
    after: tuple[str, ...]
    command: Callable[[Setup], list[str]]
    environment: Callable[[Setup], dict[str, str]]
    check: Callable[[Setup], str]
    stop_signal: str = "TERM"
    own_group: bool = False


def bare_environment() -> dict[str, str]:
    """The part of this process's environment that servers get, and where this package is."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONPATH": python_path(), "DO_NOT_TRACK": "1"}


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside if beside.is_file() else shutil.which(name) or beside)


def _s3(setup: Setup) -> list[str]:
    folder, address = setup.home / "s3", f"127.0.0.1:{setup.ports['s3']}"
    return [
        *(_tool("rclone"), "serve", "s3", str(folder), "--addr", address, "--vfs-cache-mode", "writes"),
        *("--vfs-write-back", "0s", "--cache-dir", str(setup.home / "s3-cache"), "--log-level", "NOTICE"),
    ]


def _s3_environment(setup: Setup) -> dict[str, str]:
    # A list by commas, an entry with a comma in it: quoted.
    pair = f'"{setup.passwords["s3_key"]},{setup.passwords["s3_secret"]}"'
    return {"RCLONE_AUTH_KEY": pair, "RCLONE_CONFIG": "/dev/null"}


def _mlflow(setup: Setup) -> list[str]:
    port = str(setup.ports["mlflow"])
    return [
        *(_tool("mlflow"), "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", port),
        *("--artifacts-destination", "s3://mlflow", "--workers", str(_slots())),
    ]


def _mlflow_environment(setup: Setup) -> dict[str, str]:
    config = setup.home / "mlflow" / "basic_auth.ini"
    write_private(
        config,
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = {setup.database('mlflow_auth', 'postgresql+psycopg2')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # To hash the password costs a tenth of a second and more, for every request of a run.
        "auth_cache_ttl_seconds = 60\n",
    )
    return {
        "MLFLOW_BACKEND_STORE_URI": setup.database("mlflow", "postgresql+psycopg2"),
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": setup.passwords["mlflow"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": setup.passwords["mlflow_pages"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of its evaluations by language models: nobody's here
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **setup.s3_settings(),
    }


def _prefect(setup: Setup) -> list[str]:
    return [_tool("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(setup.ports["prefect"])]


def prefect_database(setup: Setup) -> str:
    """PostgreSQL, or a file where that lacks the one extension of it that Prefect cannot do without."""
    if postgres.has_extension(setup, "pg_trgm"):
        return setup.database("prefect", "postgresql+asyncpg")
    return f"sqlite+aiosqlite:///{setup.home / 'prefect' / PREFECT_FILE}"


def _prefect_environment(setup: Setup) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(setup.home / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": prefect_database(setup),
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{setup.passwords['prefect']}",
        "PREFECT_API_AUTH_STRING": f"{USER}:{setup.passwords['prefect']}",
        "PREFECT_UI_API_URL": f"{setup.url('prefect')}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, as they are otherwise, they are lost by a restart, and their slots are taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _slots() -> int:
    """Ray's slots on each of the two nodes: together the cores, at least one each."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _ray_start(*words: str) -> list[str]:
    store = f"--object-store-memory={RAY_STORE_BYTES}"
    # `ray start` binds to all addresses, whatever it is told: the token is what keeps others out.
    return [
        _tool("ray"),
        "start",
        *words,
        f"--num-cpus={_slots()}",
        store,
        "--disable-usage-stats",
        "--block",
    ]


def _ray_head(setup: Setup) -> list[str]:
    folder = f"--temp-dir={setup.run_folder / 'ray'}"
    port = f"--port={setup.ports['ray']}"
    return _ray_start("--head", port, folder, "--include-dashboard=false")


def _ray_worker(setup: Setup) -> list[str]:
    # The machine's GPUs are the head's: two nodes on one machine would count them twice.
    return _ray_start(f"--address=127.0.0.1:{setup.ports['ray']}", "--num-gpus=0")


def _ray_environment(setup: Setup) -> dict[str, str]:
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **setup.ray_settings()}


def _one_node(setup: Setup) -> str:
    return checks.ray(setup, 1)


PROGRAMS = (
    Program(
        "postgres",
        "PostgreSQL",
        after=(),
        command=postgres.command,
        environment=lambda setup: {},
        check=checks.postgres,
        stop_signal="INT",  # ends sessions and leaves clean files
        own_group=True,
    ),
    Program("s3", "S3 (rclone)", (), _s3, _s3_environment, checks.s3),
    Program("mlflow", "MLflow", ("postgres", "s3"), _mlflow, _mlflow_environment, checks.mlflow),
    Program("prefect", "Prefect", ("postgres",), _prefect, _prefect_environment, checks.prefect),
    Program("ray-head", "Ray head", (), _ray_head, _ray_environment, _one_node),
    Program("ray-worker", "Ray worker", ("ray-head",), _ray_worker, _ray_environment, checks.ray),
)
