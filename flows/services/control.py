"""Start and stop in order, by supervisor: it keeps the processes and their logs, and restarts what falls."""

from __future__ import annotations

import configparser
import fcntl
import os
import shutil
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.services import checks, postgres
from flows.services.programs import PROGRAMS, Program, bare_environment
from flows.services.setup import BUCKETS, Setup, create, load, port_is_taken
from vdmini_core.errors import VDMiniError

PATIENCE_S = 600.0  # MLflow and Prefect lay out their tables when they start for the first time
MAX_STARTS = 5  # Ray gives up after 30 s, too few on a busy machine
POLL_S = 0.5
UP = ("STARTING", "RUNNING", "BACKOFF")


def start(home: Path, say: Callable[[str], None] = lambda line: None) -> Setup:
    """Bring all services up, each after those it needs; what runs already stays.

    Args:
        home: `.vdmini/services` of the project.
        say: told a line per server.

    Raises:
        VDMiniError: naming the server that does not come up, with the end of its log.
    """
    postgres.binaries()
    with _alone(home):
        setup = create(home)
        _lay_out(setup)
        manager = _manager(setup) or _start_manager(setup)
        begun, up = dict[str, _Wait](), set[str]()
        while len(up) < len(PROGRAMS):
            for program in PROGRAMS:
                if program.name not in begun and up.issuperset(program.after):
                    _begin(manager, setup, program)
                    begun[program.name] = _Wait()
                waits = program.name in begun and program.name not in up
                if waits and (said := _answer(manager, setup, program, begun[program.name])):
                    say(f"{program.says}: {said}")
                    up.add(program.name)
            time.sleep(POLL_S)
    return setup


def stop(home: Path, say: Callable[[str], None] = lambda line: None) -> bool:
    """Stop all services in the opposite order; False where none ran. Data and passwords stay."""
    setup = load(home)
    if setup is None:
        return False
    with _alone(home):
        manager = _manager(setup)
        if manager is None:
            return False
        for program in reversed(PROGRAMS):
            if _state(manager, program.name) in UP:
                manager.stopProcess(program.name, True)
                say(f"{program.says}: stopped")
        manager.shutdown()
        deadline = time.monotonic() + 30
        while _manager(setup) is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(setup.run_folder, ignore_errors=True)
    return True


def restart(setup: Setup, name: str) -> None:
    """One server anew; returns when it answers."""
    manager = _manager(setup)
    if manager is None:
        raise VDMiniError("the services do not run", fix=checks.START)
    program = next(item for item in PROGRAMS if item.name == name)
    if _state(manager, name) in UP:
        manager.stopProcess(name, True)
    _begin(manager, setup, program)
    wait = _Wait()
    while not _answer(manager, setup, program, wait):
        time.sleep(POLL_S)


def halt(setup: Setup, name: str) -> None:
    """Stop one server; `restart` brings it back."""
    manager = _manager(setup)
    if manager is not None and _state(manager, name) in UP:
        manager.stopProcess(name, True)


def states(setup: Setup) -> dict[str, str]:
    """Supervisor's word for every server: RUNNING, STOPPED, FATAL ..."""
    manager = _manager(setup)
    return {
        program.name: "STOPPED" if manager is None else _state(manager, program.name) for program in PROGRAMS
    }


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lay_out(setup: Setup) -> None:
    """Folders, the database cluster, and supervisor's file."""
    for name in ("logs", "s3-cache", "mlflow", "prefect", *(f"s3/{bucket}" for bucket in BUCKETS)):
        (setup.home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    run = setup.run_folder
    run.mkdir(mode=0o700, exist_ok=True)
    if run.is_symlink() or run.stat().st_uid != os.geteuid() or run.stat().st_mode & 0o077:
        raise VDMiniError(
            f"{run} is not ours", expected="a folder of mode 700, your own", fix=f"remove {run}"
        )
    postgres.initialise(setup)
    with (setup.home / "supervisord.conf").open("w", encoding="utf-8") as handle:
        _configuration(setup).write(handle)


def _configuration(setup: Setup) -> configparser.RawConfigParser:
    socket = setup.run_folder / "supervisor.sock"
    document = configparser.RawConfigParser()
    document["unix_http_server"] = {"file": str(socket), "chmod": "0700"}
    document["supervisord"] = {
        "logfile": str(setup.home / "logs" / "supervisord.log"),
        "pidfile": str(setup.run_folder / "supervisord.pid"),
        "childlogdir": str(setup.home / "logs"),
        "umask": "077",
        "logfile_maxbytes": "5MB",
        "logfile_backups": "2",
    }
    if os.geteuid() == 0:
        document["supervisord"]["user"] = "root"  # said, so that it does not warn
    document["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    document["supervisorctl"] = {"serverurl": f"unix://{socket}"}
    for program in PROGRAMS:
        document[f"program:{program.name}"] = _section(setup, program)
    return document


def _section(setup: Setup, program: Program) -> dict[str, str]:
    words = [sys.executable, "-m", "flows.services.launch", program.name, str(setup.home)]
    section = {
        "autostart": "false",  # `start` asks whether the ones before it answer
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "5",
        "stopsignal": program.stop_signal,
        "stopwaitsecs": "30",
        "stopasgroup": "false" if program.own_group else "true",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(setup.home / "logs" / f"{program.name}.log"),
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": "3",
        "directory": "/",
    }
    if program.name == "postgres":
        words = program.command(setup)  # as another account, which need not be able to read this package
        if (who := postgres.account()) is not None:
            section["user"] = who
    elif (folder := setup.home / program.name).is_dir():
        section["directory"] = str(folder)
    # supervisor splits it like a shell, and takes % for its own
    section["command"] = " ".join(f"'{word}'" for word in words).replace("%", "%%")
    return section


def _start_manager(setup: Setup) -> Any:
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(setup.home / "supervisord.conf")]
    done = subprocess.run(
        command, env=bare_environment(), cwd=setup.home, capture_output=True, text=True, check=False
    )
    deadline = time.monotonic() + 30
    while (manager := _manager(setup)) is None:
        if done.returncode != 0 or time.monotonic() > deadline:
            raise VDMiniError(
                "the process manager does not start",
                found=(done.stderr + done.stdout).strip()[-400:],
                fix='pip install "vdmini[services]"' if "No module" in done.stderr else "",
            )
        time.sleep(0.1)
    return manager


def _manager(setup: Setup) -> Any:
    """Supervisor's interface, None where it does not run."""
    try:
        from supervisor.xmlrpc import SupervisorTransport
    except ModuleNotFoundError:
        raise VDMiniError("supervisor is not installed", fix='pip install "vdmini[services]"') from None
    transport = SupervisorTransport(None, None, f"unix://{setup.run_folder / 'supervisor.sock'}")
    manager = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
    try:
        manager.getState()
    except (OSError, xmlrpc.client.Error):
        return None
    return manager


def _state(manager: Any, name: str) -> str:
    return str(manager.getProcessInfo(name)["statename"])


def _begin(manager: Any, setup: Setup, program: Program) -> None:
    if _state(manager, program.name) in UP:
        return
    port = setup.ports.get("ray" if program.name == "ray-head" else program.name)
    if port is not None and port_is_taken(port):
        raise VDMiniError(
            f"{program.says}: its port {port} is taken by a program that is none of ours",
            fix=f"stop that program, or name a free port in {setup.home / 'services.json'}",
        )
    manager.startProcess(program.name, False)


@dataclass
class _Wait:
    """For one server: until when, and the starts that supervisor has made meanwhile."""

    deadline: float = field(default_factory=lambda: time.monotonic() + PATIENCE_S)
    starts: set[int] = field(default_factory=set)

    def in_vain(self, info: dict[str, Any]) -> bool:
        """True for one that was given up, falls again and again, or takes too long."""
        self.starts.add(info["start"])
        fallen = len(self.starts) > MAX_STARTS
        return info["statename"] not in UP or fallen or time.monotonic() > self.deadline


def _answer(manager: Any, setup: Setup, program: Program, wait: _Wait) -> str:
    """What a server's check says, empty while it does not answer yet."""
    try:
        if program.name == "postgres":
            _databases(setup)
        return program.check(setup)
    except VDMiniError as error:
        info = manager.getProcessInfo(program.name)
        if not wait.in_vain(info):
            return ""
        log = setup.home / "logs" / f"{program.name}.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.is_file() else ""
        raise VDMiniError(
            f"{program.says} does not come up ({info['statename']}): {error.problem}",
            found=tail or error.found,
            fix=f"{log} says more; then `make services` again",
        ) from None


def _databases(setup: Setup) -> None:
    import psycopg2

    try:
        postgres.make_databases(setup)
    except psycopg2.OperationalError as error:
        raise VDMiniError(
            "no answer", found=str(error).strip(), fix="`make services` starts it; its log says more"
        ) from None
