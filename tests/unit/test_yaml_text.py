"""YAML within bounds: what could hang, crash or fill the process is refused in words before it is built."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tasks.project import dump_yaml, parse_assignment, preview_params
from vdmini_core.errors import ParamsError
from vdmini_core.params import Params, load_params
from vdmini_core.yaml_text import MAX_NODES, parse_yaml, read_yaml_file

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: " + "[" * 100_000, "levels of nesting"),  # composing it crashed the process
        ("base: " + "[" * 40 + "]" * 40, "levels of nesting"),
        (BOMB, "aliases written out"),
        ("plan: {units: [" + "u, " * (MAX_NODES + 1) + "]}", "aliases written out"),
        ("base: &a {seed: *a}", "no such anchor is finished"),
        ("base: {seed: " + "9" * 5000 + "}", "not valid YAML"),
        ("base: {seed: 0x" + "f" * 9000 + "}", "number too large"),
        ("base: {seed: !!int x}", "not valid YAML"),
        ("base: {seed: !!bool x}", "not valid YAML"),
        ("base: {seed: 2001-99-99}", "not valid YAML"),
        ("base: {seed: 1}\nbase: {seed: 2}", "line 2: found duplicate key"),
        ("? [a, b]\n: 1", "key that is no text"),
        ("base: {1: 2}", "key that is no text"),
        ("prepare: {videos: 2001-01-01}", "what no parameter can be: `prepare.videos`"),
        ("evaluate: {fvd: {weights: !!set {a}}}", "what no parameter can be"),
        ('report: {title: "a\\0b"}', "NUL"),
        ("x: " + "y" * 2**21, "too large"),
    ],
)
def test_what_no_parameter_can_be_is_refused_by_both_readers(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    began = time.process_time()
    for read in (lambda: load_params(path), lambda: preview_params(tmp_path)):
        with pytest.raises(ParamsError, match=says):
            read()
    assert time.process_time() - began < 5


def test_too_deep_is_refused() -> None:
    with pytest.raises(ParamsError, match="levels of nesting"):
        parse_yaml("[" * 40 + "]" * 40, "x")


def test_too_many_values_are_refused() -> None:
    anchored = "a: &a [" + "u, " * 150 + "]\nb: [" + "*a, " * 150 + "]"
    with pytest.raises(ParamsError, match="aliases written out"):
        parse_yaml(anchored, "x")


def test_anchors_and_merges_of_a_usual_size_are_read() -> None:
    text = "a: &clips {train: 8, test: 4}\nb: {<<: *clips, test: 2}\nc: [*clips, *clips]\n"
    clips = {"train": 8, "test": 4}
    assert parse_yaml(text, "x") == {"a": clips, "b": {"train": 8, "test": 2}, "c": [clips, clips]}
    assert parse_yaml(dump_yaml(Params().model_dump(mode="json", by_alias=True)), "x")
    assert parse_yaml("", "x") is None


def test_what_is_no_readable_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ParamsError, match="no regular file"):
        read_yaml_file(tmp_path / "folder.yaml")
    (tmp_path / "utf16.yaml").write_bytes("base: {}".encode("utf-16"))
    with pytest.raises(ParamsError, match="UTF-8"):
        read_yaml_file(tmp_path / "utf16.yaml")


def test_values_of_set_are_read_within_the_same_bounds() -> None:
    assert parse_assignment("base.seed=3") == ("base.seed", 3)
    with pytest.raises(ParamsError, match="levels of nesting"):
        parse_assignment("plan.units=" + "[" * 1000)


def test_many_errors_and_long_values_are_told_in_a_page(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("base:\n" + "".join(f"  key{n}: {'v' * 5000}\n" for n in range(150)))
    with pytest.raises(ParamsError, match=r"unknown key `base.key0`[\s\S]*and 130 more") as caught:
        load_params(path)
    path.write_text("base: {seed: " + "v" * 100_000 + "}")
    with pytest.raises(ParamsError, match=r"base.seed.*vvv\.\.\.") as other:
        load_params(path)
    assert len(str(caught.value)) < 3000 and len(str(other.value)) < 1000
