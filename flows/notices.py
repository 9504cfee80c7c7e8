"""Notices to people by a webhook: a promotion, a rollback, a failed run, a champion that got worse.

`VDMINI_WEBHOOK` is the address; without it nothing is sent. It gets a POST with JSON: `text`, the sentence
that chat services show, `event`, and the facts. The address is as good as a password: it is in no message,
log or error. A notice that cannot be delivered is told on standard error and stops nothing. Where the address
may lead: `flows/webhook_address.py`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from flows.webhook_address import RefusedAddress, opener_for
from tasks.stage import StageResult
from vdmini_core.params import Params

if TYPE_CHECKING:
    from tasks.rescore import Rescore

WEBHOOK = "VDMINI_WEBHOOK"
Event = Literal["promoted", "rolled-back", "run-failed", "run-lost", "quality-fell"]
PAUSES_S = (1.0, 5.0, 15.0)
TIMEOUT_S = 10.0
MAX_TEXT = 600  # characters of an error's first line


def notify(event: Event, text: str, **facts: Any) -> bool:
    """Send a notice; True where it was taken.

    Args:
        event: what happened.
        text: one sentence for people.
        facts: JSON values beside it.
    """
    address = os.environ.get(WEBHOOK, "")
    if not address:
        return False
    body = json.dumps({"text": text, "event": event, **facts}).encode()
    for pause in (*PAUSES_S, None):
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with opener_for(address).open(request, timeout=TIMEOUT_S):
                return True
        except RefusedAddress as error:
            return _lost(f"{WEBHOOK} {error}")
        except urllib.error.HTTPError as error:
            if pause is None or (error.code < 500 and error.code != 429):
                return _lost(f"the receiver answers {error.code}")
        except (OSError, ValueError) as error:  # ValueError: an address that is none
            if pause is None:
                return _lost(type(error).__name__)
        time.sleep(pause * random.uniform(0.5, 1.5))
    return False


def _lost(why: str) -> bool:
    sys.stderr.write(f"a notice was not delivered: {why}\n")
    return False


def promoted(params: Params, result: StageResult) -> None:
    """Tell of stage `promote`, where there is a new champion."""
    outcome, version = result.outcome.metrics["outcome"], (result.outcome.timing or {}).get("version")
    if outcome != "promote":
        return
    name, alias = params.register_.name, params.promote.alias
    why = [note.partition(": ")[2] for note in result.notes if note.startswith("promote: ")]
    text = f"{name}: version {version} is {alias}"
    notify("promoted", text, model=name, version=version, alias=alias, reasons=why)


def quality_fell(result: Rescore) -> None:
    """Tell of a registered version whose score on fresh data lies outside its interval, on the bad side."""
    if result.verdict == "fell":
        notify("quality-fell", result.text, **asdict(result))


def run_failed(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook for a flow that failed, ran out of time or crashed."""
    lines = (state.message or "").strip().splitlines() or [""]
    notify(
        "run-failed",
        f"{flow.name} run {flow_run.name}: {state.name}: {lines[0][:MAX_TEXT]}",
        flow=flow.name,
        run=flow_run.name,
        run_id=str(flow_run.id),
        state=state.name,
    )
