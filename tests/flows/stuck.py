"""What a run that does not end is doing: its own stacks, and what its Ray cluster holds."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_SHOW = """
import sys
import ray
from ray._private import state
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
for node, free in state.available_resources_per_node().items():
    print("node", node[:8], "CPUs left", free.get("CPU", 0))
for group in ray.util.placement_group_table().values():
    if group["state"] != "REMOVED":
        print("placement group", group["state"], [n[:8] for n in group["bundles_to_node_id"].values()])
for actor in state.actors().values():
    if actor["State"] != "DEAD":
        node = actor["Address"].get("NodeID", "")[:8]
        print("actor", actor["ActorClassName"], actor["State"], actor["Pid"], "on", node)
"""


def end_of(driver: subprocess.Popen[bytes], seconds: float, address: str, errors: Path) -> int:
    """Exit status of a driver.

    Args:
        driver: started with `PYTHONFAULTHANDLER` set and its standard error in `errors`.
        seconds: to wait.
        address: of its Ray cluster.
        errors: the file.

    Raises:
        AssertionError: with all that can be told where it does not end; it is ended then.
    """
    try:
        return driver.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        command = ["timeout", "-s", "KILL", "120", sys.executable, "-c", _SHOW, address]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        driver.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=60)
        said = errors.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        kept = [line[:160] for line in said if "[state-dump]" not in line and line.strip()]
        told = "\n".join([f"not ended after {seconds} s", shown.stdout, shown.stderr[-500:], *kept[-70:]])
        raise AssertionError(told) from None
