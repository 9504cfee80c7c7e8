"""`python -m flows.server_rules`: what a Prefect server has to know beside deployments; twice is as once.

* A limit of GPU slots, `vdmini-gpu`, for stages to hold by lease (`flows/gpu_slots.py`).
* An automation against zombies: runs send a heartbeat every three minutes, by Prefect's own default; one
  whose heartbeats stop is marked as crashed, so that it holds no place in its deployment's limit for ever.
* Where `VDMINI_WEBHOOK` is set, the automation tells it, too: a process that is gone cannot.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import timedelta
from typing import Any

from prefect.automations import CallWebhook, ChangeFlowRunState, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore

from flows.gpu_slots import LIMIT
from flows.notices import WEBHOOK
from flows.webhook_address import RefusedAddress, opener_for

AUTOMATION, BLOCK = "vdmini-zombies", "vdmini-webhook"
# Five heartbeats: a server that is restarted, or a network that is away, must not make a zombie.
SILENCE = timedelta(minutes=15)
ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")


def zombie_rule(silence: timedelta = SILENCE, webhook_id: Any = None) -> AutomationCore:
    """After a heartbeat a run has to show another one, or its end, within `silence`."""
    actions: list[Any] = [
        ChangeFlowRunState(
            state=StateType.CRASHED,
            name="Crashed",
            message=f"no heartbeat for {silence.total_seconds() / 60:g} minutes: its process is gone",
        )
    ]
    if webhook_id is not None:
        told = {
            "text": "run {{ flow_run.name }}: no heartbeat, marked as crashed",
            "event": "run-lost",
            "run": "{{ flow_run.name }}",
            "run_id": "{{ flow_run.id }}",
        }
        actions.append(CallWebhook(block_document_id=webhook_id, payload=json.dumps(told)))
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=AUTOMATION,
        description="Marks flow runs whose heartbeats stopped as crashed (python -m flows.server_rules).",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ENDED)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=actions,
    )


def apply_rules(gpu_slots: int | None = None) -> list[str]:
    """Write the rules to the server that `PREFECT_API_URL` names.

    Args:
        gpu_slots: GPUs that all runs have between them; None leaves the limit as it is.

    Returns:
        What is so now, a line each.
    """
    with get_client(sync_client=True) as client:
        said = []
        if gpu_slots is not None:
            client.upsert_global_concurrency_limit_by_name(LIMIT, gpu_slots)
            said.append(f"{LIMIT}: {gpu_slots} slots")
        webhook_id, why = _webhook()
        _write(client, zombie_rule(webhook_id=webhook_id))
    said.append(
        f"{AUTOMATION}: a run without a heartbeat for {SILENCE.total_seconds() / 60:g} minutes is crashed"
    )
    said.append(f"notices: {'by the webhook' if webhook_id else f'none, {why}'}")
    return said


def _webhook() -> tuple[Any, str]:
    """Id of the server's own copy of the address, kept encrypted there; None and why without one."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return None, f"{WEBHOOK} is not set"
    try:
        opener_for(address)  # the server sends it, and looks no further than this
    except RefusedAddress as error:
        return None, f"{WEBHOOK} {error}"
    return Webhook(url=address).save(BLOCK, overwrite=True, _sync=True), ""


def _write(client: SyncPrefectClient, rule: AutomationCore) -> None:
    """One automation of that name; what a race or an earlier release left beside it goes."""
    there = client.read_automations_by_name(rule.name)
    if not there:
        client.create_automation(rule)
        return
    client.update_automation(there[0].id, rule)
    for other in there[1:]:
        client.delete_automation(other.id)


def main() -> None:
    """Write the rules and say what they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-slots", type=int, help="GPUs that all runs have between them")
    given = parser.parse_args()
    if given.gpu_slots is not None and given.gpu_slots < 1:
        parser.error("--gpu-slots: 1 or more")
    for line in apply_rules(given.gpu_slots):
        print(line)


if __name__ == "__main__":
    main()
