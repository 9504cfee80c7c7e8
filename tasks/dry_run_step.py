"""A line of `vdmini run --dry-run`, and how its figures and its ways out are written."""

from __future__ import annotations

from dataclasses import dataclass

from vdmini_core.errors import VDMiniError

READY, MISSING, LATER = "ready", "missing", "later"


@dataclass(frozen=True)
class Step:
    """One line of a dry run.

    Attributes:
        stage: whose.
        does: what the stage would do, with figures.
        state: `ready`, `missing` (something must be got or set first), or `later` (known only once it runs).
        todo: how to get or set what is missing.
    """

    stage: str
    does: str
    state: str = READY
    todo: str = ""


def step(stage: str, does: str, *todo: str) -> Step:
    """A line that is `missing` where there is anything to do, else `ready`."""
    found = "; ".join(filter(None, todo))
    return Step(stage, does, MISSING if found else READY, found)


def refusal(error: VDMiniError, fix: str = "") -> str:
    """What a stage would refuse with, in one line; `fix` where the error itself names no way out."""
    facts = [f"expected {error.expected}" if error.expected else "", f"found {error.found}"]
    told = ", ".join(facts if error.found else facts[:1])
    way = error.fix or fix
    line = error.problem + (f" ({told})" if told else "") + (f": {way}" if way else "")
    return " ".join(line.split())


def count_of(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def work(flops: float) -> str:
    """Operations in a unit people can read."""
    for unit, size in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP"
