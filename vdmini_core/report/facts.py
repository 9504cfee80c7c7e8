"""The numbers as the page shows them: headline figures and the comparison table.

What was not measured is called that, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vdmini_core.report.values import measured, short_count

NOT_MEASURED = "not measured"
ROWS = {
    "teacher": "Teacher",
    "pruned": "Pruned",
    "recovered": "Recovered",
    "repeat_first_frame": "First frame repeated",
    "real": "Real clips",
}
LABELS = {
    "fvd_real": "Fréchet distance to real clips",
    "fvd_teacher": "Fréchet distance to the teacher’s clips",
    "i3d_real": "FVD (I3D) to real clips",
    "i3d_teacher": "FVD (I3D) to the teacher’s clips",
    "videomae_real": "FVD (VideoMAE) to real clips",
    "videomae_teacher": "FVD (VideoMAE) to the teacher’s clips",
    "mse_teacher": "Squared error to the teacher’s clip, same noise",
    "psnr_teacher": "PSNR to the teacher’s clip, dB",
    "ssim_teacher": "SSIM to the teacher’s clip",
    "temporal_error_teacher": "Squared error of the changes between frames, to the teacher’s clip",
    "perceptual_teacher": "Perceptual distance to the teacher’s clip",
    "trajectory_error": "Sprites: distance from their true place, pixels",
    "colour_error": "Sprites: error of their mean colour, 0 to 1",
    "shape_error": "Sprites: share of their pattern that is wrong",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "params": "Denoiser, parameters",
    "flops": "Denoiser, FLOPs of one pass",
    "vae_decoder_params": "VAE decoder, parameters",
    "vae_decoder_flops": "VAE decoder, FLOPs of a clip",
}
COSTS = ("params", "flops", "vae_decoder_params", "vae_decoder_flops")
TRUTH = ("trajectory_error", "colour_error", "shape_error")
PARTS = {"unet": "Denoiser, one pass", "vae_decoder": "VAE decoder", "end_to_end": "End to end"}
HIGHER_IS_BETTER = ("psnr", "ssim", "cosine", "correlation", "similarity", "consistency", "smoothness")


@dataclass(frozen=True)
class Figure:
    """One big number of the headline."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """A number as shown, with its interval beneath."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """One measure across all columns of the comparison."""

    label: str
    better: str
    cells: tuple[Cell, ...]


def number(value: float) -> str:
    """Three significant digits without an exponent where it stays readable."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def value_of(data: Any, *keys: str) -> float | None:
    """The number at a path of keys, or None."""
    for key in keys[:-1]:
        data = data.get(key) if isinstance(data, dict) else None
    found = measured(data, keys[-1])
    return found[0] if found else None


def headline(metrics: dict[str, Any], timing: dict[str, Any], plan: dict[str, Any]) -> list[Figure]:
    """The handful of numbers a reader should leave with."""
    figures = [
        _saving(
            "parameters",
            value_of(metrics, "teacher", "params") or value_of(plan, "teacher_params"),
            value_of(metrics, "recovered", "params") or value_of(plan, "expected_params"),
        ),
        _saving(
            "FLOPs per pass",
            value_of(metrics, "teacher", "flops") or value_of(plan, "teacher_flops"),
            value_of(metrics, "recovered", "flops") or value_of(plan, "expected_flops"),
        ),
    ]
    figures += [
        _speed(timing, part, label)
        for part, label in (("unet", "denoiser speed"), ("end_to_end", "speed end to end"))
    ]
    before, after = (value_of(metrics, row, "fvd_teacher") for row in ("pruned", "recovered"))
    if before is not None and after is not None:
        detail = f"from {number(before)} when only pruned"
        figures.append(Figure(number(after), "Fréchet distance to the teacher", detail))
    return figures


def _saving(label: str, teacher: float | None, student: float | None) -> Figure:
    if not teacher or student is None:
        return Figure("–", label, NOT_MEASURED)
    change = 100 * (student / teacher - 1)
    sign = "−" if change < 0 else "+"
    return Figure(f"{sign}{abs(change):.0f} %", label, f"{short_count(teacher)} → {short_count(student)}")


def _speed(timing: dict[str, Any], part: str, label: str) -> Figure:
    speedup = value_of(timing, "speedup", part)
    if speedup is None:
        return Figure("–", label, NOT_MEASURED)
    times = [value_of(timing, "latency_ms", row, part) for row in ("teacher", "recovered")]
    detail = " → ".join(f"{number(t)} ms" for t in times if t is not None)
    rounds = (timing.get("speedup_range") or {}).get(part)
    if isinstance(rounds, list) and len(rounds) == 2 and rounds[0] < rounds[1]:
        detail += f"; rounds from {rounds[0]:.2f} to {rounds[1]:.2f}×"
    return Figure(f"{speedup:.2f}×", label, detail)


def comparison(metrics: dict[str, Any], timing: dict[str, Any]) -> list[tuple[str, list[Line]]]:
    """Groups of lines; the columns are `ROWS`, each measure found in any row gets a line."""
    keys = list(dict.fromkeys(key for row in ROWS for key in measures(metrics.get(row))))
    known = [key for key in LABELS if key in keys]
    rest = sorted(key for key in keys if key not in LABELS)
    groups = {
        "Whole clip": [k for k in known if k not in (*COSTS, *TRUTH)]
        + [k for k in rest if not k.startswith(("content", "motion"))],
        "Content, frame by frame": [k for k in rest if k.startswith("content")],
        "Motion, between frames": [k for k in rest if k.startswith("motion")],
        "Known truth of drawn clips": [k for k in TRUTH if k in keys],
        "Cost": [k for k in COSTS if k in ("params", "flops") or k in keys],
    }
    lines = [(title, [_line(metrics, key) for key in keys]) for title, keys in groups.items() if keys]
    groups_of_parts = [("Latency, ms", _by_part(timing.get("latency_ms"), number))]
    if memory := timing.get("peak_memory_bytes"):
        groups_of_parts.append(
            ("Peak memory of a call beyond what is loaded, bytes", _by_part(memory, short_count))
        )
    return [*lines, *groups_of_parts]


def _by_part(measured_rows: Any, shown: Callable[[float], str]) -> list[Line]:
    """One line per part of the pipeline, from row -> part -> number."""
    return [
        Line(label, "lower", tuple(_part(measured_rows, row, part, shown) for row in ROWS))
        for part, label in PARTS.items()
    ]


def measures(row: Any) -> list[str]:
    """Names of what a row measured, bounds of intervals apart."""
    if not isinstance(row, dict):
        return []
    return [k for k in row if not k.endswith(("_low", "_high")) and measured(row, k) is not None]


def _line(metrics: dict[str, Any], key: str) -> Line:
    better = "higher" if any(word in key for word in HIGHER_IS_BETTER) else "lower"
    return Line(_label(key), better, tuple(_cell(metrics, row, key) for row in ROWS))


def _label(key: str) -> str:
    """Words for a measure; what it was compared with goes last."""
    if key in LABELS:
        return LABELS[key]
    words = key.removeprefix("content_").removeprefix("motion_").split("_")
    target = {"real": " to real clips", "teacher": " to the teacher’s clips"}.get(words[-1], "")
    rest = " ".join(words[:-1] if target else words)
    rest = {"": "Distance", "fvd": "Fréchet distance", "frechet": "Fréchet distance"}.get(rest, rest)
    return rest[:1].upper() + rest[1:] + target


def _cell(metrics: dict[str, Any], row: str, key: str) -> Cell:
    found = measured(metrics.get(row), key)
    if found is None:
        cost_of_no_model = key in COSTS and row in ("repeat_first_frame", "real")
        return Cell("–" if cost_of_no_model or row in metrics else NOT_MEASURED)
    value, low, high = found
    if key in COSTS:
        return Cell(short_count(value))
    return Cell(number(value), f"{number(low)} – {number(high)}" if high > low else "")


def _part(measured_rows: Any, row: str, part: str, shown: Callable[[float], str]) -> Cell:
    value = value_of(measured_rows, row, part)
    if value is not None:
        return Cell(shown(value))
    return Cell("–" if row in ("repeat_first_frame", "real") else NOT_MEASURED)


def start_of(metrics: dict[str, Any]) -> tuple[str, ...]:
    """What the clips start from: `first_frames`, `prompts` or both."""
    found = metrics.get("starts_from")
    return tuple(map(str, found)) if isinstance(found, list) and found else ("first_frames",)


def prompts_shown(metrics: dict[str, Any]) -> dict[str, str]:
    """Clip's name on the page -> its prompt, where clips start from prompts."""
    found = metrics.get("prompts")
    return {f"clip-{i:02d}": str(text) for i, text in enumerate(found if isinstance(found, list) else ())}
