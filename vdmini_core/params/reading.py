"""`params.yaml` -> typed parameters, or every mistake in words."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from vdmini_core.errors import ParamsError
from vdmini_core.params.whole import Params
from vdmini_core.yaml_text import read_yaml_file

_SHOWN = 20  # errors told at once


def known_keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Every dotted key that `params.yaml` may hold."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        dotted = prefix + (info.alias or name)
        keys.append(dotted)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, dotted + ".")
    return keys


def nearest_key(key: str) -> str | None:
    """The known dotted key most like `key`, or None where nothing is near."""
    keys = known_keys()
    tail = key.rsplit(".", 1)[-1]
    by_tail = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not close:
        close = [by_tail[t] for t in difflib.get_close_matches(tail, list(by_tail), n=1, cutoff=0.6)]
    return close[0] if close else None


def parse_params(data: Any, origin: str = "params.yaml") -> Params:
    """Turn plain data into typed parameters.

    Raises:
        ParamsError: naming each wrong key or value, and the nearest known key for an unknown one.
    """
    if not isinstance(data, dict):
        raise ParamsError(
            f"{origin} holds no parameters", expected="a mapping of sections", found=type(data).__name__
        )
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        lines = [_explain(item) for item in wrong[:_SHOWN]]
        if len(wrong) > _SHOWN:
            lines.append(f"and {len(wrong) - _SHOWN} more")
        raise ParamsError(
            f"{origin} cannot be used:\n" + "\n".join(f"  - {line}" for line in lines),
            fix="correct it, or start again from `--profile mini`; `vdmini doctor` checks it",
        ) from None


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = nearest_key(key)
        return f"unknown key `{_cut(key)}`" + (f": did you mean `{near}`?" if near else "")
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = "" if isinstance(value, dict | BaseModel) else f" (found {_cut(repr(value))})"
    return f"`{_cut(key) or 'params'}`: {message}{shown}"


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def load_params(path: Path) -> Params:
    """Read a `params.yaml`.

    Raises:
        ParamsError: when it is missing, not YAML, or does not fit.
    """
    try:
        data = read_yaml_file(path)
    except FileNotFoundError:
        raise ParamsError(
            f"there is no {path.name} here",
            expected=f"a project folder with {path.name} and dvc.yaml",
            found=str(path.parent.resolve()),
            fix="run inside the checkout, or lay out a project with `vdmini init DIR`",
        ) from None
    if isinstance(data, dict):  # a section of which every line is a comment holds the defaults
        data = {name: {} if section is None else section for name, section in data.items()}
    return parse_params(data if data is not None else {}, path.name)


def section_dict(params: Params, name: str) -> dict[str, Any]:
    """One section as plain JSON-able data, under the name it has in `params.yaml`."""
    data = params.model_dump(mode="json", by_alias=True)
    if name not in data:
        raise ParamsError(f"there is no section `{name}`", expected=", ".join(data))
    return data[name]
