"""`docs/errors.md`, made from every error the code can show a user: `python -m tests.error_catalogue`.

Each place that builds one of `vdmini_core.errors` is found in the syntax tree; what is only known when it
happens stands there as a name in angle brackets.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vdmini_core import errors

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
PACKAGES = ("vdmini_core", "tasks", "flows")


def _classes() -> dict[str, str]:
    """Name and docstring of every class of error, those that a module has for itself among them."""
    found = {
        name: kind.__doc__ or ""
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.VDMiniError)
    }
    own = [node for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while new := [node for node in own if node.name not in found and _bases(node) & found.keys()]:
        found |= {node.name: ast.get_docstring(node) or "" for node in new}
    return found


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def _bases(node: ast.ClassDef) -> set[str]:
    return {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}


CLASSES = _classes()
HEAD = """# Errors

Every error that is the user's to mend, made from the code (`python -m tests.error_catalogue`). The command
line prints it without a traceback and exits with 1: what is wrong, what was expected, what was found, and
what to do. `<name>` stands for what is only known when it happens. Where no way out is named, giving what
is expected is the way out.
"""


# Reasons for which a video is left out: they stand beside its name in sources.json and on the screen.
OF_A_VIDEO = tuple(f"vdmini_core/data/{name}" for name in ("decode_worker", "readers", "video"))
VIDEO = "the video is left out; mend it (for most: `ffmpeg -i OLD -c:v libx264 NEW.mp4`) or do without it"


class Entry(NamedTuple):
    """One place in the code that can stop a user."""

    kind: str
    place: str
    problem: str
    expected: str
    fix: str


def entries() -> list[Entry]:
    """Those of all packages, by kind, then by place."""
    found = []
    for path, tree in _trees():
        found += list(_of_file(tree, path.relative_to(ROOT).with_suffix("").as_posix()))
    kinds = list(CLASSES)
    return sorted(set(found), key=lambda entry: (kinds.index(entry.kind), entry.place, entry))


def _of_file(tree: ast.AST, place: str) -> Iterator[Entry]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id not in CLASSES or not node.args:
            continue
        said = {word.arg: _text(word.value) for word in node.keywords}
        problem = _text(node.args[0])
        if re.fullmatch(r"<[^<>]*>", problem):  # passes on what another place says
            continue
        fix = said.get("fix", "") or (VIDEO if place in OF_A_VIDEO else "")
        yield Entry(node.func.id, place, problem, said.get("expected", ""), fix)


def _text(node: ast.expr) -> str:
    """A string expression as a reader would see it."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value) for value in values)
        case ast.FormattedValue(value=value):
            return _text(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            first, other = _text(body), _text(orelse)
            return f"{first} / {other}" if first and other else first or other
        case ast.Call(func=ast.Attribute(attr="join"), args=[several]):
            return _text(several)
        case _:
            return f"<{_name(node)}>"


def _name(node: ast.expr) -> str:
    """The last plain word of an expression: `path.name` is a name, `len(rows)` are rows."""
    words = [part.attr if isinstance(part, ast.Attribute) else part.id for part in _words(node)]
    return words[0].strip("_").lower() if words else "value"


def _words(node: ast.expr) -> list[ast.Attribute | ast.Name]:
    hidden = {"str", "len", "sorted", "type", "list", "tuple", "set", "round", "repr", "min", "max", "first"}
    return [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) or (isinstance(part, ast.Name) and part.id not in hidden)
    ]


def written() -> str:
    """The page as Markdown."""
    parts, every = [HEAD], entries()
    for kind, about in CLASSES.items():
        rows = [entry for entry in every if entry.kind == kind]
        parts.append(f"## {kind}\n\n{about.strip().splitlines()[0]}\n")
        parts.append("| what is wrong | expected | what to do | where |\n|---|---|---|---|")
        parts += [
            f"| {_cell(row.problem)} | {_cell(row.expected)} | {_cell(row.fix)} | `{row.place}` |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text for a cell of a table; within code spans Markdown shows `<` as it is."""
    spans = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(
        span if index % 2 else span.replace("<", "&lt;").replace(">", "&gt;")
        for index, span in enumerate(spans)
    )


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
