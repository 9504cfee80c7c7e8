"""What one of two racing processes does; a module of its own, so that they import little."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from tasks.promote import promote_candidate
from tasks.registry_lock import turn_of
from vdmini_core.params import PromoteParams

RULES = PromoteParams(min_gain=0.0)
ROUNDS = 20


def promote_in_step(
    uri: str, alias: str, counter: Path, barrier: Any, answers: Any, rounds: int = ROUNDS
) -> None:
    """Ask for the champion's seat with the version `alias` names, each time when all are ready."""
    client = MlflowClient(uri)
    for _ in range(rounds):
        barrier.wait(timeout=300)
        _, decision, _ = promote_candidate(client, "toy", alias, RULES)
        with turn_of(client, "toy"):  # read and write apart: two at once would lose one of the counts
            value = int(counter.read_text())
            counter.write_text(str(value + 1))
        answers.put(decision.outcome)
        barrier.wait(timeout=300)


def die_at_work(uri: str) -> None:
    """End like a killed process, holding the turn."""
    with turn_of(MlflowClient(uri), "toy"):
        os._exit(9)
