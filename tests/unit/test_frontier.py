"""The solver's best cuts over all sizes: within their sizes, of the rows there are, and the same cut once."""

from __future__ import annotations

from typing import Any

import svd_toys as toys

from vdmini_core.models.flops import total_flops
from vdmini_core.pruning.frontier import frontier_cuts
from vdmini_core.pruning.recipes import describe_plan


def found(granularity: str, count: int) -> tuple[Any, list[tuple[str, ...]]]:
    unet = toys.tiny_unet((32, 32, 32))
    units = toys.FAMILY.units(unet, toys.SETTINGS, granularity)
    rows = [
        {"name": u.name, "removed": {"paired_mse": 0.0 if u.kind == "temporal" else 1.0 + n}}
        for n, u in enumerate(units)
    ]
    known = toys.FAMILY.units(unet, toys.SETTINGS)
    cuts = frontier_cuts(toys.FAMILY, unet, known, {"units": rows}, toys.SETTINGS, "paired", count)
    return unet, cuts


def test_each_is_within_its_size_and_smaller_than_the_one_before() -> None:
    unet, cuts = found("both", 3)
    total = total_flops(unet, toys.SETTINGS)
    left = [describe_plan("manual", toys.FAMILY, unet, cut, toys.SETTINGS).expected_flops for cut in cuts]
    everything = toys.FAMILY.cuts(unet, toys.SETTINGS)
    swallowed = {name for cut in everything for name in cut.conflicts}
    most = sum(cut.flops for cut in everything if cut.name not in swallowed)
    assert len(cuts) == 3 and left == sorted(left, reverse=True)
    assert all(flops <= total - most * step / 4 for step, flops in enumerate(left, start=1))
    assert not any(".temporal" in name for cut in cuts for name in cut)


def test_temporal_sub_layers_where_the_profile_has_them() -> None:
    _, cuts = found("temporal", 2)
    assert any(name.endswith(".temporal") for cut in cuts for name in cut)


def test_a_profile_of_blocks_alone_gives_what_it_can() -> None:
    _, cuts = found("block", 2)
    assert all(not name.count(".pair.") for cut in cuts for name in cut)
