"""What clips start from, as every family is given it: a first frame, a prompt, or both for each clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vdmini_core.errors import DataError, ModelError

Need = Literal["first_frames", "prompts"]
_WORDS = {"first_frames": "a first frame", "prompts": "a prompt"}


@dataclass(frozen=True)
class ClipInputs:
    """First frames and prompts of B clips; a family takes what it `needs` and leaves the rest.

    Attributes:
        first_frames: uint8 (B, H, W, 3), or None.
        prompts: one text for each clip, or None.

    Raises:
        DataError: without either, or with another number of frames than of prompts.
    """

    first_frames: Tensor | None = None
    prompts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counts = {len(given) for given in (self.first_frames, self.prompts) if given is not None}
        if len(counts) != 1:
            raise DataError(
                "clips start from first frames, prompts, or as many of both",
                expected="one of them, or equally many",
                found=" and ".join(map(str, sorted(counts))) or "neither",
            )

    def __len__(self) -> int:
        return len(self.prompts if self.first_frames is None else self.first_frames)  # type: ignore[arg-type]

    def __getitem__(self, part: slice) -> ClipInputs:
        frames, prompts = self.first_frames, self.prompts
        return ClipInputs(
            None if frames is None else frames[part], None if prompts is None else prompts[part]
        )

    def need_first_frames(self) -> Tensor:
        """The first frames uint8 (B, H, W, 3).

        Raises:
            ModelError: when there are none.
        """
        if self.first_frames is None:
            raise _lacks("first_frames", "prompts alone")
        return self.first_frames

    def need_prompts(self) -> tuple[str, ...]:
        """The prompts.

        Raises:
            ModelError: when there are none.
        """
        if self.prompts is None:
            raise _lacks("prompts", "first frames alone")
        return self.prompts


def clip_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed for each of `count` clips; a single one serves them all."""
    return [seed] * count if isinstance(seed, int) else list(seed)


def _lacks(need: Need, found: str) -> ModelError:
    return ModelError(
        f"this model starts from {_WORDS[need]}", expected=f"{_WORDS[need]} for each clip", found=found
    )
