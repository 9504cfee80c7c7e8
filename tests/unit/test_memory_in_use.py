"""Claims about what malloc says of itself: it counts what is held, and a leak shows to the byte."""

from __future__ import annotations

import pytest
import torch

from vdmini_core.distillation.memory_in_use import memory_in_use

pytestmark = pytest.mark.skipif(memory_in_use() is None, reason="needs glibc 2.33 or newer")


@pytest.mark.parametrize("mib", [0.25, 40.0])
def test_what_is_held_is_counted_and_what_is_given_back_is_not(mib: float) -> None:
    """Small pieces of an arena, and a large one of its own."""
    before = memory_in_use()
    held = [torch.zeros(int(mib * 2**20 / 64 / 4)) for _ in range(64)]
    during = memory_in_use()
    del held
    after = memory_in_use()
    assert before is not None and during is not None and after is not None
    assert during - before == pytest.approx(mib, abs=0.1)
    assert after == pytest.approx(before, abs=0.1)
