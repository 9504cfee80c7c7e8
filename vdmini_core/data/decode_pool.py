"""Killable decoding processes: a file that hangs or crashes a decoder costs its worker, never the run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import vdmini_core
from vdmini_core.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

RECYCLE_AFTER = 250  # requests: decord grows over many files
_READY_S = 120.0
WORKER = (sys.executable, "-m", "vdmini_core.data.decode_worker")
# One thread each: with many cores the address space of thread pools alone would pass the memory limit.
_QUIET_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class _Worker:
    """One decoding process and the pipe to it."""

    def __init__(self, command: Sequence[str]) -> None:
        source = str(Path(vdmini_core.__file__).parents[1])
        python_path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **_QUIET_THREADS, "PYTHONPATH": python_path},
        )
        self._buffer = b""
        self.requests = 0
        if "ready" not in (self._read_line(_READY_S) or {}):
            assert self._process.stderr is not None
            self._process.kill()
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise DataError(
                "the decoding process does not start",
                expected="decord and av importable by it",
                found=said[-1] if said else "no answer",
                fix="`vdmini doctor` checks the installation",
            )

    def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The worker's reply, or why there is none; `killed` marks a worker that is gone."""
        self.requests += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({**request, "timeout_s": timeout_s}).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._read_line(timeout_s)
        except (BrokenPipeError, EOFError):
            return {"error": self._epitaph(), "killed": True, "crashed": True}
        if reply is None:
            self.close()
            limit = f"{timeout_s:g} s (prepare.decode_timeout_s)"
            return {"error": f"decoding took longer than {limit} and was stopped", "killed": True}
        return reply

    def _read_line(self, timeout_s: float) -> dict[str, Any] | None:
        """Next JSON line; None when it does not come in time. EOFError when the process is gone."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                if self.requests == 0:
                    return None
                raise EOFError
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _epitaph(self) -> str:
        self.close(kill=False)
        code = self._process.returncode
        if code < 0:
            return f"the decoder crashed on it ({signal.Signals(-code).name})"
        return f"the decoder ended on it (exit status {code})"

    def close(self, kill: bool = True) -> None:
        """End the process and its pipes."""
        if kill:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


class DecodePool:
    """`workers` decoding processes, started when needed and replaced when lost.

    Args:
        workers: processes at most.
        timeout_s: per request; beyond it the process is killed.
        command: how a worker starts (tests put a misbehaving one here).
    """

    def __init__(self, workers: int, timeout_s: float, command: Sequence[str] = WORKER) -> None:
        self._timeout_s, self._command = timeout_s, tuple(command)
        self._idle: deque[_Worker] = deque()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._window = 2 * workers

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        while self._idle:
            self._idle.pop().close()

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its reply; `error` holds the reason when the file is of no use.

        Raises:
            DataError: when no worker can be started at all.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker(self._command)
        reply = worker.call(request, self._timeout_s)
        if reply.get("crashed") and worker.requests > 1:
            # What an earlier file left behind in the process may have done it: this one's own fault shows
            # in a fresh one, so that the order of files decides nothing.
            worker = _Worker(self._command)
            reply = worker.call(request, self._timeout_s)
        if reply.get("killed"):
            return reply
        if worker.requests >= RECYCLE_AFTER:
            worker.close()
        else:
            with self._lock:
                self._idle.append(worker)
        return reply

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """`work` over `items` on the threads, in order; reads ahead only a little: stopping is cheap."""
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, self._threads.submit(work, item)))
                if len(waiting) > self._window:
                    yield waiting[0][0], waiting.popleft()[1].result()
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()
