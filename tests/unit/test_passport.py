"""Passports: what the two sides of a distance, and two values, must have in common."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from vdmini_core.errors import DataError
from vdmini_core.metrics.passport import Passport, Side, features_passport, join, require_comparable

EXTRACTOR = {
    "extractor": "i3d",
    "dim": 400,
    "weights_sha256": "ab" * 32,
    "layer": "logits",
    "resize": "short side to 224, centre crop",
    "convention": "videogpt",
    "bn_eps": 1e-5,
}


def side(clips: int = 2048, **changes: Any) -> Side:
    return Side(**{"clips": clips, "split": "test", "decoders": ("pyav",), "data": "0" * 64, **changes})


def features(own: Side | None = None, extractor: dict | None = None, **changes: Any) -> Passport:
    settings: dict[str, Any] = {"frames": 16, "fps": 7.0, "size": (256, 320), **changes}
    return features_passport({**EXTRACTOR, **(extractor or {})}, side=own or side(), **settings)


def value(real: Side | None = None, generated: Side | None = None, **changes: Any) -> Passport:
    return join(features(real, **changes), features(generated or side(data="1" * 64), **changes))


def test_it_survives_json_and_cannot_be_changed() -> None:
    for passport in (features(), value(), features(fps=None, stride=3)):
        text = json.dumps(passport.to_json(), allow_nan=False)
        assert Passport.from_json(json.loads(text)) == passport
    with pytest.raises(dataclasses.FrozenInstanceError):
        value().frames = 3  # type: ignore[misc]
    assert dict(features().options) == {"bn_eps": 1e-5, "convention": "videogpt"}
    assert {"torch", "numpy", "vdmini"} <= dict(features().versions).keys()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "STATS cannot(?s:.)*mapping"),
        ({"extractor": "i3d"}, "STATS cannot(?s:.)*missing: .*frames"),
        ({**value().to_json(), "colour": 1}, "STATS cannot(?s:.)*unknown: colour"),
        ({**value().to_json(), "real": {"clips": 3}}, "STATS: real cannot(?s:.)*missing: .*decoders"),
    ],
)
def test_what_is_no_passport_is_named(data: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Passport.from_json(data, "STATS")


def test_sides_may_differ_in_clips_and_nothing_that_is_seen() -> None:
    joined = join(features(side(100)), features(side(7, decoders=("decord",), split=None)))
    assert joined.real.clips == 100
    assert joined.generated == side(7, decoders=("decord",), split=None)
    other = features(extractor={"layer": "pooled", "dim": 1024, "convention": "cdfvd"}, frames=14, fps=25)
    with pytest.raises(DataError) as caught:
        join(features(), other, ("real (a)", "generated (b)"))
    text = str(caught.value)
    assert "real (a) and generated (b)" in text
    for line in (
        "layer: logits against pooled",
        "dim: 400 against 1024",
        "convention: videogpt against cdfvd",
        "frames: 16 against 14",
        "fps: 7.0 against 25.0",
    ):
        assert line in text
    assert "size" not in caught.value.found


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (value(real=side(1024)), "real.clips: 2048 against 1024"),
        (value(generated=side(1024)), "generated.clips: 2048 against 1024"),
        (value(real=side(data="2" * 64)), "real.data"),
        (value(real=side(data="2" * 64, split="train")), "real.split: test against train"),
        (value(real=side(decoders=("decord", "pyav"))), "real.decoders: pyav against decord, pyav"),
        (value(generated=side(choice="steps 4")), "generated.choice: none against steps 4"),
        (value(size=(128, 128)), "size: 256 x 320 against 128 x 128"),
        (value(fps=None, stride=3), "stride: none against 3"),
        (value(extractor={"weights_sha256": None}), "weights_sha256: abab.* against none"),
        (value(extractor={"bn_eps": 1e-3}), "bn_eps: 1e-05 against 0.001"),
        (features(), "generated: only one of them"),
    ],
)
def test_values_of_different_passports_are_refused(other: Passport, line: str) -> None:
    with pytest.raises(DataError, match=rf"student and champion(?s:.)*{line}"):
        require_comparable(value(), other, ("student", "champion"))


def test_values_that_may_be_compared() -> None:
    assert require_comparable(value(), value(generated=side(data="3" * 64, split="mine"))) == []
    # The very same real clips, though their folder was renamed.
    assert require_comparable(value(), value(real=side(split="UCF-101"))) == []
    newer = dataclasses.replace(value(), versions=(("torch", "9.9"),))
    remarks = require_comparable(newer, value())
    assert any(remark.startswith("version of torch: 9.9 against ") for remark in remarks)
    assert any(remark.startswith("version of numpy: none against ") for remark in remarks)
