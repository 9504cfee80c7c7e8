"""Claims: whatever stops a user says what to do, and the catalogue leaves none out."""

from __future__ import annotations

import ast

from tests.error_catalogue import _of_file, entries


def test_every_error_says_what_is_expected_or_what_to_do() -> None:
    told = entries()
    assert len(told) > 400
    assert [f"{entry.place}: {entry.problem}" for entry in told if not (entry.expected or entry.fix)] == []


def test_an_error_that_begins_with_a_name_is_told_and_one_that_passes_on_is_not() -> None:
    source = """
raise ModelError(f"{path.name} is missing", fix="download it")
raise ModelError(problem, fix="this is told where it is made")
"""
    (entry,) = _of_file(ast.parse(source), "here")
    assert (entry.problem, entry.fix) == ("<name> is missing", "download it")
