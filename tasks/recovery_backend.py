"""Ray Train's setup of torch for a recovery: every worker also listens for SIGTERM, from its main thread."""

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
