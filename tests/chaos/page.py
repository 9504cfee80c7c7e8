"""`python -m tests.chaos.page`: docs/reliability.md from the results in docs/reliability/*.json.

A result is one section: `{"section": title, "seed": number, "rows": [...], "totals": {...}}`; optional are
`about` (a paragraph), `code` (digest of the code it was made with), `absent` (what could not be tried: why),
`command` (which repeats it), `order` (sections are sorted by it) and `problems` (rows of what was found).
`rows` and `problems` are lists of mappings; a table has the columns of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import read_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"
FIRST = ("stage", "process", "kind", "story", "guard", "attack", "count", "kills", "stories", "guards")
HEAD = """# Reliability

Killed anywhere, fed anything: what was tried, and what was lost. Made from the results in
`docs/reliability/` (`python -m tests.chaos.page`); each section names the seed and the command that repeat
it, `make chaos` makes them all but the long recovery (two hours on two cores; started again it goes on where
it stopped).

Elsewhere: numbers under stress (NaN in data, gradients and heads, rates far too high, clips of one class, all
alike or all black) in `tests/unit/test_numbers_under_stress.py` and `test_recovery_step.py`; runs at once in
`tests/chaos/test_at_once.py`; kills of a worker, a node and a driver of the recovery in `tests/flows`;
checkpoints on their way to S3 in `tests/services/test_checkpoints_s3.py`. The driver `dvc` has no `register`
and `promote`.

Words: **lost**, an output is missing or was made again; **corrupted**, its bytes are others; **stray**, a
file is left; **refused**, a person has to act; **wrong**, a file that had to be taken was refused, or the
other way round; **forgotten**, a file is in no account. `count` counts a file once for `prepare` and once for
`fvd`.
"""
ASKED = {
    "Killed anywhere": "100 kills or more; nothing lost, corrupted, hung, stray or half-registered",
    "A full or read-only disk": "a clear error and whole outputs at every stop",
    "Fed any files": "1,000 files or more; none crashes, hangs, is forgotten or judged wrongly",
    "Fed any parameters": "500 or more; none crashes, hangs, is forgotten or writes",
    "Fed any configs": "500 or more; none crashes, hangs, is forgotten or writes",
    "Refused attacks": "every guard's test fails without it",
    "A long recovery": "less than 1 MB more per 1,000 steps, open files and pace flat",
}


def written(results: Path = RESULTS) -> str:
    """The page."""
    sections = [read_json(path) for path in sorted(results.glob("*.json"))]
    sections.sort(key=lambda section: (section.get("order", 100), section["section"]))
    return "\n".join([HEAD, *_glance(sections), *(_section(section) for section in sections)])


def _glance(sections: list[dict[str, Any]]) -> list[str]:
    """What was asked of each section beside what was found; sections without a result say so."""
    found = {section["section"]: section for section in sections}
    rows = [
        {
            "what": name,
            "asked": asked,
            "found": _totals(found[name]["totals"]) if name in found else "not made yet",
        }
        for name, asked in ASKED.items()
    ]
    return [*_table(rows), ""]


def _totals(totals: dict[str, Any]) -> str:
    told = []
    for name in _ordered(totals):
        value = totals[name]
        if isinstance(value, dict):
            value = ", ".join(f"{_cell(part)} ({key})" for key, part in value.items())
        told.append(f"{len(value) if isinstance(value, list) else _cell(value)} {name.replace('_', ' ')}")
    return ", ".join(told)


def _section(section: dict[str, Any]) -> str:
    parts = [f"## {section['section']}", ""]
    if about := section.get("about"):
        parts += [about, ""]
    repeat = f": `{section['command']}`" if "command" in section else ""
    code = f", code `{section['code']}`" if "code" in section else ""
    parts += [f"Seed {section['seed']}{code}{repeat}.", ""]
    if absent := section.get("absent"):
        told = "; ".join(f"{_cell(what)} ({_cell(why)})" for what, why in absent.items())
        parts += [f"Not among them here: {told}.", ""]
    if rows := section.get("rows"):
        parts += [*_table(rows), ""]
    if totals := section.get("totals"):
        parts += [f"In all: {_totals(totals)}.", ""]
    if problems := section.get("problems"):
        parts += ["What was found:", "", *_table(problems), ""]
    return "\n".join(parts)


def _ordered(names: Iterable[str]) -> list[str]:
    """What a row or a sum is of first, the rest as it comes: files of results have their keys sorted."""
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = _ordered(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    """One line of a table; what came from files must not be taken for markup."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, safe)
    return text


def main() -> None:
    """Write it."""
    PAGE.write_text(written(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
