"""The loss curve of a running recovery, in a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LossCurve:
    """A row a step, in a file of the worker's own; memory keeps the last row alone.

    Every checkpoint carries the whole curve. As Python objects a row takes 0.6 kB, and the text of all rows
    at every checkpoint as much again: more than 1 GB in a million steps.

    Args:
        path: of the file; what is there is replaced.

    Attributes:
        last: row of the last step, empty before the first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last: dict[str, Any] = {}
        path.write_bytes(b"")

    def start_from(self, rows: Path) -> None:
        """Go on from the rows of a checkpoint, a JSON object a line."""
        shutil.copyfile(rows, self._path)
        for line in self.lines():
            self.last = json.loads(line)

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.last = row

    def lines(self) -> Iterator[str]:
        """Every row as it is written, the end of its line with it."""
        with self._path.open(encoding="utf-8") as file:
            yield from file

    def copy_to(self, path: Path) -> None:
        """Write all rows so far to another file."""
        shutil.copyfile(self._path, path)
