"""The roofline model: operations and bytes by hand, the longer of two times, views for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vdmini_core.models.roofline import Roofline, foretell, measure_device

SLOW_MATH = Roofline(flops_per_s=1e3, bytes_per_s=1e12)
SLOW_MEMORY = Roofline(flops_per_s=1e12, bytes_per_s=1e3)
FLOPS = 2 * 5 * 7 * 3
BYTES = 4 * (5 * 7 + 7 * 3 + 5 * 3)


@pytest.mark.parametrize(("device", "seconds"), [(SLOW_MATH, FLOPS / 1e3), (SLOW_MEMORY, BYTES / 1e3)])
def test_a_matrix_product_by_hand(device: Roofline, seconds: float) -> None:
    layer = nn.Linear(7, 3, bias=False, device="meta")
    x = torch.empty(5, 7, device="meta")
    charge = foretell(lambda: layer(x), device)
    assert (charge.flops, charge.bytes) == (FLOPS, BYTES)
    assert charge.seconds == pytest.approx(seconds)


def test_every_operator_has_its_own_limit() -> None:
    """Normalisation computes nothing that is counted, but it moves its input and output."""
    x = torch.empty(5, 7, device="meta")
    product = foretell(lambda: x @ x.t(), Roofline(1e3, 1e3))
    both = foretell(lambda: torch.relu(x @ x.t()), Roofline(1e3, 1e3))
    assert both.flops == product.flops
    assert both.seconds == pytest.approx(product.seconds + 2 * 4 * 25 / 1e3)


def test_views_move_nothing() -> None:
    x = torch.empty(4, 6, device="meta")
    charge = foretell(lambda: x.view(3, 8).t()[1:].unsqueeze(0).chunk(2, dim=1), SLOW_MEMORY)
    assert (charge.flops, charge.bytes, charge.seconds) == (0, 0, 0.0)


def test_this_machine_has_two_numbers() -> None:
    found = measure_device(repeats=1)
    assert found.flops_per_s > 1e8 and found.bytes_per_s > 1e7
