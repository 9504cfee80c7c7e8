"""Tables of names: what a module of a checkpoint is called here."""

from __future__ import annotations

from collections.abc import Mapping

Table = Mapping[str, str]


def our_key(key: str, table: Table) -> str | None:
    """Our name of a checkpoint's weight: the longest of its prefixes that the table has is replaced.

    Args:
        key: the weight's name without the checkpoint's own prefix.
        table: path of a module, or of a bare parameter, in the checkpoint -> here.

    Returns:
        None where the table has no part of it.
    """
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        ours = table.get(".".join(parts[:length]))
        if ours is not None:
            return ".".join([ours, *parts[length:]])
    return None
