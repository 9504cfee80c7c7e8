"""YAML that a person wrote, read within bounds: nothing in it can hang, crash or fill the process.

The parser's events are counted before anything is built: nesting, because composing is recursive (in C, where
too deep is a crash), and nodes with every alias counted as often as it is used, because a few lines of
anchors can stand for billions of values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from vdmini_core.errors import ParamsError

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 32
_MAX_BITS = 63


def read_yaml_file(path: Path, yaml: YAML | None = None) -> Any:
    """Content of a YAML file, None for an empty one; see `parse_yaml`.

    Raises:
        ParamsError: when it cannot be read, or for what `parse_yaml` refuses.
        FileNotFoundError: when there is no such file.
    """
    if path.exists() and not path.is_file():
        raise ParamsError(
            f"{path.name} is no regular file", found=str(path), fix="put a text file in its place"
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ParamsError(
            f"{path.name} cannot be read",
            found=error.strerror or str(error),
            fix="give yourself the right to read it",
        ) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(data) <= MAX_BYTES:
            raise ParamsError(
                f"{path.name} is not valid YAML", expected="text in UTF-8", found=str(error)
            ) from None
        text = data.decode("utf-8", "ignore")  # too long: the cut may have split a character
    return parse_yaml(text, path.name, yaml)


def parse_yaml(text: str, origin: str, yaml: YAML | None = None) -> Any:
    """One YAML document as plain data: keys are text, numbers have at most 63 bits.

    Args:
        text: the document.
        origin: what it is called in errors.
        yaml: another loader, for a text that the safe one has read: its values are not looked at again.

    Raises:
        ParamsError: for what is no YAML, too long, too deep, or too large once its aliases are written out.
    """
    if len(text) > MAX_BYTES:
        raise _too_large(origin, f"at most {MAX_BYTES:,} characters", "more")
    try:
        _count(text, origin)
        data = (yaml or YAML(typ="safe")).load(text)
    except YAMLError as error:
        raise _invalid(origin, _said(error)) from None
    except ParamsError:
        raise
    except Exception as error:  # a tag's constructor raises what int() or a date raises
        raise _invalid(origin, f"{type(error).__name__}: {_said(error)}") from None
    if yaml is None:
        _check_values(data, origin)
    return data


def _said(error: Exception) -> str:
    """What is wrong and in which line, cut."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + (getattr(error, "problem", None) or str(error)).split("\n")[0][:200]


def _invalid(origin: str, found: str) -> ParamsError:
    return ParamsError(f"{origin} is not valid YAML", found=found, fix="correct what it says, or start anew")


def _too_large(origin: str, expected: str, found: str) -> ParamsError:
    return ParamsError(f"{origin} is too large for parameters", expected=expected, found=found)


def _count(text: str, origin: str) -> None:
    """Nodes of the document as if every alias were written out, and its depth."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes so far
    total = 0
    for event in YAML(typ="safe").parse(text):
        size, anchor = 0, None
        if isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise _invalid(origin, f"`*{event.anchor}` where no such anchor is finished")
            size = sizes[event.anchor]
        elif isinstance(event, ScalarEvent):
            size, anchor = 1, event.anchor
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise _too_large(origin, f"at most {MAX_DEPTH} levels of nesting", "more")
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            anchor, size = open_nodes.pop()
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            outer, so_far = open_nodes[-1]
            open_nodes[-1] = outer, so_far + size
            total = so_far + size
        if total > MAX_NODES:
            raise _too_large(origin, f"at most {MAX_NODES:,} values, aliases written out", "more")


def _check_values(data: Any, origin: str, place: str = "") -> None:
    """What YAML allows and no parameter can be: dates, sets, keys that are no text, NUL, big numbers."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise ParamsError(
                    f"{origin} has a key that is no text",
                    expected="names of sections and parameters",
                    found=f"a key of type {type(key).__name__}" + (f" in `{place}`" if place else ""),
                )
            _check_values(value, origin, f"{place}.{key}" if place else key)
    elif isinstance(data, list):
        for value in data:
            _check_values(value, origin, place)
    elif data is not None and not isinstance(data, str | int | float):
        raise ParamsError(
            f"{origin} holds what no parameter can be: `{place[:80]}`",
            expected="text, a number, true, false, null, a list or a mapping",
            found=type(data).__name__,
            fix="put quotes around it where it is meant as text",
        )
    elif isinstance(data, str) and "\0" in data:
        raise ParamsError(
            f"{origin} holds a NUL character: `{place[:80]}`",
            expected="text that can be a path or a name",
            found=ascii(data[:80]),
        )
    elif isinstance(data, int) and data.bit_length() > _MAX_BITS:
        raise ParamsError(
            f"{origin} holds a number too large to count anything: `{place[:80]}`",
            expected=f"less than 2**{_MAX_BITS}",
            found=f"a whole number of {data.bit_length()} bits",
        )
