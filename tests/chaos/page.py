"""`python -m tests.chaos.page`: docs/reliability.md from the results in docs/reliability/*.json.

A result is one section: `{"section": title, "seed": number, "rows": [...], "totals": {...}}`; optional are
`about` (a paragraph), `command` (which repeats it), `order` (sections are sorted by it) and `problems` (rows
of what was found). `rows` and `problems` are lists of mappings; a table has the columns of all of them.
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

Killed anywhere, fed anything: what was tried, and what was lost. Made from the results in `docs/reliability/`
(`python -m tests.chaos.page`); each section names the seed and the command that repeat it.
"""


def written(results: Path = RESULTS) -> str:
    """The page."""
    sections = [read_json(path) for path in sorted(results.glob("*.json"))]
    sections.sort(key=lambda section: (section.get("order", 100), section["section"]))
    return "\n".join([HEAD, *(_section(section) for section in sections)])


def _section(section: dict[str, Any]) -> str:
    parts = [f"## {section['section']}", ""]
    if about := section.get("about"):
        parts += [about, ""]
    repeat = f": `{section['command']}`" if "command" in section else ""
    parts += [f"Seed {section['seed']}{repeat}.", ""]
    if rows := section.get("rows"):
        parts += [*_table(rows), ""]
    if totals := section.get("totals"):
        told = (f"{_cell(totals[name])} {name}" for name in _ordered(totals))
        parts += [f"In all: {', '.join(told)}.", ""]
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
