"""Moves of the champion: each is written down before it is made, so that a kill in between loses nothing.

One tag of the registered model per move, `vdmini.history.000001` and on. A move whose entry says `begun` is
finished by the next one that comes; repeating its steps changes nothing.
"""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from mlflow.tracking import MlflowClient

from tasks.registry_lock import Turn
from vdmini_core.params.registry import CHAMPION, PREVIOUS

PREFIX = "vdmini.history."
MAX_REASON = 1000  # characters; a tag of a registered model holds 5000


@dataclass(frozen=True)
class Move:
    """One move of an alias.

    Attributes:
        number: from 1, without gaps.
        action: what moved it.
        alias: which alias.
        before, after: versions it pointed at; `before` is None for the first champion.
        reason: of the gate, or of the person who asked.
        by: name of the account.
        at: UTC, ISO 8601.
        state: `begun` until every alias is where it belongs.
    """

    number: int
    action: Literal["promote", "force", "rollback"]
    alias: str
    before: str | None
    after: str
    reason: str
    by: str
    at: str
    state: Literal["begun", "done"] = "begun"


def previous_alias(alias: str) -> str:
    """Where the version before is kept: `previous`; aliases other than `champion` have one of their own."""
    return PREVIOUS if alias == CHAMPION else f"{alias}-{PREVIOUS}"


def history(client: MlflowClient, name: str) -> list[Move]:
    """Every move of the registered model's aliases, oldest first."""
    tags = client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(PREFIX)]


def move_champion(
    turn: Turn,
    action: Literal["promote", "force", "rollback"],
    alias: str,
    before: str | None,
    after: str,
    reason: str,
) -> Move:
    """Point `alias` at version `after` and keep `before` as the previous one; the caller holds the turn."""
    number = 1 + max((move.number for move in history(turn.client, turn.name)), default=0)
    move = Move(number, action, alias, before, after, reason[:MAX_REASON], account(), now())
    turn.check()
    _write(turn, move)
    return _carry_out(turn, move)


def finish_begun(turn: Turn) -> None:
    """Finish the last move where whoever began it was killed; the first thing to do with a turn."""
    moves = history(turn.client, turn.name)
    if moves and moves[-1].state == "begun":
        _carry_out(turn, moves[-1])


def _carry_out(turn: Turn, move: Move) -> Move:
    if move.before is not None:
        turn.check()
        turn.client.set_registered_model_alias(turn.name, previous_alias(move.alias), move.before)
    turn.check()
    turn.client.set_registered_model_alias(turn.name, move.alias, move.after)
    turn.check()
    done = replace(move, state="done")
    _write(turn, done)
    return done


def _write(turn: Turn, move: Move) -> None:
    text = json.dumps(asdict(move), sort_keys=True)
    turn.client.set_registered_model_tag(turn.name, f"{PREFIX}{move.number:06}", text)


def account() -> str:
    """Who is asking: the account that a server of MLflow is asked with, if it is named, and this machine's.

    On a server that many projects share, the second is often that of a worker or a container.
    """
    try:
        here = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        here = "unknown"
    server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))
    there = os.environ.get("MLFLOW_TRACKING_USERNAME") if server else None
    return f"{there} (as {here})" if there else here


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
