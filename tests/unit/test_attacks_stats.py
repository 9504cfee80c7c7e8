"""Saved statistics of strangers: refused in words, whatever their header and passport say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_toys import ONE, safetensors
from safetensors.numpy import save_file

from vdmini_core.errors import DataError
from vdmini_core.metrics.passport import Passport, Side
from vdmini_core.metrics.saved_stats import load_stats

OWN = Passport("toy", None, None, None, 2, (), 4, 8.0, None, (8, 8), Side(3, "test", ("av",), "00", "first"))
TENSORS = {"n": np.array([3]), "mean": np.zeros(2), "scatter": np.eye(2)}


def write(path: Path, passport: Any = None, **tensors: Any) -> Path:
    told = {**OWN.to_json(), "asked": {"fps": 8.0, "size": [8, 8]}} if passport is None else passport
    text = told if isinstance(told, str) else json.dumps(told)
    save_file({**TENSORS, **tensors}, path, metadata={"passport": text})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    saved = load_stats(write(tmp_path / "a.safetensors"))
    assert (saved.passport, saved.asked.fps, saved.asked.size) == (OWN, 8.0, (8, 8))


@pytest.mark.parametrize(
    "change",
    [
        {"dim": "x"}, {"dim": None}, {"frames": {}}, {"fps": "x"}, {"size": 5}, {"size": [1]},
        {"options": "x"}, {"versions": [1]}, {"real": 3}, {"real": {}}, {"asked": {"fps": "x"}},
        {"asked": {"size": 5}}, {"asked": {"size": [1]}}, {"asked": {"fps": -1}},
        {"asked": {"fps": float("nan")}}, {"asked": {"fps": 1e999}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_passport_of_other_types_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="passport"):
        load_stats(write(tmp_path / "a.safetensors", {**OWN.to_json(), **change}))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: write(path, "[" * 10**5),
        lambda path: write(path, n=np.zeros(0, np.int64)),
        lambda path: write(path, n=np.array(3)),
        lambda path: write(path, mean=np.zeros(200_000)),
        lambda path: write(path, mean=np.zeros((2, 2))),
        lambda path: write(path, scatter=np.zeros(4)),
        lambda path: path.write_bytes(b""),
    ],
)
def test_tensors_and_headers_of_other_shapes_are_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(path := tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"holds no statistics|does not fit its own passport"):
        load_stats(path)


def test_a_header_bomb_is_refused(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", json.dumps(ONE).encode() + b" " * (17 * 2**20), bytes(4))
    with pytest.raises(DataError, match=r"holds no statistics\n.*\n.*header is too large"):
        load_stats(path)
