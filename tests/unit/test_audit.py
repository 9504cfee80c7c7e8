"""What `make audit` says of the answers it may get."""

from __future__ import annotations

from tests.audit import NOT_ASKED, verdict

SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
CLEAN = {"name": "numpy", "version": "2.4.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}


def test_where_nothing_was_looked_up_nothing_is_claimed() -> None:
    for dependencies in ([], [SKIPPED, SKIPPED]):
        status, lines = verdict(dependencies)
        assert status == NOT_ASKED and lines[0].startswith("NOT AUDITED")


def test_advisories_end_it_and_the_unknown_are_named() -> None:
    assert verdict([CLEAN]) == (0, ["1 of 1 packages looked up, 0 advisories"])
    status, lines = verdict([CLEAN, BAD, SKIPPED])
    assert status == 1 and lines[0] == "pillow 1.0: PYSEC-1, mended in 1.1"
    assert "torch" in lines[1] and lines[2] == "2 of 3 packages looked up, 1 advisories"
