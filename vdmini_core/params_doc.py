"""`docs/params.md` from the typed parameters: `python -m vdmini_core.params_doc > docs/params.md`."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vdmini_core.params import Params

_HEAD = """# Parameters

Every key of `params.yaml`, with its default. Made from the code (`python -m vdmini_core.params_doc`), so
it is what the code reads. Unknown keys are errors that name the nearest known one.
"""


def document() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for name, info in Params.model_fields.items():
        section = info.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts.append(
            f"## {info.alias or name}\n\n{_first_line(section)}\n\n{_table(section, info.get_default())}"
        )
    return "\n".join(parts)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().split("\n")[0]


def _table(section: type[BaseModel], value: Any, prefix: str = "") -> str:
    rows = [] if prefix else ["| key | default | values | |", "|---|---|---|---|"]
    for name, info in section.model_fields.items():
        current = getattr(value, name)
        if isinstance(current, BaseModel):
            rows.append(_table(type(current), current, f"{prefix}{name}.").rstrip())
        else:
            rows.append(
                f"| `{prefix}{name}` | `{_shown(current)}` | {_values(info)} | {info.description or ''} |"
            )
    return "\n".join(rows) + "\n"


def _shown(value: Any) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _values(info: FieldInfo) -> str:
    text = str(info.annotation).replace("typing.", "").replace("|", "or")
    if isinstance(info.annotation, type):
        text = info.annotation.__name__
    text = text.removeprefix("Literal")
    bounds = [
        f"{word} {getattr(item, key)}"
        for item in info.metadata
        for key, word in _BOUNDS
        if hasattr(item, key)
    ]
    return " ".join([_plain(text), *bounds])


def _plain(text: str) -> str:
    """A type as words: choices without brackets, `X or null` for Optional, `list of X` for a tuple."""
    text = text.replace("'", "").replace("None", "null")
    if text.startswith("Optional["):
        return f"{_plain(text[len('Optional[') : -1].removeprefix('Literal'))} or null"
    if text.startswith("tuple[") and text.endswith(", ...]"):
        return f"list of {_plain(text[len('tuple[') : -len(', ...]')].removeprefix('Literal'))}"
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))

if __name__ == "__main__":
    sys.stdout.write(document())
