"""Where the services of a project are, and the passwords made for them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from vdmini_core.artifacts import read_json
from vdmini_core.errors import VDMiniError

FILE = "services.json"
USER = "vdmini"
DATABASES = ("mlflow", "mlflow_auth", "prefect")
PREFECT_FILE = "prefect.db"  # where PostgreSQL cannot hold it
BUCKETS = ("mlflow", "dvc")
# Where people look first; what another program holds is replaced by a free one, once.
USUAL_PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200, "ray": 6379}
PASSWORDS = ("postgres", "s3_key", "s3_secret", "mlflow", "mlflow_pages", "prefect", "ray")


@dataclass(frozen=True)
class Setup:
    """One project's services.

    Attributes:
        home: `.vdmini/services` of the project: settings, logs, data.
        ports: on 127.0.0.1.
        passwords: random, made once.
    """

    home: Path
    ports: dict[str, int]
    passwords: dict[str, str]

    @property
    def run_folder(self) -> Path:
        """Sockets and Ray's session: a short path, for a socket's may have 107 characters at most."""
        return Path("/tmp") / f"vdmini-{self.digest}"

    @property
    def digest(self) -> str:
        """Tells the services of one project from those of another."""
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:10]

    @property
    def env_file(self) -> Path:
        """What a shell reads to use the services."""
        return self.home / "team.env"

    def url(self, name: str) -> str:
        """Address of a service that speaks HTTP."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def database(self, name: str, driver: str = "postgresql") -> str:
        """Address of a database, password included; SQLAlchemy wants the driver named."""
        return f"{driver}://{USER}:{self.passwords['postgres']}@127.0.0.1:{self.ports['postgres']}/{name}"

    def s3_settings(self) -> dict[str, str]:
        """What boto3 and DVC need to reach the S3 server."""
        return {
            "AWS_ACCESS_KEY_ID": self.passwords["s3_key"],
            "AWS_SECRET_ACCESS_KEY": self.passwords["s3_secret"],
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def ray_settings(self) -> dict[str, str]:
        """The token that Ray's nodes and drivers show each other: who has it runs code here."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.passwords["ray"]}

    def client_settings(self) -> dict[str, str]:
        """The environment in which a run uses the services."""
        return {
            "RAY_ADDRESS": f"127.0.0.1:{self.ports['ray']}",
            **self.ray_settings(),
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.passwords['prefect']}",
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.passwords["mlflow"],
            **self.s3_settings(),
            "DVC_GLOBAL_CONFIG_DIR": str(self.home / "dvc"),
        }


def services_home(root: Path) -> Path:
    """Folder of a project's services."""
    return root.resolve() / ".vdmini" / "services"


def load(home: Path) -> Setup | None:
    """The services that were set up here, None where none were.

    Raises:
        VDMiniError: where others could read or have changed the passwords, or the file is damaged.
    """
    path = home / FILE
    if not path.is_file():
        return None
    found = path.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise VDMiniError(
            f"{path} holds passwords and is not yours alone",
            expected="mode 600, your own",
            found=f"mode {found.st_mode & 0o777:o}, owner {found.st_uid}",
            fix=f"chmod 600 {path}, as its owner",
        )
    try:
        data = read_json(path)
        setup = Setup(home, {name: int(data["ports"][name]) for name in USUAL_PORTS}, data["passwords"])
        missing = set(PASSWORDS) - set(setup.passwords)
    except (ValueError, KeyError, TypeError) as error:
        raise VDMiniError(f"{path} cannot be read", found=repr(error), fix="restore it from a copy") from None
    if missing:
        raise VDMiniError(f"{path} lacks passwords", found=", ".join(sorted(missing)), fix="restore it")
    return setup


def create(home: Path) -> Setup:
    """Choose ports and passwords and write them down, or read what was written before.

    Raises:
        VDMiniError: see `load`.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)  # PostgreSQL runs as another account when this is root: it passes through, no more
    setup = load(home)
    if setup is None:
        # Letters and digits only, so that no file, address or shell has to quote them.
        passwords = {name: secrets.token_hex(20) for name in PASSWORDS}
        setup = Setup(home, _choose_ports(), passwords)
        write_private(
            home / FILE, json.dumps({"ports": setup.ports, "passwords": passwords}, indent=2) + "\n"
        )
    lines = [f"{name}={shlex.quote(value)}" for name, value in setup.client_settings().items()]
    text = "# set -a; . this file; set +a: the shell's runs use the services\n" + "\n".join(lines) + "\n"
    write_private(setup.env_file, text)
    (home / "dvc").mkdir(exist_ok=True)
    # The one thing of DVC's that no variable of its own can say; keys and endpoint come from boto3's.
    remote = (
        "[core]\n    remote = team\n    analytics = false\n['remote \"team\"']\n    url = s3://dvc/vdmini\n"
    )
    (home / "dvc" / "config").write_text(remote, encoding="utf-8")
    return setup


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at no time otherwise."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    temporary.replace(path)


def _choose_ports() -> dict[str, int]:
    usual = os.environ.get("VDMINI_SERVICES_PORTS") != "free"
    with _Probes() as probes:
        return {name: probes.take(port if usual else 0) for name, port in USUAL_PORTS.items()}


class _Probes:
    """Holds the ports it gives until all are chosen, so that none is given twice."""

    def __enter__(self) -> _Probes:
        self._held: list[socket.socket] = []
        return self

    def __exit__(self, *_: object) -> None:
        for probe in self._held:
            probe.close()

    def take(self, port: int) -> int:
        """`port` where it is free, else another one."""
        for wanted in (port, 0):
            probe = socket.socket()
            self._held.append(probe)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
        raise VDMiniError("there is no free port on 127.0.0.1", fix="stop what holds them")


def port_is_taken(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
