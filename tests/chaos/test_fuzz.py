"""Short form of the fuzzing: one folder of every kind, files without permission, drawn params and configs.

The long forms are `tests.chaos.fuzz_files`, `tests.chaos.fuzz_params` and `tests.chaos.fuzz_configs`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.project import lay_out
from tests.chaos import config_cases, corpus, fuzz_configs, fuzz_files, fuzz_params
from tests.chaos.media import make_media
from tests.chaos.param_cases import KINDS, draw
from tests.chaos.privileges import why_not_bound

SEED = 11
_MADE = (
    "h264-mp4",
    "h264-faststart",
    "h264-mkv",
    "animated-gif",
    "ten-bits-h264",
    "interlaced-h264",
    "one-key-frame",
)


def test_every_file_of_every_kind_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_files, "FILES", len(corpus.KINDS))
    media = make_media(tmp_path / "media", SEED, _MADE)
    media.real = []  # larger than there is time for here
    fuzz = fuzz_files.Fuzz(SEED, len(corpus.KINDS), tmp_path / "state")
    fuzz.run(media)
    rows, totals = fuzz_files.table(fuzz.results())
    assert not totals["noticed"] and not fuzz_files.faults(totals)
    kinds = {row["kind"] for row in rows}
    assert {f"{step}: {kind}" for step in ("prepare", "fvd") for kind in corpus.KINDS} <= kinds
    assert totals["accepted"] > 20 and totals["rejected"] > 20
    assert ("prepare: file without permission" in kinds) == (not why_not_bound())


def test_the_account_sees_what_is_forgotten() -> None:
    """The harness itself: a file without a record, one without a reason, and a clip too many."""
    done = {"outcome": "done", "files": {"a.mp4": ["used", ""], "b.mp4": ["quarantined", ""]}}
    planted = [{"kind": "whole", "name": name, "expect": "use"} for name in ("a.mp4", "b.mp4", "c.mp4")]
    fvd = {"outcome": "done", "skipped": {"b.mp4": "broken"}, "used": 1}
    result = {"planted": planted, "there": ["a.mp4", "b.mp4", "c.mp4"], "prepare": done, "fvd": fvd}
    _, totals = fuzz_files.table({"0": result})
    assert totals["forgotten"] == 5 and totals["wrong"] == 1 and fuzz_files.faults(totals)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "project"
    lay_out(root)
    return root


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_params_are_accepted_or_refused_in_words(project: Path, index: int) -> None:
    _, text = draw(SEED, index)
    found = fuzz_params.judge(project, text, dry=False)
    assert found["fate"] in ("accepted", "rejected"), found["said"]


def test_what_is_accepted_can_be_planned(project: Path) -> None:
    indices = [
        round * len(KINDS) + list(KINDS).index(kind)
        for kind in ("absurd size", "drawn choices")
        for round in range(4)
    ]
    for index in indices:
        found = fuzz_params.judge(project, draw(SEED, index)[1])
        assert found["fate"] in ("accepted", "rejected"), found["said"]


def test_configs_are_used_or_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_configs, "ADDRESS_SPACE", resource.RLIM_INFINITY)  # of this process
    fuzz_configs.prepare(tmp_path)
    fates = []
    for index in range(2 * len(config_cases.KINDS)):
        _, case = config_cases.draw(tmp_path / "models", SEED, index)
        found = fuzz_configs.judge(tmp_path, case)
        assert found["fate"] in ("accepted", "rejected"), found["said"]
        fates.append(found["fate"])
    assert set(fates) == {"accepted", "rejected"}


def test_the_watch_sees_programs_and_the_network(tmp_path: Path) -> None:
    """The harness itself; audit hooks stay, so in a process of its own."""
    code = """
import os, socket, subprocess
from tests.chaos.drawn import Watch
watch = Watch()
subprocess.run(["true"])
os.system("true")
try:
    socket.getaddrinfo("localhost", 1)
except OSError:
    pass
print([seen.split()[0] for seen in watch.seen])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "subprocess.Popen" in said and "os.system" in said and "socket.getaddrinfo" in said
