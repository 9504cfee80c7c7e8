"""How long a flow may take before Prefect ends it: against what hangs, not against what is slow."""

from __future__ import annotations

import os

from vdmini_core.errors import ParamsError

HOURS = "VDMINI_TIMEOUT_HOURS"
COMPRESS_H = 14 * 24.0  # a recovery of the paper's size takes days (docs/operations.md)
EVALUATE_H = 48.0
PROMOTE_H = 1.0


def flow_seconds(hours: float) -> float:
    """The limit in seconds: `hours`, or what `VDMINI_TIMEOUT_HOURS` says instead.

    Raises:
        ParamsError: for a setting that is no number above 0.
    """
    told = os.environ.get(HOURS)
    try:
        chosen = hours if told is None else float(told)
    except ValueError:
        chosen = 0.0
    if not 0 < chosen < 24 * 3650:
        raise ParamsError(f"{HOURS} cannot be used", expected="hours, a number above 0", found=repr(told))
    return chosen * 3600
