"""What a person sees in the terminal while a run goes on, and the table at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.execution import StageReport
from tasks.stage import STAGES, StageResult
from vdmini_core.artifacts import read_json
from vdmini_core.printing import print_json, print_rows

_ROWS = ("teacher", "pruned", "recovered", "repeat_first_frame", "real")
MAX_NOTES = 40
PARTS = {"unet": "denoiser", "vae_decoder": "VAE decoder", "end_to_end": "end to end"}


class RunConsole:
    """Listens to an execution and tells it on standard error; the summary goes to standard output."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.console = Console(stderr=True, highlight=False)

    def listen(self, stage: str, event: str) -> None:
        """One line when a stage starts, one when it ends."""
        if event == "start":
            self.console.print(Text(f"{stage:<9} {STAGES[stage].says}", style="bold"))
        else:
            self.console.print(Text(f"{'':<9} {event}", style="green"))

    def summary(self, reports: Sequence[StageReport]) -> dict[str, Any]:
        """Everything the end of a run says, as data."""
        folder = self.root / "artifacts" / "evaluate"
        metrics = read_json(folder / "metrics.json")
        timing = read_json(folder / "timing.json") if (folder / "timing.json").is_file() else {}
        return {
            "stages": [{"stage": r.stage, "fate": r.fate, "seconds": round(r.seconds, 1)} for r in reports],
            "results": [_result_row(name, metrics, timing) for name in _ROWS if name in metrics],
            "params_ratio": metrics.get("params_ratio"),
            "vae_decoder_flops_ratio": decoder_share(metrics),
            "flops_ratio": metrics.get("flops_ratio"),
            "speedup": timing.get("speedup", {}),
            "notes": [note for r in reports if r.result for note in r.result.notes],
            "unused_videos": unused_videos(self.root),
            "report": str(self.root / "artifacts" / "report" / "index.html"),
            "registered": _registered(self.root),
        }

    def show(self, summary: dict[str, Any]) -> None:
        """Print the summary as tables."""
        out = Console(highlight=False)
        print_rows(summary["stages"], "Stages", out)
        print_rows(summary["results"], "Teacher, pruned, recovered", out)
        shares = (
            ("denoiser parameters", summary["params_ratio"]),
            ("denoiser FLOPs", summary["flops_ratio"]),
            ("VAE decoder FLOPs", summary["vae_decoder_flops_ratio"]),
        )
        for name, value in shares:
            if value is not None:
                out.print(f"{name}: {value:.1%} of the teacher's")
        for part, value in summary["speedup"].items():
            if isinstance(value, int | float):
                out.print(f"speed-up, {PARTS.get(part, part)}: {value:.2f}x")
        for item in summary["unused_videos"]:
            out.print(Text(f"not used: {item['path']}: {item['reason']}", style="yellow"))
        for note in summary["notes"][:MAX_NOTES]:
            if "could not be used" not in note:  # told above, file by file
                out.print(Text(f"note: {note}"))
        registered = summary["registered"]
        if registered:
            out.print(
                Text(
                    f"registered: {registered['name']} version {registered['version']} ({registered['uri']})"
                )
            )
        out.print(Text(f"report: {summary['report']}", style="bold"))


def _result_row(name: str, metrics: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    row = metrics[name]
    latency = timing.get("latency_ms", {}).get(name, {})
    return {
        "model": name.replace("_", " "),
        "FVD real": row.get("fvd_real"),
        "FVD teacher": row.get("fvd_teacher"),
        "MSE teacher": row.get("mse_teacher"),
        "M params": row["params"] / 1e6 if "params" in row else None,
        "GFLOP": row["flops"] / 1e9 if "flops" in row else None,
        "denoiser ms": latency.get("unet"),
        "all ms": latency.get("end_to_end"),
    }


def unused_videos(root: Path) -> list[dict[str, Any]]:
    """Every file `prepare` found and could not use, with the reason."""
    path = root / "artifacts" / "prepare" / "sources.json"
    if not path.is_file():
        return []
    return [
        {"path": item["path"], "reason": item.get("reason", "")}
        for item in read_json(path)
        if item.get("status") == "quarantined"
    ]


def _registered(root: Path) -> dict[str, Any] | None:
    folder = root / "artifacts" / "register"
    if not (folder / "registration.json").is_file():
        return None
    facts = read_json(folder / "registration.json")
    version = read_json(folder / "timing.json").get("version")
    return {"name": facts["name"], "version": version, "uri": f"models:/{facts['name']}@{facts['alias']}"}


def show_stage(result: StageResult, as_json: bool) -> None:
    """One finished stage: its table and notes, or JSON."""
    if as_json:
        print_json({"stage": result.stage, "out": str(result.out), "metrics": result.outcome.metrics,
                    "table": result.outcome.table, "notes": list(result.notes)})  # fmt: skip
        return
    console = Console(highlight=False)
    if result.outcome.table:
        print_rows(result.outcome.table, result.outcome.title, console)
    for note in result.notes[:MAX_NOTES]:
        console.print(Text(f"note: {note}"))
    console.print(Text(f"{result.stage}: done in {result.seconds:.1f} s ({result.out})"))


def decoder_share(metrics: dict[str, Any]) -> float | None:
    """FLOPs of the student's VAE decoder over the teacher's, where it was cut."""
    costs = [metrics.get(row, {}).get("vae_decoder_flops") for row in ("teacher", "recovered")]
    return costs[1] / costs[0] if None not in costs and costs[0] != costs[1] else None
