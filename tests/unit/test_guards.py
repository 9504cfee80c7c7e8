"""The table of guards is of this code; `python -m tests.chaos.mutations`, of `make chaos`, does the rest."""

from __future__ import annotations

import ast

import pytest

from tests.chaos.guards import GUARDS
from tests.chaos.mutations import ROOT, lost_guards


def test_every_guard_stands_where_the_table_says() -> None:
    assert lost_guards() == []


@pytest.mark.parametrize("file", sorted({guard.test.partition("::")[0] for guard in GUARDS}))
def test_every_test_of_the_table_exists(file: str) -> None:
    told = {
        guard.test.partition("::")[2].partition("[")[0] for guard in GUARDS if guard.test.startswith(file)
    }
    there = {
        node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert told <= there


def test_code_without_a_guard_is_still_code() -> None:
    """A mutation that cannot be parsed would fail every test, and show nothing."""
    for guard in GUARDS:
        if guard.file.endswith(".py"):
            text = (ROOT / guard.file).read_text()
            assert guard.without != guard.text
            ast.parse(text.replace(guard.text, guard.without))
