"""GPUs are lent: a stage that computes on some holds as many slots of a limit on the Prefect server.

The limit is a global concurrency limit named `vdmini-gpu` (`python -m flows.server_rules --gpu-slots 8` makes
it); where there is none, or no server, nothing is held and nothing waits. A slot is held by a lease that the
run renews: the slots of a process that was killed are free again when its lease ends, whoever notices.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from flows.pages import warn
from vdmini_core.errors import OutsideError, VDMiniError
from vdmini_core.params import Params

LIMIT = "vdmini-gpu"
LEASE_S = 300.0  # Prefect renews it after three quarters; a server that is restarted is back before it ends
PAUSES_S = (2.0, 5.0, 10.0, 20.0, 40.0)
# Stages that load networks onto `base.device`; the workers of `distill` have GPUs of their own.
ON_DRIVER = ("teacher", "profile", "plan", "prune", "evaluate", "register")


def slots_of(stage: str, params: Params) -> int:
    """GPUs that a stage computes on at once: none on a CPU, one for each worker of `distill`."""
    import torch

    from tasks.ray_runtime import gpus_for

    if params.base.device == "cpu" or not torch.cuda.is_available():
        return 0
    if stage == "distill":
        return min(params.distill.workers, gpus_for(params.distill.workers))
    return 1 if stage in ON_DRIVER else 0


def slots_for(stage: str, params: Params) -> AbstractContextManager[None]:
    """What a stage holds while it runs; without a Prefect server that lasts there is nothing to hold."""
    if not os.environ.get("PREFECT_API_URL"):
        return nullcontext()
    return gpu_slots(slots_of(stage, params))


@contextmanager
def gpu_slots(count: int, lease_s: float = LEASE_S) -> Iterator[None]:
    """The block runs while it holds `count` slots; it waits for them as long as it takes.

    Raises:
        VDMiniError: when the limit is smaller than `count`: it would wait for ever.
        OutsideError: when the server cannot be asked.
    """
    if count == 0:
        yield
        return
    held = ExitStack()
    _acquire(held, count, lease_s)
    try:
        yield
    finally:
        try:
            held.close()
        except (httpx.HTTPError, OSError) as error:  # hours of work must not be lost over this
            warn(
                f"{count} GPU slots were not given back ({type(error).__name__}): they are free when their "
                f"lease ends, in {lease_s:g} s"
            )


def _acquire(held: ExitStack, count: int, lease_s: float) -> None:
    for pause in (*PAUSES_S, None):
        try:
            held.enter_context(concurrency(LIMIT, occupy=count, lease_duration=lease_s))
            return
        except ConcurrencySlotAcquisitionError as error:
            if "422" in str(error):
                raise VDMiniError(
                    f"this needs more GPU slots than the limit `{LIMIT}` has",
                    expected=f"at least {count}",
                    found=str(error).rpartition(": ")[2],
                    fix="python -m flows.server_rules --gpu-slots N, or fewer distill.workers",
                ) from None
            if pause is None:
                raise OutsideError(
                    "the Prefect server cannot be asked for GPU slots",
                    found=str(error.__cause__ or error),
                    fix="look whether it runs: `vdmini doctor`",
                ) from None
            time.sleep(pause * random.uniform(0.5, 1.5))
