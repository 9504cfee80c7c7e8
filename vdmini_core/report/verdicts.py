"""Verdicts in plain sentences, each computed from the numbers; a student that got worse is told so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vdmini_core.params import FEWEST_ROUNDS
from vdmini_core.report.facts import HIGHER_IS_BETTER, LABELS, PARTS, measures, number, start_of, value_of
from vdmini_core.report.values import Interval, measured


@dataclass(frozen=True)
class Verdict:
    """A sentence with its tone: `good`, `mixed`, `bad` or `open` (not measured)."""

    tone: str
    text: str


def verdicts(
    metrics: dict[str, Any], timing: dict[str, Any], recovery: dict[str, Any] | None = None
) -> list[Verdict]:
    """What a fair reader would conclude, worst news included; `recovery`: metrics of stage `distill`."""
    found: Iterable[Verdict | None] = (
        _gap_to_real(metrics),
        _nearer_to_teacher(metrics),
        _content_and_motion(metrics),
        _against_still(metrics),
        _told_apart(metrics),
        _faster(timing, metrics),
        _decoder(recovery or {}),
    )
    return [verdict for verdict in found if verdict]


def _three(metrics: dict[str, Any], key: str) -> list[float] | None:
    values = [value_of(metrics, row, key) for row in ("teacher", "pruned", "recovered")]
    return [v for v in values if v is not None] if None not in values else None


def _gap_to_real(metrics: dict[str, Any]) -> Verdict | None:
    values = _three(metrics, "fvd_real")
    if values is None:
        return Verdict("open", "Distance to real clips was not measured for all three models.")
    teacher, pruned, recovered = values
    told = f"(teacher {number(teacher)}, pruned {number(pruned)}, recovered {number(recovered)})"
    if pruned <= teacher:
        return Verdict(
            "mixed", f"Pruning alone did not raise the distance to real clips {told}: no gap to close."
        )
    share = 100 * (pruned - recovered) / (pruned - teacher)
    if share < 0:
        return Verdict(
            "bad", f"Recovery moved the student further from real clips than pruning left it {told}."
        )
    if share >= 100:
        return Verdict(
            "good", f"The recovered student is as near to real clips as the teacher or nearer {told}."
        )
    tone = "good" if share >= 50 else "mixed"
    return Verdict(
        tone, f"Recovery closes {share:.0f} % of the gap between pruned and teacher, to real clips {told}."
    )


def _nearer_to_teacher(metrics: dict[str, Any]) -> Verdict | None:
    parts, worse = [], False
    for key, what in (
        ("fvd_teacher", "Fréchet distance"),
        ("mse_teacher", "squared error on the same noise"),
    ):
        pruned, recovered = (value_of(metrics, row, key) for row in ("pruned", "recovered"))
        if not pruned or recovered is None:
            continue
        worse |= recovered >= pruned
        times = pruned / recovered if recovered else float("inf")
        verb = (
            "is no lower"
            if recovered >= pruned
            else f"falls {times:.1f}-fold"
            if times >= 1.05
            else "hardly falls"
        )
        parts.append(f"its {what} {verb} ({number(pruned)} → {number(recovered)})")
    if not parts:
        return Verdict("open", "Distance to the teacher was not measured.")
    start = (
        "The recovered student is not nearer to the teacher in everything"
        if worse
        else ("The recovered student is nearer to the teacher than the pruned one")
    )
    return Verdict("bad" if worse else "good", f"{start}: {', '.join(parts)}.")


def _content_and_motion(metrics: dict[str, Any]) -> Verdict | None:
    """How much of the damage recovery undid, for each half, where both were measured against one thing."""
    keys = [k for k in measures(metrics.get("recovered")) if k.startswith("content")]
    for key in sorted(keys, key=lambda k: ("teacher" not in k, k)):
        other = key.replace("content", "motion", 1)
        if any(word in key for word in HIGHER_IS_BETTER) or not ("teacher" in key or "real" in key):
            continue
        shares = [_undone(metrics, k) for k in (key, other)]
        if None in shares:
            continue
        content, motion = (s for s in shares if s is not None)
        text = f"Recovery {_share_undone(content, 'content')} and {_share_undone(motion, 'motion')}"
        target = "the teacher’s clips" if "teacher" in key else "real clips"
        low = min(content, motion)
        return Verdict(
            "good" if low >= 50 else "bad" if low < 0 else "mixed", f"{text} (distance to {target})."
        )
    return None


def _share_undone(share: float, what: str) -> str:
    if share < 0:
        return f"added {-share:.0f} % to the damage to {what}"
    return f"undid {share:.0f} % of the damage to {what}"


def _undone(metrics: dict[str, Any], key: str) -> float | None:
    pruned, recovered = (value_of(metrics, row, key) for row in ("pruned", "recovered"))
    floor = (value_of(metrics, "teacher", key) or 0.0) if "real" in key else 0.0
    if pruned is None or recovered is None or pruned <= floor:
        return None
    return 100 * (pruned - recovered) / (pruned - floor)


def _against_still(metrics: dict[str, Any]) -> Verdict | None:
    if "first_frames" not in start_of(metrics):
        return None  # from a prompt nobody could have repeated the real clip's first frame
    key = "fvd_teacher" if value_of(metrics, "repeat_first_frame", "fvd_teacher") is not None else "fvd_real"
    still, recovered = (value_of(metrics, row, key) for row in ("repeat_first_frame", "recovered"))
    if still is None or recovered is None:
        return None
    told = f"({number(recovered)} against {number(still)}, {LABELS[key]})"
    if recovered < still:
        return Verdict(
            "good", f"It beats repeating the first frame {told}: the motion it makes is worth having."
        )
    return Verdict("bad", f"Repeating the first frame would do as well or better {told}.")


def _told_apart(metrics: dict[str, Any]) -> Verdict | None:
    spans: list[Interval | None] = [
        measured(metrics.get(row), "fvd_real") for row in ("teacher", "recovered")
    ]
    if any(span is None or span[2] <= span[1] for span in spans):
        return None
    (_, low_t, high_t), (_, low_r, high_r) = (span for span in spans if span is not None)
    if low_r <= high_t and low_t <= high_r:
        text = "To real clips the intervals of teacher and recovered overlap: so few clips cannot rank them."
        return Verdict("mixed", text)
    if low_r > high_t:
        return Verdict(
            "mixed",
            "The recovered student is measurably further from real clips than the teacher: intervals apart.",
        )
    return Verdict(
        "good", "The recovered student is measurably nearer to real clips than the teacher: intervals apart."
    )


def _decoder(recovery: dict[str, Any]) -> Verdict | None:
    """How well a cut VAE decoder paints; 1 dB is what the paper's decoder may lose."""
    values = [recovery.get(f"vae_decoder.{when}.psnr") for when in ("teacher", "pruned", "recovered")]
    if not all(isinstance(value, int | float) for value in values):
        return None
    whole, pruned, recovered = (float(value) for value in values if value is not None)
    text = (
        f"The VAE decoder was cut: it paints held-out clips at {recovered:.1f} dB "
        f"({pruned:.1f} before recovery, {whole:.1f} whole)."
    )
    lost = whole - recovered
    return Verdict("good" if lost <= 1 else "bad" if lost > 3 else "mixed", text)


def _faster(timing: dict[str, Any], metrics: dict[str, Any]) -> Verdict | None:
    denoiser, decoder, whole = (value_of(timing, "speedup", part) for part in PARTS)
    if denoiser is None:
        return Verdict("open", "Speed was not measured in this run.")
    parts = [f"the denoiser runs {denoiser:.2f}× as fast as the teacher’s"]
    if decoder is not None:
        costs = [value_of(metrics, row, "vae_decoder_flops") for row in ("teacher", "recovered")]
        whole_decoder = costs[0] == costs[1] if None not in costs else abs(decoder - 1) < 0.03
        parts.append("the VAE decoder was left alone" if whole_decoder else f"the VAE decoder {decoder:.2f}×")
    if whole is not None:
        parts.append(f"a whole clip {whole:.2f}×")
    where = f" Measured on {timing['device']}." if isinstance(timing.get("device"), str) else ""
    text = ", ".join(parts)
    rounds = value_of(timing, "details", "unet", "recovered", "repeats")
    if rounds is not None and rounds < FEWEST_ROUNDS:
        where += f" Timed {'once' if rounds == 1 else 'twice'}: read it with care, machines vary."
        return Verdict("mixed" if denoiser > 1.02 else "bad", f"{text[0].upper()}{text[1:]}.{where}")
    return Verdict("good" if denoiser > 1.02 else "bad", f"{text[0].upper()}{text[1:]}.{where}")
