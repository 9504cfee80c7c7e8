"""What Ray Train is given for a recovery: torch with workers that listen for SIGTERM, and their work.

Ray's own actors unpickle this, so it imports nothing that only the workers need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train.torch import TorchConfig

from tasks.recovery_stop import listen

_TorchBackend: Any = TorchConfig().backend_cls


class ListeningBackend(_TorchBackend):
    """Ray Train's hooks around the workers; they run in its controller."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Connect the workers."""
        with _given_back(worker_group):
            super().on_start(worker_group, backend_config)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Make the workers ready to train."""
        with _given_back(worker_group):
            super().on_training_start(worker_group, backend_config)
            self.instruct(worker_group)

    def instruct(self, worker_group: Any) -> None:
        """The training function runs in a thread, where no signal arrives; this runs in the main one."""
        worker_group.execute(listen)


@contextmanager
def _given_back(worker_group: Any) -> Iterator[None]:
    """Workers that are lost while they start give back what they took.

    Ray 2.60 forgets such a group as it stands: its nodes' CPUs and GPUs stay taken, and where there are no
    others the next group waits for them without end.
    """
    try:
        yield
    except BaseException:
        worker_group.get_worker_group_state().shutdown()
        raise


class RecoveryTorchConfig(TorchConfig):
    """Torch as Ray Train sets it up, and `recovery_stop.listen` on every worker."""

    @property
    def backend_cls(self) -> Any:
        """What Ray calls when the workers start."""
        return ListeningBackend


def recover(config: dict[str, Any]) -> None:
    """What every worker does: `recovery_worker.train_worker`, whose imports take longer than Ray's start."""
    from tasks.recovery_worker import train_worker

    train_worker(config)
