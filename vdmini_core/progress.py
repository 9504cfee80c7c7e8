"""Progress that shows itself: rate and time left on anything long, quiet where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def progress_bar(what: str, total: int | None, unit: str) -> tqdm[None]:
    """A bar to update by hand: what, done / total, rate, time left. Written to standard error."""
    return tqdm(desc=what, total=total, unit=unit, **_manners())


def track(items: Iterable[Item], what: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate with a bar: what, done / total, rate, time left. Written to standard error."""
    yield from tqdm(items, desc=what, total=total, unit=unit, **_manners())


def _manners() -> dict[str, Any]:
    # A log file gets a line now and then, a terminal a live bar.
    pause = 0.2 if sys.stderr.isatty() else 10.0
    return {"dynamic_ncols": True, "mininterval": pause, "maxinterval": 10}
