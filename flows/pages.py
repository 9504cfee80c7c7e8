"""What people see of a run on the Prefect server: a page with a gap is better than a run that ends over it.

Prefect's functions for artifacts open a connection of their own each time, and the first one of a connection
is not tried again by Prefect's client. Here it is, and where the server stays away the page is left out.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

T = TypeVar("T")
PAUSES_S = (2.0, 5.0, 10.0, 20.0, 40.0)  # a server that is restarted is back within a minute
AWAY = (httpx.HTTPError, OSError)


class Pages:
    """The pages of one run; after the server was given up once, nothing waits for it any more."""

    def __init__(self, pauses_s: tuple[float, ...] = PAUSES_S) -> None:
        self._pauses_s = pauses_s
        self._lost = False

    def put(self, make: Callable[..., T], *args: Any, **named: Any) -> T | None:
        """What `make` returns, one of Prefect's functions for artifacts; None where the server stays away."""
        for pause in (*(() if self._lost else self._pauses_s), None):
            try:
                made = make(*args, **named)
            except AWAY as error:
                if pause is None:
                    warn(f"a page did not reach Prefect: {type(error).__name__}")
                    self._lost = True
                    return None
                time.sleep(pause * random.uniform(0.5, 1.5))
            else:
                self._lost = False
                return made
        return None


def warn(text: str) -> None:
    """Say it in the run's log on the server, or in this process's where there is no run."""
    logger: Any
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger(__name__)
    logger.warning(text)
