"""Prompts of the clips on disk: `prompts-<split>.jsonl`, a line per clip, beside the clips of the split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdmini_core.errors import DataError
from vdmini_core.foreign import parse_json

SERVED = "captions of the videos"  # what the account of files says of those that hold captions
_SHOWN = 20


@dataclass(frozen=True)
class Caption:
    """What is said about a clip: the video it comes from, and its prompt, or None where nobody gave one."""

    source: str
    prompt: str | None


def prompts_path(directory: Path, split: str) -> Path:
    """Where a split's prompts lie."""
    return directory / f"prompts-{split}.jsonl"


def save_captions(directory: Path, split: str, captions: Sequence[Caption]) -> None:
    """Write a split's captions, in the order of its clips."""
    lines = [
        json.dumps({"clip": number, "source": c.source, "prompt": c.prompt}, ensure_ascii=False) + "\n"
        for number, c in enumerate(captions)
    ]
    prompts_path(directory, split).write_text("".join(lines), encoding="utf-8")


def load_captions(directory: Path, split: str, limit: int | None = None) -> list[Caption]:
    """A split's captions, or the first ones.

    Raises:
        DataError: when the file is missing or not what `save_captions` wrote.
    """
    path = prompts_path(directory, split)
    if not path.is_file():
        raise DataError(
            f"there are no prompts of the {split} clips here",
            found=str(directory),
            fix="run `vdmini prepare`",
        )
    try:
        rows = [parse_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [Caption(row["source"], row["prompt"]) for row in rows][:limit]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read", found=str(error), fix="run `vdmini prepare` again"
        ) from None


def without_prompt(directory: Path, split: str, limit: int | None = None) -> list[str]:
    """The videos of a split's clips, or of the first ones, that have no caption; one entry a clip."""
    return [c.source for c in load_captions(directory, split, limit) if not c.prompt]


def load_prompts(directory: Path, split: str, limit: int | None = None) -> tuple[str, ...]:
    """The prompts of a split's clips, or of the first ones, for a model that starts from text.

    Raises:
        DataError: naming the videos without a caption.
    """
    lacking = list(dict.fromkeys(without_prompt(directory, split, limit)))
    if lacking:
        more = [f"and {len(lacking) - _SHOWN} more"] if len(lacking) > _SHOWN else []
        raise DataError(
            f"{len(lacking)} of the {split} videos have no caption, and the teacher starts from prompts",
            expected="NAME.txt beside each video, or captions.csv or captions.jsonl in the folder",
            found="".join(f"\n      {line}" for line in [*map(repr, lacking[:_SHOWN]), *more]),
            fix="write the captions, or set prepare.captions: filename to take the files' names",
        )
    return tuple(c.prompt for c in load_captions(directory, split, limit) if c.prompt)
