"""The passport of a Fréchet distance: everything its value depends on, and what may be compared with what.

Two rules, each with its own function:

* *The two sides of one distance* (`join`) must be seen alike: same extractor with the same weights, layer,
  resize and options; same frames, fps or stride, and size; same covariance. Their numbers of clips, data and
  decoders may differ: they are two sets.
* *Two values* (`require_comparable`) must agree in all of that, and in the number of clips of both sides
  (the bias of the distance depends on it), in the real clips themselves, in the decoders, and in how the
  generated clips were chosen or sampled. The generated clips themselves are what is compared. Versions of
  libraries may differ: they move the last digits, so a difference is a remark and no refusal.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

import vdmini_core
from vdmini_core.errors import DataError

COVARIANCE = "n - 1"
_LIBRARIES = ("torch", "numpy", "av", "decord")
_OF_EXTRACTORS = ("extractor", "weights_sha256", "layer", "resize", "dim")
_SEEN = (*_OF_EXTRACTORS, "options", "frames", "fps", "stride", "size", "covariance")


@dataclass(frozen=True)
class Side:
    """One of the two sets of clips.

    Attributes:
        clips: how many.
        split: of the data set, or the folder's name; None where there is no such thing.
        decoders: which ones read the files, sorted; empty for clips that never were files.
        data: sha256 of the clips' pixels or of the file that holds them.
        choice: in words, how the clips were chosen from their videos, or sampled from a model.
    """

    clips: int
    split: str | None = None
    decoders: tuple[str, ...] = ()
    data: str | None = None
    choice: str = ""


@dataclass(frozen=True)
class Passport:
    """What a distance (both sides) or saved statistics (`generated` is None) depend on.

    Attributes:
        extractor, weights_sha256, layer, resize, dim: which features of which network, and the order of
            scaling, resizing and cropping in front of it.
        options: what else the extractor names, as sorted (name, value) pairs.
        frames: of a clip.
        fps: at which clips were sampled by time, or the common rate of the files; None with a `stride`.
        stride: every how many source frames one was taken, whatever the rate; None where `fps` counts.
        size: (height, width) of the clips as the extractor gets them.
        covariance: the divisor of the covariances.
        real: the reference side, or the only one.
        generated: the judged side; None for statistics of one set.
        versions: of this package and the libraries the numbers come from, as sorted (name, version) pairs.
    """

    extractor: str
    weights_sha256: str | None
    layer: str | None
    resize: str | None
    dim: int
    options: tuple[tuple[str, Any], ...]
    frames: int
    fps: float | None
    stride: int | None
    size: tuple[int, int]
    real: Side
    generated: Side | None = None
    covariance: str = COVARIANCE
    versions: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        data = asdict(self) | {"options": dict(self.options), "versions": dict(self.versions)}
        return json.loads(json.dumps(data))

    @classmethod
    def from_json(cls, data: Any, what: str = "the passport") -> Passport:
        """What `to_json` gave.

        Raises:
            DataError: naming `what` and the fields that are missing or unknown.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{what} cannot be read", expected="a mapping of fields", found=repr(data)[:80])
        own = _checked(dict(data), cls, what)
        try:
            for name in ("real", "generated"):
                if own[name] is not None:
                    side = _checked(own[name], Side, f"{what}: {name}")
                    own[name] = Side(**side | {"decoders": tuple(side["decoders"])})
            pairs = {name: tuple(sorted(own[name].items())) for name in ("options", "versions")}
            found = cls(**own | pairs | {"size": tuple(own["size"])})
            _TYPES.validate_python(asdict(found))
        except (TypeError, AttributeError, ValueError) as error:  # pydantic's own is a ValueError
            raise DataError(
                f"{what} cannot be read",
                expected="fields of the types that this version writes",
                found=_said(error),
                fix="measure again with this version",
            ) from None
        return found


_TYPES = TypeAdapter(Passport)


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)[:200]
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]


def _checked(data: Any, kind: type, what: str) -> dict[str, Any]:
    found = set(data) if isinstance(data, Mapping) else set()
    names = {item.name for item in fields(kind)}
    if found != names:
        raise DataError(
            f"{what} cannot be read",
            expected="fields " + ", ".join(sorted(names)),
            found=f"missing: {', '.join(sorted(names - found)) or 'none'}; "
            f"unknown: {', '.join(sorted(found - names)) or 'none'}",
            fix="measure again with this version",
        )
    return dict(data)


def features_passport(
    extractor: Mapping[str, Any],
    *,
    frames: int,
    size: tuple[int, int],
    side: Side,
    fps: float | None = None,
    stride: int | None = None,
) -> Passport:
    """The passport of one set's features.

    Args:
        extractor: `Extractor.passport()`; what has no field of its own goes to `options`.
        frames, size, fps, stride: see `Passport`.
        side: the set.
    """
    options = {key: value for key, value in extractor.items() if key not in _OF_EXTRACTORS}
    return Passport(
        **{key: extractor.get(key) for key in _OF_EXTRACTORS},  # type: ignore[arg-type]
        options=tuple(sorted(json.loads(json.dumps(options)).items())),
        frames=frames,
        fps=None if fps is None else float(fps),
        stride=stride,
        size=size,
        real=side,
        versions=passport_versions(),
    )


def passport_versions() -> tuple[tuple[str, str], ...]:
    """This package and the libraries that decode and compute, without build suffixes."""
    found = {name: importlib.metadata.version(name).split("+")[0] for name in _LIBRARIES}
    return tuple(sorted({**found, "vdmini": vdmini_core.__version__}.items()))


def join(real: Passport, generated: Passport, names: tuple[str, str] = ("real", "generated")) -> Passport:
    """The passport of the distance between two sets.

    Raises:
        DataError: when the sides are not seen alike, with every difference (`names` say which is which).
    """
    differences = _differences(real, generated, _SEEN)
    if differences:
        raise DataError(
            f"{names[0]} and {names[1]} were not measured alike",
            expected="the same extractor, frames, fps or stride, and size on both sides",
            found=_listed(differences),
            fix="give --extractor with its options, --frames, --fps and --size, "
            "or make the statistics again with fvd-stats",
        )
    return replace(real, generated=generated.real)


def require_comparable(a: Passport, b: Passport, names: tuple[str, str] = ("a", "b")) -> list[str]:
    """Refuse to compare two values that were measured differently.

    Returns:
        Remarks: versions of libraries that differ, one line each.

    Raises:
        DataError: with every field that must agree and does not, a's value against b's.
    """
    differences = value_differences(a, b)
    if differences:
        raise DataError(
            f"{names[0]} and {names[1]} were measured differently: not comparable",
            expected="equal passports",
            found=_listed(differences),
            fix="measure both with the same settings on the same real clips",
        )
    return version_remarks(a, b)


def version_remarks(a: Passport, b: Passport) -> list[str]:
    """Versions that differ, one line each: they may move the last digits."""
    ours, theirs = dict(a.versions), dict(b.versions)
    return [
        f"version of {name}: {_shown(ours.get(name))} against {_shown(theirs.get(name))}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def value_differences(a: Passport, b: Passport) -> list[str]:
    """What forbids comparing two values, one line for each field: a's value against b's."""
    found = _differences(a, b, _SEEN)
    same_data = a.real.data is not None and a.real.data == b.real.data
    # The very same pixels are the same data, whatever their folder is called.
    found += _of_sides("real", a.real, b.real, ("clips", "data", *(() if same_data else ("split",))))
    found += _of_sides("real", a.real, b.real, ("decoders", "choice"))
    if (a.generated is None) != (b.generated is None):
        return [*found, "generated: only one of them is a distance between two sets"]
    if a.generated is not None and b.generated is not None:
        found += _of_sides("generated", a.generated, b.generated, ("clips", "decoders", "choice"))
    return found


def _of_sides(name: str, a: Side, b: Side, keys: tuple[str, ...]) -> list[str]:
    return [f"{name}.{line}" for line in _differences(a, b, keys)]


def _differences(a: Any, b: Any, keys: tuple[str, ...]) -> list[str]:
    lines = []
    for key in keys:
        ours, theirs = getattr(a, key), getattr(b, key)
        if key == "options":
            ours, theirs = dict(ours), dict(theirs)
            lines += [
                f"{name}: {_shown(ours.get(name))} against {_shown(theirs.get(name))}"
                for name in sorted({*ours, *theirs})
                if ours.get(name) != theirs.get(name)
            ]
        elif ours != theirs:
            lines.append(f"{key}: {_shown(ours)} against {_shown(theirs)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and value:
        return (" x " if isinstance(value[0], int) else ", ").join(map(str, value))
    return "none" if value in (None, "", ()) else str(value)


def _listed(lines: list[str]) -> str:
    return "".join(f"\n      {line}" for line in lines)
