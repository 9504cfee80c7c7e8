"""One change of a model's aliases at a time, through MLflow alone: Lamport's bakery on tags of the model.

MLflow has no compare-and-swap, so a tag "locked by me" can be written by two at once. The bakery needs
none (L. Lamport, "A new solution of Dijkstra's concurrent programming problem", CACM 17(8), 1974):
everyone writes tags of their own only, takes a number above all they see, and waits for the lower ones.
Why so and what remains: docs/decisions/0007-promotions-in-turn.md.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tasks.tracking import is_alive, process_name
from vdmini_core.errors import OutsideError

PREFIX = "vdmini.turn."
LEASE_S = 60.0
PATIENCE_S = 600.0
POLL_S = 0.05


@dataclass
class Turn:
    """A place in the queue for one model's aliases.

    Attributes:
        client, name: the registered model whose aliases are to change.
        lease_s: whoever shows no sign of life for so long has lost the turn.
        number: 0 while it is being chosen.
    """

    client: MlflowClient
    name: str
    lease_s: float
    key: str = field(default_factory=lambda: PREFIX + uuid.uuid4().hex)
    number: int = 0
    beat: int = 0
    shown: float = field(default_factory=time.monotonic)

    def show(self) -> None:
        """Write the own tag anew: a sign of life for those who wait."""
        self.beat += 1
        started = time.monotonic()
        told = {"number": self.number, "beat": self.beat, "owner": _owner()}
        self.client.set_registered_model_tag(self.name, self.key, json.dumps(told))
        if not self.lapsed():
            self.shown = started  # the tag is at least as young as this

    def lapsed(self) -> bool:
        """True where others may take this turn for lost. Measured by this process's own clock."""
        return time.monotonic() - self.shown > self.lease_s / 2

    def check(self) -> None:
        """To be called before every write of the turn.

        Raises:
            OutsideError: when the turn may have gone to somebody else; nothing more must be written.
        """
        mine = self.key in _turns(self.client, self.name)  # asked first: `show` would write it anew
        if mine and not self.lapsed():
            self.show()
        if not mine or self.lapsed():
            raise OutsideError(
                f"lost the turn to change the aliases of `{self.name}`",
                expected=f"answers of the registry within {self.lease_s / 2:g} s",
                found=f"none for {time.monotonic() - self.shown:.0f} s",
                fix="run the same command again: what was begun is finished first",
            )


@contextmanager
def turn_of(
    client: MlflowClient, name: str, *, lease_s: float = LEASE_S, patience_s: float = PATIENCE_S
) -> Iterator[Turn]:
    """The block runs while nobody else changes the aliases of the registered model `name`.

    Args:
        client: of the registry.
        name: of the registered model, which must exist.
        lease_s: see `Turn`; the clocks of different machines are never compared.
        patience_s: how long to wait.

    Raises:
        OutsideError: when others hold it for longer than `patience_s`.
    """
    turn = _take(client, name, lease_s, patience_s)
    try:
        yield turn
    finally:
        _drop(client, name, turn.key)


def _take(client: MlflowClient, name: str, lease_s: float, patience_s: float) -> Turn:
    deadline = time.monotonic() + patience_s
    seen: dict[str, tuple[str, float]] = {}
    while True:
        turn = Turn(client, name, lease_s)
        try:
            if _wait(turn, deadline, seen):
                return turn
        except BaseException:
            _drop(client, name, turn.key)
            raise
        # Too slow, so that others may count this number as lost: a number taken late might be below that
        # of one who is at work.
        _drop(client, name, turn.key)


def _wait(turn: Turn, deadline: float, seen: dict[str, tuple[str, float]]) -> bool:
    """Choose a number and wait for all lower ones; False where the own place lapsed meanwhile."""
    turn.show()
    turn.number = 1 + max(_number(value) for value in _turns(turn.client, turn.name).values())
    turn.show()
    while True:
        others = _turns(turn.client, turn.name)
        if turn.lapsed() or others.pop(turn.key, None) is None:
            return False
        ahead = {key: value for key, value in others.items() if _is_ahead(key, value, turn)}
        for key in [key for key, value in ahead.items() if _is_lost(key, value, turn.lease_s, seen)]:
            _drop(turn.client, turn.name, key)  # its name is its own: nobody else's turn can be hit
            del ahead[key]
        if not ahead:
            return True
        if time.monotonic() > deadline:
            raise OutsideError(
                f"others have been changing the aliases of `{turn.name}` for too long",
                found="; ".join(sorted(ahead.values())[:3]),
                fix=f"wait and run again; a dead one is passed over after {turn.lease_s:g} s",
            )
        if time.monotonic() - turn.shown > turn.lease_s / 6:
            turn.show()
        time.sleep(POLL_S * random.uniform(0.5, 1.5))


def _turns(client: MlflowClient, name: str) -> dict[str, str]:
    tags = client.get_registered_model(name).tags
    return {key: value for key, value in tags.items() if key.startswith(PREFIX)}


def _number(value: str) -> int:
    return int(json.loads(value)["number"])


def _is_ahead(key: str, value: str, turn: Turn) -> bool:
    """True for one who is choosing or has a lower number; equal numbers are told apart by their keys."""
    number = _number(value)
    return number == 0 or (number, key) < (turn.number, turn.key)


def _is_lost(key: str, value: str, lease_s: float, seen: dict[str, tuple[str, float]]) -> bool:
    """True for a process of this machine that is gone, or one whose tag has stood still for the lease."""
    where, _, who = json.loads(value)["owner"].partition("/")
    if where and where == _system() and not is_alive(who):
        return True
    now = time.monotonic()
    if key not in seen or seen[key][0] != value:
        seen[key] = (value, now)
    return now - seen[key][1] > lease_s


def _drop(client: MlflowClient, name: str, key: str) -> None:
    with suppress(MlflowException):  # gone already; or the registry is: then the lease ends it
        client.delete_registered_model_tag(name, key)


def _owner() -> str:
    return f"{_system()}/{process_name()}"


def _system() -> str:
    """Names the space in which process numbers count: this boot, this container; empty where unknown."""
    try:
        parts = (
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        )
    except OSError:
        return ""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
