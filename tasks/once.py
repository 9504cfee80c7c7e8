"""Requests to MLflow that must not be carried out twice, although every request may have to be sent twice.

MLflow's client sends a request again where no answer came. A server that was killed, or whose answer was
lost, may have carried it out all the same: a version or a run would be there twice. Such a request is sent
once; before it is sent again, the server is asked whether the thing is there.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mlflow.exceptions import MlflowException, RestException

T = TypeVar("T")
PAUSES_S = (1.0, 3.0, 10.0)  # `look` is a request like others: MLflow's client waits minutes for an answer
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_MAY_PASS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def once(send: Callable[[], T], look: Callable[[], T | None]) -> T:
    """What `send` makes, or what `look` finds of an earlier attempt whose answer did not arrive.

    Args:
        send: makes the thing; tried again where the server failed.
        look: finds it by a mark that no other one has; asked after every failure.

    Raises:
        MlflowException: what the server refuses, or where it fails again and again.
    """
    for pause in (*PAUSES_S, None):
        try:
            with _without_retries():
                return send()
        except MlflowException as error:
            if not may_pass(error):
                raise
            made = look()
            if made is not None:
                return made
            if pause is None:
                raise
            time.sleep(pause * random.uniform(0.5, 1.5))
    raise AssertionError  # the last pass returns or raises


def may_pass(error: MlflowException) -> bool:
    """Whether the same request may go well a moment later: no answer, or a failure of the server's own."""
    return not isinstance(error, RestException) or error.error_code in _MAY_PASS


@contextmanager
def _without_retries() -> Iterator[None]:
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before
