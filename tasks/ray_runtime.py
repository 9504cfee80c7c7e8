"""One way to have Ray: the running session of this process, a cluster by `RAY_ADDRESS`, or a local one."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path

from tasks.apart import started_apart

# Read by Ray when it starts; what the user has set stays.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Nobody takes the one node of a local session away: a process less to start.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def python_path() -> str:
    """`PYTHONPATH` with which workers find this package wherever they start."""
    package = str(Path(__file__).resolve().parent.parent)
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([package, *known]))


def gpus_for(workers: int) -> int:
    """GPUs that so many workers have between them: on a cluster one each, else those of this machine.

    A driver sees the GPUs of its own node alone, and an autoscaler starts the others only when they are asked
    for: on a cluster (`RAY_ADDRESS`) a worker waits until there is a whole one for it.
    """
    if os.environ.get("RAY_ADDRESS"):
        return workers
    import torch

    return torch.cuda.device_count()


@contextmanager
def ray_session(num_cpus: int) -> Iterator[None]:
    """Ray is running within the context; a session this call started ends with it.

    Args:
        num_cpus: slots of a local session. They are workers at once, not cores: a machine with fewer
            cores runs them all the same. A cluster (`RAY_ADDRESS`) brings its own.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in {**QUIET, **({} if address else ALONE)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _connect(address, num_cpus)
    # What Ray tells of a lost worker or node it prints, and standard output is for `--json`.
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None, num_cpus: int) -> None:
    """Join the cluster or start a local session; Ray gives that 30 s: too few on a busy machine, so again."""
    import ray

    for left in (2, 1, 0):
        try:
            with nullcontext() if address else started_apart():
                ray.init(
                    # "local": not the cluster that somebody else has started on this machine
                    address=address or "local",
                    num_cpus=None if address else num_cpus,
                    include_dashboard=None if address else False,
                    # A session of our own is nobody else's business: it listens on this machine alone.
                    _node_ip_address=None if address else "127.0.0.1",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                )
            return
        except Exception as error:  # Ray raises nothing more special
            if address or not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def end_training(ended: threading.Event, patience_s: float = 10.0) -> None:
    """End Ray Train's controllers of this driver, and with them their workers.

    They run on the driver's own node, without a name to ask Ray for them.

    Args:
        ended: set by the thread that waits for them, when it gets Ray's error.
        patience_s: a controller that is being started has no process yet.
    """
    import psutil
    import ray
    from ray._private import state

    deadline = time.monotonic() + patience_s
    while not ended.is_set() and time.monotonic() < deadline:
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        for actor in state.actors(job_id=job, actor_state_name="ALIVE").values():
            if actor["ActorClassName"] == "TrainController":
                with suppress(psutil.Error):
                    psutil.Process(actor["Pid"]).kill()
        ended.wait(0.5)
