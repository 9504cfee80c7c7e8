"""Texts for `params.yaml`, drawn from a seed: what people mistype, tools write, and is meant to hurt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vdmini_core.params import Params, known_keys

ROOT = Path(__file__).resolve().parents[2]
Values = dict[str, Any]


def leaves(model: type[BaseModel] = Params, prefix: str = "") -> dict[str, FieldInfo]:
    """Every single parameter by its dotted key."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        dotted = prefix + (info.alias or name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= leaves(info.annotation, dotted + ".")
        else:
            found[dotted] = info
    return found


LEAVES = leaves()
_NUMBERS = (-1, 0, 1, 3, 7, 64, 4096, 10**6, 10**12, 2**31, 2**53, 2**63 - 1, 2**63, 10**40)
_FLOATS = (
    *("-1.5", "0.0", "1e-300", "5e-324", "0.3", "0.999999", "1e12", "1e300"),
    *(".nan", ".inf", "-.inf", "1e999"),
)
_TEXTS = (
    *("", " ", "/", "..", "~", "~nobody/x", "\\0", "a\\0b", "\\n", "x" * 5000, "a/" * 3000, "*", "-rf"),
    *("s3://", "s3:///x", "http://", "file:///etc/passwd", "/dev/zero", "/proc/self/mem", "9" * 400),
    *("${base.seed}", "{{x}}", "%s", "\\u202e", "\\U0001F4A9", "NaN", "null", "<script>", "\\e[31m"),
)
_ODD = (
    *("null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "2001-01-01", "2001-99-99", "!!set {a}", "[[[[]]]]"),
    *("'x'", "0x10", "0o17", "1_000", "1:30", "12e", "!!binary aGk=", "!!str 5", "!!int 'x'", "!!float x"),
    *("!!bool x", "!!timestamp x"),
)


def _nested(pairs: Values) -> Values:
    data: Values = {}
    for key, value in pairs.items():
        *sections, last = key.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return data


def _set(rng: random.Random, key: str, written: str) -> bytes:
    """A mapping with one value as it is written, inside or outside a whole params.yaml."""
    *sections, last = key.split(".")
    for section in reversed(sections):
        written, last = f"{{{last}: {written}}}", section
    return f"{last}: {written}\n".encode()


def unknown_key(rng: random.Random) -> bytes:
    key = rng.choice(known_keys())
    letters = list(key)
    for _ in range(rng.randint(1, 3)):
        letters[rng.randrange(len(letters))] = rng.choice("abcdefghijklmnopqrstuvwxyz_-. 0")
    odd = ("x" * 3000, "<<", "=", "__class__", "model_config", "'1'", "\\u00e9", "base.seed", "distil", "")
    name = rng.choice(("".join(letters), rng.choice(odd), f"{key}.{rng.choice(odd)}"))
    return (json.dumps(_nested({name: 1})) + "\n").encode()


def wrong_type(rng: random.Random) -> bytes:
    return _set(rng, rng.choice([*LEAVES, *known_keys()]), rng.choice(_ODD))


def odd_number(rng: random.Random) -> bytes:
    return _set(rng, rng.choice(list(LEAVES)), rng.choice((*map(str, _NUMBERS), *_FLOATS)))


def odd_text(rng: random.Random) -> bytes:
    keys = [key for key, info in LEAVES.items() if "str" in str(info.annotation)]
    pairs = {
        "teacher.source": rng.choice(("path", "hub", "bundled")),
        "prepare.source": rng.choice(("folder", "procedural")),
    }
    lines = [
        f"teacher: {{source: {pairs['teacher.source']}}}",
        f"prepare: {{source: {pairs['prepare.source']}}}",
    ]
    key, text = rng.choice(keys), rng.choice(_TEXTS)
    value = f'["{text}"]' if "tuple" in str(LEAVES[key].annotation) else f'"{text}"'
    written = _set(rng, key, value).decode()
    section = key.split(".")[0]
    kept = [line for line in lines if not line.startswith(section)]
    if section in ("teacher", "prepare"):  # the source that reads the text
        source = pairs[f"{section}.source"]
        written = written.replace(f"{section}: {{", f"{section}: {{source: {source}, ", 1)
    return "\n".join([*kept, written]).encode()


def absurd_size(rng: random.Random) -> bytes:
    """Numbers that pass every bound of their own and make no sense."""
    numeric = [
        key
        for key, info in LEAVES.items()
        if "int" in str(info.annotation) or "float" in str(info.annotation)
    ]
    pairs: Values = {
        "prepare.clips.train": 10**15,
        "prepare.clips.validation": 10**15,
        "prepare.clips.test": 10**15,
    }
    for key in rng.sample(numeric, rng.randint(1, 4)):
        pairs[key] = rng.choice((10**6, 10**9, 10**12, 10**15, 2**63 - 1, 256, 4096))
    return json.dumps(_nested(pairs)).encode()


def contradiction(rng: random.Random) -> bytes:
    pairs = rng.choice(
        (
            {"distill.batch_size": 3, "distill.workers": 2},
            {"distill.batch_size": 4, "distill.workers": 2, "distill.accumulation": 3},
            {"distill.min_workers": 5, "distill.workers": 2},
            {"distill.lambda_task": 0, "distill.lambda_icd": 0, "distill.lambda_mca": 0},
            {"distill.lambda_mca": 0, "distill.r1_gamma": 1.0},
            {"distill.parallel": "fsdp2", "distill.depth": "lora"},
            {"distill.parallel": "fsdp2", "distill.optimizer": "adamw8bit"},
            {"distill.select": "best", "distill.validate_every": 0},
            {"distill.auto_full_from": 0.01, "distill.auto_lora_from": 0.5, "distill.depth": "auto"},
            {"distill.task_loss": "consistency", "teacher.bundled": "nano"},
            {"plan.recipe": "manual", "plan.units": []},
            {"plan.recipe": "manual", "plan.units": ["no.such.unit"]},
            {"plan.recipe": "manual", "plan.units": ["down_blocks.0"] * 400},
            {"plan.recipe": "auto", "plan.max_flops_ratio": None},
            {"plan.max_latency_ratio": 0.5, "plan.timing": None},
            {"plan.max_latency_ratio": 0.5, "plan.timing": "timing/none.json"},
            {"plan.max_params_ratio": 1e-9},
            {"teacher.source": "hub"},
            {"teacher.source": "hub", "teacher.hub_id": "../../etc"},
            {"teacher.source": "hub", "teacher.hub_id": "owner/name", "teacher.revision": "main"},
            {"teacher.bundled": "no-such-teacher"},
            {"teacher.bundled": "../mini"},
            {"teacher.source": "path", "teacher.path": "nowhere", "teacher.architecture": "no-such"},
            {
                "teacher.source": "path",
                "teacher.path": "nowhere",
                "teacher.architecture": "stable-video-diffusion",
            },
            {"profile.clips": 64, "prepare.clips.validation": 8},
            {"evaluate.clips": 64, "prepare.clips.test": 8},
            {"evaluate.fvd.extractor": "i3d", "evaluate.fvd.fps": 7},
            {"evaluate.fvd.extractor": "i3d", "evaluate.fvd.weights": "https://example.invalid/w"},
            {"evaluate.fvd.extractor": "videomae", "evaluate.fvd.height": 64},
            {"evaluate.vbench.suite": "none.json", "evaluate.vbench.kind": "i2v"},
            {"evaluate.vbench.suite": "none.json", "evaluate.vbench.kind": "t2v"},
            {"prepare.source": "folder", "prepare.videos": "no-such-folder"},
            {"prepare.frames": 256, "prepare.height": 4096, "prepare.width": 4096},
            {"prepare.height": 16, "prepare.width": 16},
            {"prepare.frames": 2, "profile.granularity": "temporal"},
            {"register.name": "a/b"},
            {"register.tags": {"a": {"b": 1}}},
            {"base.hardware": "h100", "base.device": "cpu"},
        )
    )
    return json.dumps(_nested(dict(pairs))).encode()


def drawn_choices(rng: random.Random) -> bytes:
    """Several parameters at values of their own type and range: right more often than not."""
    pairs: Values = {}
    for key in rng.sample(list(LEAVES), rng.randint(1, 6)):
        annotation = LEAVES[key].annotation
        options = [
            o
            for part in (annotation, *get_args(annotation))
            if get_origin(part) is Literal
            for o in get_args(part)
        ]
        if options:
            value: Any = rng.choice(options)
            pairs[key] = [value] if "tuple" in str(annotation) else value
        elif "bool" in str(annotation):
            pairs[key] = rng.random() < 0.5
        elif "float" in str(annotation):
            pairs[key] = rng.choice((0.0, 0.05, 0.5, 0.9, 1.0, 2.0, 30.0))
        elif "int" in str(annotation):
            pairs[key] = rng.choice((0, 1, 2, 4, 8, 16, 64, 128))
    return json.dumps(_nested(pairs)).encode()


def _bomb(rng: random.Random) -> bytes:
    width, depth = rng.randint(4, 12), rng.randint(5, 30)
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return ("\n".join([*lines, f"base: {{seed: *a{depth - 1}}}"]) + "\n").encode()


def _merge_bomb(rng: random.Random) -> bytes:
    depth = rng.randint(5, 20)
    lines = [
        "x0: &x0 {a: 1}",
        *(f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, depth)),
    ]
    return "\n".join(lines).encode()


# Each is as likely as the next; of those that are written together, one is taken.
_WRITTEN: tuple[tuple[bytes, ...], ...] = (
    (b"base: &a {seed: *a}", b"base: &a [*a]", b"&a a: *a", b"base: *none"),
    (b"base: {seed: 1}\nbase: {seed: 2}\n", b"base: {seed: 1, seed: 2}\n", b"base: {}\n---\nbase: {}\n"),
    (b"base: !!python/name:os.system", b"base: !!python/object/apply:os.getpid []", b"base: !x {a: 1}"),
    (b"", b"\n", b"# nothing\n", b"---\n", b"...\n", b"~\n", b"null\n", b"\xef\xbb\xbf", b"\x00"),
    (b"5", b"text", b"- 1\n- 2", b"[]", b"true", b"2001-01-01", b"!!set {base}", b"!!omap [base: {}]"),
    (b"base:\n\tseed: 1\n", b"base: {\n\t seed: 1}\n", b"\tbase: 1", b"base: {}\r\nprune: {}\r"),
    (
        b"report: {title: \xe4}",
        b"report: {title: \xff\xfe}",
        b"report: {title: \xed\xa0\x80}",
        b"\xc0\xaf: 1",
    ),
    (b"base: {seed: " + b"9" * 5000 + b"}", b"base: {seed: 0x" + b"f" * 9000 + b"}"),
    (b"1: {a: 1}", b"~: 1", b"[a, b]: 1", b"? {a: b}\n: 1", b"true: {}", b"2001-01-01: {}", b"1.5: 2"),
    (b"%YAML 9.9\n---\nbase: {}", b"%TAG ! ! !\n---\n", b"%", b"@x", b"`", b'base: "', b"base: |9\n x"),
)


def _deep(rng: random.Random) -> bytes:
    count = rng.choice((20, 33, 900, 5000, 100_000))
    if rng.random() < 0.3:
        return b"".join(b" " * level + b"a:\n" for level in range(min(count, 900)))
    opening = rng.choice((b"[", b"{a: ", b"- ", b"? "))
    return b"base: " + opening * count + (b"]" * count if opening == b"[" else b"")


def _long(rng: random.Random) -> bytes:
    count = rng.choice((50, 3000, 30_000, 1_000_000))
    return rng.choice(
        (
            b"".join(b"key%d: 1\n" % number for number in range(min(count, 30_000))),
            b"base:\n" + b"".join(b"  key%d: 1\n" % number for number in range(min(count, 3000))),
            b"base: {seed: " + b"x" * count + b"}\n",
            b"k" * count + b": 1\n",
            b"plan: {recipe: manual, units: [" + b"u, " * min(count, 30_000) + b"]}\n",
        )
    )


def yaml_itself(rng: random.Random) -> bytes:
    makers: tuple[Callable[[random.Random], bytes], ...] = (
        *(_bomb, _merge_bomb, _deep, _long),
        lambda rng: rng.randbytes(rng.choice((1, 10, 1000))),
        lambda rng: "base: {seed: 1}\n".encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037"))),
    )
    which = rng.randrange(len(makers) + len(_WRITTEN))
    return makers[which](rng) if which < len(makers) else rng.choice(_WRITTEN[which - len(makers)])


def whole_file_damaged(rng: random.Random) -> bytes:
    """The project's own params.yaml, cut, flipped, or with lines moved."""
    data = bytearray((ROOT / "params.yaml").read_bytes())
    way = rng.randrange(4)
    if way == 0:
        return bytes(data[: rng.randrange(len(data))])
    if way == 1:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    lines = bytes(data).split(b"\n")
    if way == 2:
        lines.pop(rng.randrange(len(lines)))
    else:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "unknown key": unknown_key,
    "wrong type": wrong_type,
    "odd number": odd_number,
    "odd text": odd_text,
    "absurd size": absurd_size,
    "contradiction": contradiction,
    "drawn choices": drawn_choices,
    "YAML itself": yaml_itself,
    "whole file damaged": whole_file_damaged,
}


def draw(seed: int, index: int) -> tuple[str, bytes]:
    """The kind and the text of one case; kinds come in turn."""
    kind = list(KINDS)[index % len(KINDS)]
    return kind, KINDS[kind](random.Random(f"{seed}/{index}"))
