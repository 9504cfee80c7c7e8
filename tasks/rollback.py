"""rollback: `previous` becomes the champion again."""

from __future__ import annotations

import json
from collections.abc import Callable

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from tasks.decision_report import add_note
from tasks.promotion_history import Move, account, finish_begun, history, move_champion, now, previous_alias
from tasks.registry import ROLLED_BACK_TAG, version_by_alias
from tasks.registry_lock import turn_of
from vdmini_core.errors import VDMiniError


def roll_back(
    client: MlflowClient,
    name: str,
    alias: str,
    reason: str,
    look: Callable[[ModelVersion], None] = lambda version: None,
) -> Move:
    """Swap champion and previous version; the one that leaves is marked, so that the gate keeps it out.

    A second call swaps them back and takes the mark away.

    Args:
        client: of the registry.
        name: of the registered model.
        alias: what the champion is called.
        reason: kept in the history and on both versions.
        look: called with the version that would return, before it is our turn; raises where it may not, as
            its files are no longer those that were registered.

    Raises:
        VDMiniError: where there is no champion or no other version to go back to.
    """
    if version_by_alias(client, name, alias) is None:
        raise VDMiniError(f"`{name}` has no `{alias}`", fix="`vdmini promote` makes one")
    with turn_of(client, name) as turn:
        finish_begun(turn)
    looked_at = version_by_alias(client, name, previous_alias(alias))
    if looked_at is not None:
        look(looked_at)  # a large model takes longer than a turn lasts
    with turn_of(client, name) as turn:
        finish_begun(turn)
        champion = version_by_alias(client, name, alias)
        previous = version_by_alias(client, name, previous_alias(alias))
        if champion is None or previous is None or previous.version == champion.version:
            raise VDMiniError(
                f"`{name}` has no version to go back to",
                expected=f"the alias `{previous_alias(alias)}`, kept when a champion is replaced",
                found="none" if previous is None else f"the {alias} itself, version {previous.version}",
                fix="`vdmini promote` with a better student",
            )
        served = {
            number
            for move in history(client, name)
            if move.alias == alias
            for number in (move.before, move.after)
        }
        if str(previous.version) not in served:
            raise VDMiniError(
                f"version {previous.version} of `{name}` never was `{alias}`",
                expected="a former champion, as the model's history has it",
                found=f"`{previous_alias(alias)}` was set by hand",
                fix="`vdmini promote` asks the gate about a version",
            )
        if looked_at is None or looked_at.version != previous.version:
            raise VDMiniError(
                f"another version of `{name}` became `{previous_alias(alias)}` meanwhile",
                expected=f"version {looked_at.version}" if looked_at else "none",
                found=f"version {previous.version}",
                fix="run `vdmini rollback` again",
            )
        leaving, returning = str(champion.version), str(previous.version)
        turn.check()
        told = {"reason": reason, "by": account(), "at": now(), "to": returning}
        client.set_model_version_tag(name, leaving, ROLLED_BACK_TAG, json.dumps(told, sort_keys=True))
        move = move_champion(turn, "rollback", alias, leaving, returning, reason)
        if ROLLED_BACK_TAG in previous.tags:
            client.delete_model_version_tag(name, returning, ROLLED_BACK_TAG)
        add_note(client, champion, f"rolled back to version {returning}: {reason}")
        add_note(client, previous, f"{alias} again in place of version {leaving}: {reason}")
    return move
