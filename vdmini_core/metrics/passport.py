"""What a metric's value depends on, kept beside it; values of different passports are not compared.

A passport is plain JSON: extractor (name, weights hash, layer, resize order), clips (number, frames, fps,
size, split, decoders), covariance convention, library versions. Nothing in it may differ between two values;
the two *sides* of one distance may differ in what says nothing about how features were made
(`FREE_BETWEEN_SIDES`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vdmini_core.errors import DataError

Passport = Mapping[str, Any]
# The bias of a distance depends on the smaller side, so both numbers of clips travel with the value.
FREE_BETWEEN_SIDES = frozenset({"clips", "decoders", "split", "versions"})


def differences(a: Passport, b: Passport, ignore: Collection[str] = ()) -> list[str]:
    """Every field that differs, as `fps: 7 against 8`; top-level fields in `ignore` are left out."""
    first, second = _flat(a), _flat(b)
    return [
        f"{key}: {first.get(key, 'not known')} against {second.get(key, 'not known')}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key) and key.split(".")[0] not in ignore
    ]


def require_comparable(a: Passport, b: Passport, ignore: Collection[str] = ()) -> None:
    """Refuse to compare values (or, with `FREE_BETWEEN_SIDES`, sides) that were measured differently.

    Raises:
        DataError: naming every difference.
    """
    found = differences(a, b, ignore)
    if found:
        raise DataError(
            "these were measured differently and cannot be compared",
            expected="equal passports",
            found="\n      ".join(found),
            fix="measure both in the same way",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
