"""Claims about `make services` that need no server: private passwords, bare command lines, free ports."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from flows.services import postgres
from flows.services.control import MAX_STARTS, _configuration, _Wait
from flows.services.findings import SETTINGS, configured, set_up_here
from flows.services.programs import PROGRAMS, bare_environment
from flows.services.setup import BUCKETS, DATABASES, USUAL_PORTS, create, load, services_home
from tests.check_project import ROOT
from vdmini_core.errors import VDMiniError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("initdb", "postgres"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(postgres, "account", lambda: None)
    return services_home(tmp_path)


def test_passwords_are_made_once_and_for_their_owner_alone(home: Path) -> None:
    first = create(home)
    assert create(home) == first == load(home)
    assert len(set(first.passwords.values())) == len(first.passwords)
    assert min(map(len, first.passwords.values())) >= 40
    for path in (home / "services.json", first.env_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (home / "services.json").chmod(0o644)
    with pytest.raises(VDMiniError, match=r"(?s)not yours alone.*chmod 600"):
        load(home)
    assert set_up_here(home.parent.parent)[0]["state"] == "broken"


def test_a_port_that_is_taken_is_replaced_and_no_port_is_given_twice(home: Path) -> None:
    with socket.socket() as held:
        with suppress(OSError):  # somebody else holds it: as good
            held.bind(("127.0.0.1", USUAL_PORTS["mlflow"]))
        setup = create(home)
    assert setup.ports["mlflow"] != USUAL_PORTS["mlflow"]
    assert len(set(setup.ports.values())) == len(USUAL_PORTS)


def test_no_command_line_and_no_file_of_the_manager_holds_a_password(home: Path) -> None:
    setup = create(home)
    document = _configuration(setup)
    shown = [word for section in document.sections() for word in document[section].values()]
    shown += [word for program in PROGRAMS for word in program.command(setup)]
    assert len(shown) > 60
    assert not [word for word in shown for secret in setup.passwords.values() if secret in word]
    assert all("0.0.0.0" not in word for word in shown)


def test_servers_do_not_see_what_the_shell_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere")
    assert not {"HF_TOKEN", "PREFECT_API_URL"} & set(bare_environment())


def test_each_waits_for_servers_that_are_there(home: Path) -> None:
    names = [program.name for program in PROGRAMS]
    for index, program in enumerate(PROGRAMS):
        assert set(program.after) <= set(names[:index]), program.name  # stopped in the opposite order
    sql = (ROOT / "infra" / "postgres" / "databases.sql").read_text()
    assert all(f"CREATE DATABASE {name};" in sql for name in DATABASES) and sql.count("CREATE") == len(
        DATABASES
    )
    script = (ROOT / "infra" / "compose.yaml").read_text()
    assert all(f"/data/{bucket}" in script for bucket in BUCKETS)


def test_without_settings_nothing_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    rows = {row["what"]: row for row in configured(ROOT)}
    assert {"MLflow", "Prefect", "Ray", "S3"} < set(rows)
    assert all(
        rows[name]["detail"].startswith("not configured") for name in ("MLflow", "Prefect", "Ray", "S3")
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://vdmini:hush@127.0.0.1:9")
    row = next(row for row in configured(ROOT) if row["what"] == "MLflow")
    assert row["state"] == "broken" and "hush" not in str(row) and row["to do"]


def test_a_server_that_falls_again_and_again_is_given_up_early() -> None:
    wait = _Wait()
    assert not any(wait.in_vain({"start": 1, "statename": "RUNNING"}) for _ in range(9))
    fallen = [wait.in_vain({"start": start, "statename": "RUNNING"}) for start in range(2, MAX_STARTS + 2)]
    assert fallen == [False] * (MAX_STARTS - 1) + [True]
    assert _Wait().in_vain({"start": 1, "statename": "FATAL"})
    assert _Wait(deadline=0.0).in_vain({"start": 1, "statename": "RUNNING"})
