"""Claims about malloc: it counts what is held to the byte, and gives large pieces back where told to."""

from __future__ import annotations

import subprocess
import sys

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


HOLES = """
import re, sys
import torch
from vdmini_core.distillation.memory_in_use import large_pieces_apart

def resident():
    return int(re.findall(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[0]) / 1024

if sys.argv[1] == "apart":
    assert large_pieces_apart()
del (once := [torch.ones(31 * 2**18)])[:]  # glibc takes this size for one that comes and goes
before, large, small = resident(), [], []
for _ in range(16):
    large.append(torch.ones(12 * 2**18))
    small.append(torch.ones(2**14))
del large
print(resident() - before)
"""


def test_large_pieces_between_small_ones_are_given_back() -> None:
    """16 times 12 MiB, freed, with 64 KiB between them that live on; else they stay."""

    def kept(how: str) -> float:
        command = [sys.executable, "-c", HOLES, how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept("apart") < 12 < 120 < kept("as ever")
