"""Outputs appear whole or not at all; hashes leave out what varies from run to run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdmini_core.artifacts import (
    clear_leftovers,
    digest_of,
    read_json,
    staged_output,
    tree_digest,
    tree_digests,
    write_json,
    write_manifest,
)
from vdmini_core.errors import VDMiniError
from vdmini_core.foreign import read_json_file


def test_an_error_leaves_the_earlier_output_as_it_was(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with staged_output(final) as out:
        (out / "a").write_text("first")
    with pytest.raises(RuntimeError), staged_output(final) as out:
        (out / "a").write_text("second")
        raise RuntimeError
    assert (final / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_success_replaces_the_whole_directory(tmp_path: Path) -> None:
    final = tmp_path / "out"
    for name in ("a", "b"):
        with staged_output(final) as out:
            (out / name).write_text(name)
    assert [p.name for p in final.iterdir()] == ["b"]


def test_leftovers_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    dead = tmp_path / ".out.999999999-abc.tmp"
    alive = tmp_path / ".out.1-abc.tmp"
    dead.mkdir(), alive.mkdir()
    clear_leftovers(tmp_path / "out")
    assert not dead.exists()
    assert alive.exists()


def test_a_number_that_was_given_out_again_keeps_no_leftovers(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine, older = (tmp_path / f".out.{process.pid}-{name}.tmp" for name in ("a", "b"))
    mine.mkdir(), older.mkdir()
    os.utime(older, (time.time() - 60, time.time() - 60))  # before the process of that number began
    clear_leftovers(tmp_path / "out")
    process.communicate()
    assert mine.exists()
    assert not older.exists()


def test_volatile_files_are_no_part_of_any_hash(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    before = tree_digest(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "timing.json").write_text("{}")
    assert tree_digest(tmp_path) == before
    (tmp_path / "data").write_text("y")
    assert tree_digest(tmp_path) != before


def test_manifest_says_what_made_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    manifest = write_manifest(
        tmp_path, stage="prune", inputs={"plan": "ab"}, params={"prune": {}}, seed=3, metrics={"n": 1}
    )
    assert read_json(tmp_path / "manifest.json") == manifest
    assert manifest["outputs"] == tree_digests(tmp_path)
    assert {"torch", "diffusers"} <= set(manifest["libraries"])
    assert manifest["code"]["version"]


def test_json_is_stable_and_refuses_nan(tmp_path: Path) -> None:
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    with pytest.raises(VDMiniError, match="is missing"):
        read_json(tmp_path / "x.json")


def test_the_accounts_of_this_package_may_be_larger_than_any_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdmini_core.foreign.JSON_BYTES", 10)
    rows = list(range(100))
    write_json(tmp_path / "sources.json", rows)
    assert read_json(tmp_path / "sources.json") == rows
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_json_file(tmp_path / "sources.json")
