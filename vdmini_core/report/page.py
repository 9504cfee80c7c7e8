"""The page people look at: one HTML file that carries its pictures, its videos and its script.

It asks nothing of the network (a Content-Security-Policy holds it to that), and every name that came
from outside passes the template's escaping.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vdmini_core.report.charts import (
    frontier_chart,
    loss_chart,
    plan_figure,
    sensitivity_chart,
    speedup_chart,
)
from vdmini_core.report.evidence import accounting, contact_sheet, load, load_lines, manifests, movies
from vdmini_core.report.facts import ROWS, comparison, headline, number, prompts_shown, start_of
from vdmini_core.report.figures import PALETTE
from vdmini_core.report.values import is_removed, measured, short_count
from vdmini_core.report.vbench import vbench_table
from vdmini_core.report.verdicts import verdicts

TEMPLATES = Path(__file__).parent / "templates"
LISTED = 200  # files of a stage whose hashes are listed; its manifest has them all
STARTS = {"first_frames": "first frame", "prompts": "prompt"}
TINY = 200  # clips narrower than this are enlarged pixel by pixel, not blurred


def render_report(artifacts: Path, out: Path, title: str, videos: int) -> Path:
    """Write `out/index.html` from what the stages left below `artifacts`.

    Args:
        artifacts: the folder that holds `prepare/`, `profile/`, `plan/`, ... ; missing parts are left out.
        out: where to write.
        title: the page's title.
        videos: how many side-by-side clips to show.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text(
        environment().get_template("report.html").render(_context(artifacts, title, videos)),
        encoding="utf-8",
    )
    return page


def environment() -> Environment:
    """The templates, with everything escaped that is not marked as safe."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["count"] = lambda value: short_count(value) if value else "–"
    return found


def _context(artifacts: Path, title: str, videos: int) -> dict[str, Any]:
    metrics, timing = (load(artifacts / "evaluate" / f"{name}.json", {}) for name in ("metrics", "timing"))
    plan = load(artifacts / "plan" / "plan.json", {})
    sensitivity = load(artifacts / "profile" / "sensitivity.json", {})
    units, losses = sensitivity.get("units") or [], load_lines(artifacts / "distill" / "losses.jsonl")
    frontier = load(artifacts / "plan" / "frontier.json", [])
    speedup = timing["speedup"] if isinstance(timing.get("speedup"), dict) else {}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    stages = manifests(artifacts)
    return {
        "title": title,
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "story": _story(plan, units, losses, stages),
        "figures": headline(metrics, timing, plan),
        "verdicts": verdicts(
            metrics, timing, next((s.get("metrics") for s in stages if s["stage"] == "distill"), None)
        ),
        "columns": ROWS,
        "comparison": comparison(metrics, timing),
        "vbench": vbench_table(metrics),
        "listed": LISTED,
        "device": timing["device"] if isinstance(timing.get("device"), str) else "",
        "charts": _charts(sensitivity, plan, losses)
        | _drawn("frontier", frontier, frontier_chart, _frontier_alt(frontier))
        | _drawn("speedup", speedup, speedup_chart, "How many times as fast as the teacher each part is"),
        "tried": _tried(units),
        "units": [_unit_row(unit, plan.get("removed") or ()) for unit in units],
        "plan": plan,
        "losses": losses,
        "movies": movies(artifacts / "evaluate" / "videos", videos),
        "prompts": prompts_shown(metrics),
        "start": " and ".join(STARTS.get(start, start) for start in start_of(metrics)),
        "tiny": TINY,
        "data": accounting(artifacts / "prepare"),
        "sheet": contact_sheet(artifacts / "prepare"),
        "stages": stages,
    }


def _story(
    plan: dict[str, Any],
    units: list[dict[str, Any]],
    losses: list[dict[str, Any]],
    stages: list[dict[str, Any]],
) -> dict[str, Any]:
    """Words for the sentence under the title: teacher, recipe, how much went, how long it learned."""
    params = {stage["stage"]: stage.get("params", {}) for stage in stages}
    teacher = params.get("teacher", {}).get("teacher", {})
    source = teacher.get("source", "")
    name = teacher.get({"path": "path", "hub": "hub_id", "bundled": "bundled"}.get(source, ""), "")
    small = [u for u in units if u.get("kind") != "block"] or units
    removed = plan.get("removed") or []
    return {
        "teacher": str(name or source or plan.get("family", "")),
        "source": source,
        "family": plan.get("family", ""),
        "recipe": plan.get("recipe", ""),
        "removed": len(removed),
        "units": len(small),
        "steps": len(losses),
        "seed": stages[0].get("seed") if stages else None,
    }


def _tried(units: list[dict[str, Any]]) -> str:
    """What was done to every unit, in the words of the page."""
    words = {"removed": "taken out of the teacher", "replaced": "replaced by an untrained one"}
    return ", and ".join(text for name, text in words.items() if any(unit.get(name) for unit in units))


def _charts(
    sensitivity: dict[str, Any], plan: dict[str, Any], losses: list[dict[str, Any]]
) -> dict[str, Markup]:
    """Inline SVG by name, for those charts that there is data for."""
    units = sensitivity.get("units") or []
    return (
        _drawn("sensitivity", units and sensitivity, sensitivity_chart, _sensitivity_alt(units))
        | _drawn("plan", units and plan, lambda _, path: plan_figure(plan, units, path), _plan_alt(plan))
        | _drawn("losses", losses, loss_chart, "Loss terms of the recovery over its steps")
    )


def _drawn(name: str, data: Any, draw: Callable[[Any, Path], None], alt: str) -> dict[str, Markup]:
    """A chart as inline SVG by its name; nothing where there is no data."""
    if not data:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{name}.svg"
        draw(data, path)
        return {name: inline_svg(path.read_text(encoding="utf-8"), name, alt)}


def _frontier_alt(points: list[dict[str, Any]]) -> str:
    return f"Error before recovery against operations saved, of {len(points)} cuts that were tried"


def _sensitivity_alt(units: list[dict[str, Any]]) -> str:
    damage = [(found[0], str(u["name"])) for u in units if (found := measured(u.get("removed"), "fvd"))]
    worst = ", ".join(name for _, name in sorted(damage, reverse=True)[:3])
    return f"Damage of {len(units)} units when removed or replaced" + (
        f"; the worst to lose: {worst}" if worst else ""
    )


def _plan_alt(plan: dict[str, Any]) -> str:
    removed = ", ".join(str(name) for name in plan.get("removed") or ()) or "nothing"
    return f"The denoiser with what the plan removes struck out: {removed}"


def inline_svg(text: str, prefix: str, alt: str) -> Markup:
    """An SVG file as part of a page: named for readers of the screen, ids its own, colours the page's.

    Args:
        text: the file as matplotlib wrote it.
        prefix: put before every id, since several pictures share one page.
        alt: what the picture shows.
    """
    text = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|<\?xml.*?\?>|<!DOCTYPE[^>]*>",
        "",
        text,
        flags=re.S,
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    box = re.search(r'viewBox="[^"]+"', text)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{escape(alt)}">'
    text = re.sub(r"<svg\b[^>]*>", lambda _: opening, text, count=1, flags=re.S)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--chart-{name})")
    return Markup(re.sub(r"\n\s*", "\n", text).strip())


def _unit_row(unit: dict[str, Any], removed: Any) -> dict[str, Any]:
    """One unit's numbers as text, for those who would rather read than look."""
    damage = {
        f"{variant}_{key}": number(found[0]) if (found := measured(unit.get(variant), key)) else "–"
        for variant in ("removed", "replaced")
        for key in ("fvd", "content", "motion")
    }
    gone = is_removed(str(unit["name"]), removed)
    note = (
        "removed"
        if gone
        else ""
        if unit.get("removable", True)
        else str(unit.get("reason") or "not removable alone")
    )
    return {
        **unit,
        "parameters": unit.get("parameters"),
        "flops": unit.get("flops"),
        "note": note,
        "gone": gone,
        **damage,
    }
