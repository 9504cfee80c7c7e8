"""Charts: the same bytes for the same data, every unit in them, nothing needed that was not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_fixture as fixture
from matplotlib.figure import Figure

from vdmini_core.report.charts import (
    _scale,
    frontier_chart,
    loss_chart,
    plan_figure,
    sensitivity_chart,
    speedup_chart,
)
from vdmini_core.report.figures import house_style
from vdmini_core.report.values import is_removed, measured, short_count, split_name

FRONTIER = [
    {"flops_ratio": 0.9, "paired_mse": 0.01, "paired_mse_low": 0.008, "paired_mse_high": 0.012, "best": True},
    {"flops_ratio": 0.7, "paired_mse": 0.03, "paired_mse_low": 0.02, "paired_mse_high": 0.04, "chosen": True},
    {"flops_ratio": 0.7, "paired_mse": 0.05, "paired_mse_low": 0.04, "paired_mse_high": 0.06, "paper": True},
    {"flops_ratio": 0.5},
]
SPEEDUP = {"unet": 1.4, "vae_decoder": 3.4, "end_to_end": 2.8, "not measured": None}


def _draw_plan(path: Path) -> None:
    plan_figure(fixture.plan(), fixture.sensitivity()["units"], path)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "sensitivity": lambda path: sensitivity_chart(fixture.sensitivity(), path),
    "plan": _draw_plan,
    "losses": lambda path: loss_chart(fixture.losses(), path),
    "frontier": lambda path: frontier_chart(FRONTIER, path),
    "speedup": lambda path: speedup_chart(SPEEDUP, path),
}


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_the_same_data_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    for suffix, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        DRAWINGS[name](first)
        DRAWINGS[name](second)
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes().startswith(start)
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text(encoding="utf-8")


def _labels(path: Path) -> list[str]:
    """Matplotlib leaves every text as a comment beside the path that draws it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        line.strip()[5:-4]
        for line in lines
        if line.strip().startswith("<!--") and line.strip().endswith("-->")
    ]


def test_sensitivity_names_every_block_in_the_order_data_meets_them(tmp_path: Path) -> None:
    sensitivity_chart(fixture.sensitivity(), tmp_path / "s.svg")
    labels = [label for label in _labels(tmp_path / "s.svg") if label in fixture.BLOCKS]
    blocks = list(fixture.BLOCKS)
    assert labels[: len(blocks)] == blocks
    assert {"removed", "replaced", "noise floor"} <= set(_labels(tmp_path / "s.svg"))


def test_sensitivity_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    bare = {
        "units": [{"name": "D.0.pair.0", "kind": "pair", "removed": {"fvd": 3.0}}, {"name": "D.0.pair.1"}]
    }
    sensitivity_chart(bare, tmp_path / "bare.svg")
    assert "replaced" not in _labels(tmp_path / "bare.svg")
    assert not any(label.startswith("Motion") for label in _labels(tmp_path / "bare.svg"))
    sensitivity_chart({"units": []}, tmp_path / "empty.svg")


def test_a_giant_among_small_ones_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"name": f"double.{i}", "kind": "layer", "removed": {"fvd": 1.0}} for i in range(5)
    ]
    rows[3]["removed"] = {"fvd": 5000.0}
    sensitivity_chart({"units": rows, "noise_floor": 0.5}, tmp_path / "log.svg")
    assert "log scale" in _labels(tmp_path / "log.svg")


def test_plan_counts_kept_and_removed_boxes(tmp_path: Path) -> None:
    _draw_plan(tmp_path / "plan.svg")
    assert {"kept: 11", "removed: 10"} <= set(_labels(tmp_path / "plan.svg"))
    layers = [{"name": f"double.{i}", "kind": "layer", "parameters": 10} for i in range(14)]
    plan_figure({"removed": ["double.3"]}, layers, tmp_path / "other.svg")
    assert {"kept: 13", "removed: 1"} <= set(_labels(tmp_path / "other.svg"))
    layers += [{"name": f"single.{i}", "kind": "layer", "parameters": 5} for i in range(3)]
    plan_figure({"removed": ["double.3"]}, layers, tmp_path / "stacks.svg")
    labels = _labels(tmp_path / "stacks.svg")
    assert (labels.count("double"), labels.count("single"), labels.count("2")) == (2, 1, 2)
    plan_figure({}, [], tmp_path / "none.svg")


def test_temporal_sub_layers_have_a_column_and_make_their_pairs_pale(tmp_path: Path) -> None:
    table = fixture.sensitivity()
    owners = [unit for unit in table["units"] if unit["kind"] == "pair" or unit["name"] == "M"]
    table["units"] += [unit | {"name": f"{unit['name']}.temporal", "kind": "temporal"} for unit in owners]
    sensitivity_chart(table, tmp_path / "s.svg")
    labels = _labels(tmp_path / "s.svg")
    assert "temporal sub-layers" in labels and labels.count("M") == 2
    assert not any("temporal" in label and "." in label for label in labels)
    removed = ["D.0.pair.0.temporal", "D.1.pair.1", "M.temporal"]
    plan_figure({"removed": removed}, table["units"], tmp_path / "plan.svg")
    note = "of the kept, without the temporal sub-layer: 2"
    assert {"kept: 20", "removed: 1", note} <= set(_labels(tmp_path / "plan.svg"))


def test_loss_chart_takes_unknown_terms_gaps_and_a_run_of_one_step(tmp_path: Path) -> None:
    loss_chart([{"step": 0, "total": 1.0, "$odd_term$": 2.0}, {"step": 1, "total": None}], tmp_path / "l.svg")
    assert "$odd_term$" in _labels(tmp_path / "l.svg")
    loss_chart([], tmp_path / "none.svg")


def test_small_helpers() -> None:
    assert split_name("D.1.pair.0") == ("D.1", "0")
    assert split_name("D.1.pair.0.temporal") == ("D.1", "0")
    assert split_name("M.temporal") == ("M", "")
    assert split_name("double.7") == ("double.7", "")
    assert is_removed("D.3.pair.1", ["D.3"])
    assert not is_removed("D.30", ["D.3"])
    assert short_count(1_523_000) == "1.52 M"
    assert measured({"fvd": 2, "fvd_low": 1}, "fvd") == (2.0, 1.0, 2.0)
    assert measured({"fvd": float("nan")}, "fvd") is None
    assert measured({"fvd": {"value": 2, "low": 1, "high": 3}}, "fvd") == (2.0, 1.0, 3.0)


def test_logarithmic_axes_show_numbers_and_start_below_the_noise_floor() -> None:
    with house_style():
        figure = Figure()
        axes = figure.subplots()
        _scale([axes], [0.0, 1e-9, 1e-4, 1.0, 300.0], floor=1e-3)
        labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] == 1e-4
    assert labels and all(float(label) > 0 for label in labels)
