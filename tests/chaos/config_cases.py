"""Texts for the JSON files of a pipeline, drawn from a seed: spoilt ones, odd ones, and ones made to hurt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

Place = tuple[dict[str, Any] | list[Any], Any]
_TYPES = (None, True, False, [], {}, "", "x", 1.5, [1, 2], {"a": 1}, [[[]]], [None], "1", "relu")
_NUMBERS = (
    *(-1, 0, 1, 2, 3, 5, 7, 16, 64, 1000, 4096, 10**6, 10**9, 2**31, 2**63, 10**40),
    *(-0.5, 0.0, 1e-300, 0.3, 1e12, 1e300, float("nan"), float("inf"), float("-inf")),
)
_CLASSES = (
    *("UNet2DModel", "UNet2DConditionModel", "FluxPipeline", "AutoencoderKL", "os.system", "Parameter", ""),
    *(
        "StableVideoDiffusionPipeline",
        "WanPipeline",
        "LCMScheduler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
    ),
)
_KEYS = (
    *("_class_name", "__class__", "auto_map", "trust_remote_code", "_name_or_path", "dtype", "torch_dtype"),
    *("quantization_config", "x" * 3000, "", "<script>", "../x", "\u202e", "num_layers", "in_channels"),
)


def places(value: Any) -> Iterator[Place]:
    """Every entry of every mapping and list."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def _changed(rng: random.Random, data: Any, choose: Callable[[Any], Any]) -> Any:
    found = list(places(data))
    if found:
        owner, key = rng.choice(found)
        owner[key] = choose(owner[key])
    return data


def wrong_type(rng: random.Random, data: Any) -> Any:
    return _changed(rng, data, lambda _: deepcopy(rng.choice(_TYPES)))


def odd_number(rng: random.Random, data: Any) -> Any:
    """A number in a number's place."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    found = [(owner, key) for owner, key in places(data) if is_number(owner[key])]
    if found:
        owner, key = rng.choice(found)
        owner[key] = rng.choice(_NUMBERS)
    return data


def near_number(rng: random.Random, data: Any) -> Any:
    """Several numbers a little off: sizes that do not fit each other."""
    for owner, key in list(places(data)):
        if isinstance(owner[key], int) and not isinstance(owner[key], bool) and rng.random() < 0.3:
            owner[key] = max(0, rng.choice((owner[key] + 1, owner[key] - 1, 2 * owner[key], owner[key] // 2)))
    return data


def absent_key(rng: random.Random, data: Any) -> Any:
    for _ in range(rng.randint(1, 3)):
        found = list(places(data))
        if found:
            owner, key = rng.choice(found)
            del owner[key]
    return data


def foreign_key(rng: random.Random, data: Any) -> Any:
    if isinstance(data, dict):
        data[rng.choice(_KEYS)] = deepcopy(rng.choice((*_TYPES, *_NUMBERS)))
    return data


def other_list(rng: random.Random, data: Any) -> Any:
    """Longer, shorter, turned round, all alike."""
    found = [(owner, key) for owner, key in places(data) if isinstance(owner[key], list) and owner[key]]
    if not found:
        return wrong_type(rng, data)
    owner, key = rng.choice(found)
    items = owner[key]
    owner[key] = rng.choice(
        (
            items[:-1],
            items * 2,
            items[::-1],
            [items[0]] * len(items),
            items * 1000,
            [items],
            [*items, items[0]],
        )
    )
    return data


def other_class(rng: random.Random, data: Any) -> Any:
    names = [
        (owner, key)
        for owner, key in places(data)
        if isinstance(owner[key], str) and (key == "_class_name" or owner[key][:1].isupper())
    ]
    if not names:
        return foreign_key(rng, data)
    owner, key = rng.choice(names)
    owner[key] = rng.choice(_CLASSES)
    return data


def exchanged(rng: random.Random, data: Any) -> Any:
    found = list(places(data))
    if len(found) > 1:
        (one, a), (two, b) = rng.sample(found, 2)
        one[a], two[b] = deepcopy(two[b]), deepcopy(one[a])
    return data


def several(rng: random.Random, data: Any) -> Any:
    for _ in range(rng.randint(2, 6)):
        data = rng.choice((wrong_type, odd_number, absent_key, foreign_key, other_list, exchanged))(rng, data)
    return data


def torn(rng: random.Random, text: bytes) -> bytes:
    spoilt = bytearray(text)
    match rng.randrange(6):
        case 0:
            return text[: rng.randrange(len(text))]
        case 1:
            for _ in range(rng.randint(1, 8)):
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        case 2:
            start = rng.randrange(len(spoilt))
            del spoilt[start : start + rng.randint(1, 40)]
        case 3:
            start = rng.randrange(len(spoilt))
            spoilt[start:start] = spoilt[: rng.randint(1, 80)]
        case 4:
            return text.decode().encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
        case _:
            return text + rng.choice((b"\0", b"}", b"// end", b"{}", b"\n\n", b"\xff"))
    return bytes(spoilt)


def odd_text(rng: random.Random, text: bytes) -> bytes:
    return rng.choice(
        (
            *(b"", b"{}", b"[]", b"null", b"1", b'"x"', b"NaN", b"[" * 100_000, b'{"a":' * 50_000),
            *(b"{" + b'"a": 1, ' * 200_000 + b'"b": 1}', b"9" * 10_000, b'{"a": ' + b"9" * 10_000 + b"}"),
            text.replace(b"{", b'{"sample_size": 1, "sample_size": [2], ', 1),
        )
    )


OF_DATA: dict[str, Callable[[random.Random, Any], Any]] = {
    "wrong type": wrong_type,
    "odd number": odd_number,
    "sizes a little off": near_number,
    "absent key": absent_key,
    "foreign key": foreign_key,
    "other list": other_list,
    "other class": other_class,
    "values exchanged": exchanged,
    "several at once": several,
}
OF_TEXT: dict[str, Callable[[random.Random, bytes], bytes]] = {"torn": torn, "odd text": odd_text}
KINDS = (*OF_DATA, *OF_TEXT, "another part's")


def draw(folder: Path, seed: int, index: int) -> tuple[str, bytes]:
    """Kind, and a case: a line that names a model of `folder` and its file, then the file's new bytes."""
    kind, rng = KINDS[index % len(KINDS)], random.Random(f"{seed}/{index}")
    model = sorted(path.name for path in folder.iterdir() if path.is_dir())[index // len(KINDS) % 3]
    files = sorted(
        str(path.relative_to(folder / model))
        for path in (folder / model).rglob("*.json")
        if path.name != "tokenizer.json"  # words, not settings
    )
    name = rng.choice(files)
    text = (folder / model / name).read_bytes()
    if kind in OF_TEXT:
        text = OF_TEXT[kind](rng, text)
    elif kind in OF_DATA:
        text = json.dumps(OF_DATA[kind](rng, json.loads(text))).encode()
    else:
        text = (folder / model / rng.choice(files)).read_bytes()
    return kind, json.dumps({"model": model, "file": name}).encode() + b"\n" + text
