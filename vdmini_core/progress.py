"""Progress that shows itself: rate and time left on anything long, quiet where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate with a bar: what, done / total, rate, time left. Written to standard error."""
    yield from tqdm(
        items, desc=what, total=total, unit=unit, dynamic_ncols=True, mininterval=0.5, maxinterval=10
    )
