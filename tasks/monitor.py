"""Where a stage tells what it measures while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Monitor(Protocol):
    """Where a stage tells what it measures while it runs."""

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """One number, live."""
        ...

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Several numbers of one step, live."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the person who runs it, shown again at the end."""
        ...

    def picture(self, path: Path) -> None:
        """A picture of how far it is, live."""
        ...


class QuietMonitor:
    """A monitor that only remembers: for tests and notebooks."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, int | None]] = []
        self.notes: list[str] = []
        self.pictures: list[Path] = []

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Remember one number."""
        self.values.append((name, float(value), step))

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Remember several numbers."""
        for name, value in values.items():
            self.metric(name, value, step)

    def note(self, text: str) -> None:
        """Remember a sentence."""
        self.notes.append(text)

    def picture(self, path: Path) -> None:
        """Remember where a picture lies."""
        self.pictures.append(path)
