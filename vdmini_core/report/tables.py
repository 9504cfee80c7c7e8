"""The figures that DVC compares between commits and experiments, beside the page that people look at.

`metrics.json` has what one decides by and nothing else: the whole record of the measurement, passports
included, is `evaluate`'s own file. The curves are CSV, which `dvc plots` draws.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import write_json
from vdmini_core.params import is_number
from vdmini_core.report.evidence import load, load_lines
from vdmini_core.report.values import is_removed

ROWS = ("teacher", "pruned", "recovered")
MEASURES = (
    *(f"{name}_{to}" for to in ("teacher", "real") for name in ("fvd", "content", "motion")),
    *("mse_teacher", "ssim_teacher", "temporal_error_teacher"),
)
SHARES = ("params_ratio", "flops_ratio", "vae_decoder_flops_ratio")
CURVES = ("total", "task", "icd", "mca_generator", "mca_discriminator", "grad_norm", "lr")


def write_tables(artifacts: Path, out: Path) -> list[Path]:
    """Write `metrics.json` and three tables as CSV; what a stage lacks stays out.

    Args:
        artifacts: the folder that holds `profile/`, `plan/`, `distill/`, `evaluate/`.
        out: where to write; made where it is missing.

    Returns:
        The files. None depends on a time or a host.
    """
    out.mkdir(parents=True, exist_ok=True)
    losses = load_lines(artifacts / "distill" / "losses.jsonl")
    # Terms that are off by default.
    extra = sorted({name for row in losses[:1] for name in row} - {"step", *CURVES})
    metrics = load(artifacts / "evaluate" / "metrics.json", {})
    plan = load(artifacts / "plan" / "plan.json", {})
    units = load(artifacts / "profile" / "sensitivity.json", {}).get("units") or []
    frontier = load(artifacts / "plan" / "frontier.json", [])
    write_json(out / "metrics.json", compared(metrics))
    return [
        out / "metrics.json",
        _write(out / "recovery.csv", ("step", *CURVES, *extra), losses),
        _write(out / "sensitivity.csv", UNIT, (_unit(unit, plan.get("removed") or ()) for unit in units)),
        _write(out / "frontier.csv", POINT, (_point(point) for point in frontier)),
    ]


def compared(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures that a decision rests on: {row: {measure: value}} and the student's shares of its teacher.

    Args:
        metrics: `evaluate/metrics.json`.
    """
    found: dict[str, Any] = {name: metrics[name] for name in SHARES if is_number(metrics.get(name))}
    for row in ROWS:
        figures = metrics.get(row)
        if isinstance(figures, dict):
            found[row] = {name: figures[name] for name in MEASURES if is_number(figures.get(name))}
    return found


UNIT = ("unit", "kind", "content", "motion", "paired_mse", "parameters", "flops", "fate")
POINT = ("flops_ratio", "params_ratio", "paired_mse", "cut", "removed")


def _unit(unit: dict[str, Any], removed: Sequence[str]) -> dict[str, Any]:
    fate = "removed" if is_removed(unit["name"], removed) else "kept"
    return {**unit, **(unit.get("removed") or {}), "unit": unit["name"], "fate": fate}


def _point(point: dict[str, Any]) -> dict[str, Any]:
    cut = "chosen" if point.get("chosen") else "paper" if point.get("paper") else "tried"
    return {**point, "cut": cut, "removed": " ".join(point.get("removed") or ())}


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Path:
    """One file; a column that a row lacks is empty there."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
