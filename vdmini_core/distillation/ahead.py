"""The next batch, prepared in a thread while the present one is learned from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vdmini_core.distillation.data import RecoveryBatch, RecoveryBatches


class BatchesAhead:
    """`RecoveryBatches.batch` with the same results, most of them ready when they are asked for.

    A batch is a function of (step, rank, world) alone. After each one, that of the next step is begun; where
    the caller asks for something else after all (it went back, say), that is made on the spot. A worker that
    takes a step in several parts has each of them prepared.

    Args:
        batches: what makes them; used by one thread at a time.
        stop: steps there are; nothing is prepared behind the last.
        device: where batches are wanted.

    Attributes:
        waited_s: seconds that each call so far took.
    """

    def __init__(self, batches: RecoveryBatches, stop: int, device: torch.device | str = "cpu") -> None:
        self.batches, self.stop, self.device = batches, stop, device
        self.waited_s: list[float] = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._coming: dict[tuple[int, int], tuple[int, Future[RecoveryBatch]]] = {}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> RecoveryBatch:
        """Slice `rank` of `world` of the batch of step `step` (from 0), on the device."""
        began = time.perf_counter()
        guess, future = self._coming.pop((rank, world), (None, None))
        if future is None or guess != step:
            future = self._pool.submit(self._make, step, rank, world)
        batch = future.result()
        if step + 1 < self.stop:
            self._coming[rank, world] = step + 1, self._pool.submit(self._make, step + 1, rank, world)
        self.waited_s.append(time.perf_counter() - began)
        return batch

    def waiting(self, spent_s: Sequence[float]) -> dict[str, float]:
        """Share of steps' time that went by until their batches were there; the first one has to wait.

        Args:
            spent_s: seconds of each step so far, with its batch.
        """
        if len(spent_s) < 2:
            return {}
        return {"data_wait_percent": round(100 * sum(self.waited_s[1:]) / sum(spent_s[1:]), 2)}

    def _make(self, step: int, rank: int, world: int) -> RecoveryBatch:
        return self.batches.batch(step, rank, world).to(self.device)

    def __enter__(self) -> BatchesAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
