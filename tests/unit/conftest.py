"""What every unit test finds as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_of_the_session() -> Iterator[None]:
    """A stage sets its number of threads, by which sums are rounded: the next test must not inherit it."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)
