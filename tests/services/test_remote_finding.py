"""`vdmini doctor` tells what is wrong with DVC's remote: the keys, the bucket, or that nobody answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.services.findings import _remote
from tests.services.s3_store import s3_store, settings

pytestmark = pytest.mark.services


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "store" / "dvc").mkdir(parents=True)
    root = tmp_path / "project"
    root.mkdir()
    with s3_store(tmp_path / "store") as address:
        for name, value in settings(address, tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
        for command in (["init", "--no-scm", "-q"], ["remote", "add", "-q", "-d", "r", "s3://dvc/x"]):
            subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, check=True)
        yield root


def test_the_row_names_the_cause(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = _remote(project)
    assert fine["state"] == "ok" and "s3://dvc/x" in fine["detail"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    refused = _remote(project)
    assert refused["state"] == "broken" and "keys were refused" in refused["detail"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (project / ".dvc" / "config.local").write_text("['remote \"r\"']\n    url = s3://elsewhere/x\n")
    gone = _remote(project)
    assert gone["state"] == "broken" and "elsewhere is not there" in gone["detail"]


def test_nobody_answers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    silent = _remote(project)
    assert silent["state"] == "broken" and "is not there" not in silent["detail"]
    assert "127.0.0.1:9" in silent["detail"] and "make services" in silent["to do"]
