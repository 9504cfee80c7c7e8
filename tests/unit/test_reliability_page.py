"""Claims about docs/reliability.md: it says what the committed results say, and they are clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.guards import GUARDS
from tests.chaos.page import ASKED, PAGE, RESULTS, written
from vdmini_core.artifacts import read_json

SECTIONS = {path.name: read_json(path) for path in sorted(Path(RESULTS).glob("*.json"))}
NONE_OF = (
    *("crashed", "hung", "filled", "forgotten", "wrong", "disagreed", "wrote", "executed", "asked"),
    *("lost", "corrupted", "refused", "half-registered", "locked", "unfinished stories"),
    *("with torn outputs", "without a clear error"),
)


def test_the_page_is_made_from_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == written()


def test_everything_that_is_asked_has_a_result() -> None:
    assert {section["section"] for section in SECTIONS.values()} == ASKED.keys()


@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_is_lost_crashed_or_executed(name: str) -> None:
    totals = SECTIONS[name]["totals"]
    assert {key: totals[key] for key in NONE_OF if totals.get(key)} == {}


def test_there_are_as_many_as_are_asked_for() -> None:
    assert SECTIONS["kills.json"]["totals"]["kills"] >= 100
    assert SECTIONS["fuzz-files.json"]["totals"]["files"] >= 1000
    for name in ("fuzz-params.json", "fuzz-configs.json"):
        assert SECTIONS[name]["totals"]["count"] >= 500


def test_every_guard_was_seen_to_be_missed() -> None:
    seen = {row["guard"]: row["seen to fail without the guard"] for row in SECTIONS["attacks.json"]["rows"]}
    assert seen == dict.fromkeys((guard.name for guard in GUARDS), True)
