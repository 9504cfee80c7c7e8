"""A process that is lent GPUs and killed with them, and a run whose heartbeats stop, for `test_faults.py`.

It prints the id of that run, then ends by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import Event, ResourceSpecification
from prefect.states import Running

from flows.gpu_slots import LIMIT, gpu_slots
from flows.server_rules import AUTOMATION, apply_rules, zombie_rule
from vdmini_core.errors import VDMiniError

LEASE_S = 240.0  # it ends after the restart of the server
SILENCE = timedelta(seconds=10)


@flow
def zombie() -> None:
    """Never really runs."""


def main() -> None:
    for _ in range(2):
        apply_rules(2)
    with get_client(sync_client=True) as client:

        def held() -> int:
            return client.read_global_concurrency_limit_by_name(LIMIT).active_slots

        assert len(client.read_automations_by_name(AUTOMATION)) == 1
        with gpu_slots(2):
            assert held() == 2
        assert held() == 0
        try:
            with gpu_slots(3):
                raise AssertionError("there are two")
        except VDMiniError as error:
            assert "more GPU slots" in str(error)
        run = client.create_flow_run(zombie, state=Running())
        resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
        rule = zombie_rule(SILENCE)
        rule.trigger.match = ResourceSpecification(resource)  # type: ignore[union-attr]
        rule.name = "test"
        client.create_automation(rule)
        time.sleep(3)  # the server's own services hear of it by and by
        beat = Event(event="prefect.flow-run.heartbeat", resource=resource)
        client.request("POST", "/events", json=[beat.model_dump(mode="json")]).raise_for_status()
        print(run.id, flush=True)
        lent = gpu_slots(1, lease_s=LEASE_S)
        lent.__enter__()
        assert held() == 1
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
