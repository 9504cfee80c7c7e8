"""What Ray Train is given for a recovery: torch with workers that listen for SIGTERM, and their work.

Ray's own actors unpickle this, so it imports nothing that only the workers need.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from tasks.recovery_stop import listen

_TorchBackend: Any = TorchConfig().backend_cls


class _ListeningBackend(_TorchBackend):
    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """The training function runs in a thread, where no signal arrives; this runs in the main one."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(listen)


class RecoveryTorchConfig(TorchConfig):
    """Torch as Ray Train sets it up, and `recovery_stop.listen` on every worker."""

    @property
    def backend_cls(self) -> Any:
        """What Ray calls when the workers start."""
        return _ListeningBackend


def recover(config: dict[str, Any]) -> None:
    """What every worker does: `recovery_worker.train_worker`, whose imports take longer than Ray's start."""
    from tasks.recovery_worker import train_worker

    train_worker(config)
