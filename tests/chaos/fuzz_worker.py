"""`python -m tests.chaos.fuzz_worker JOB.json ...`: the product on fuzzed folders, in a process of its own.

A job names a folder, a folder of whole videos and a scratch folder. What the stage `prepare` and the command
`fvd` make of it goes to `RESULT.json` beside the job; what is no error of ours goes there with its traceback.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdmini_core.errors import VDMiniError

FRAMES, SIDE, FPS = 8, 32, 8


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        found = {"outcome": "done", **work()}
    except VDMiniError as error:
        found = {"outcome": "refused", "said": str(error)}
    except Exception:
        found = {"outcome": "crashed", "said": traceback.format_exc()}
    return {**found, "seconds": round(time.monotonic() - started, 2)}


def prepare(folder: Path, project: Path) -> dict[str, Any]:
    """The stage on the folder: the record of every file."""
    from tasks.stage import run_stage

    project.mkdir()
    values = {
        "base": {"threads": 1},
        "prepare": {
            **{"source": "folder", "videos": str(folder), "frames": FRAMES, "height": SIDE, "width": SIDE},
            **{"fps": FPS, "max_clips_per_video": 2},
            "clips": {"train": 4000, "validation": 8, "test": 4},
        },
        "profile": {"clips": 4},
        "evaluate": {"clips": 4},
    }
    (project / "params.yaml").write_text(json.dumps(values), encoding="utf-8")
    result = run_stage("prepare", project)
    records = json.loads((result.out / "sources.json").read_text(encoding="utf-8"), parse_constant=_no_number)
    kept = sum(record["clips"] for record in records)
    metrics = result.outcome.metrics
    if kept != sum(metrics[f"clips_{split}"] for split in ("train", "validation", "test")):
        raise AssertionError(f"{kept} clips by the account, {metrics}")
    return {"files": {r["path"]: [r["status"], r["reason"]] for r in records}}


def fvd(folder: Path, real: Path) -> dict[str, Any]:
    """`vdmini fvd REAL FOLDER --skip-bad`: files left out with their reasons, and the number used."""
    from typer.testing import CliRunner

    from vdmini_core.cli import CORE_COMMANDS, new_app

    app = new_app("fuzz")
    for name in ("fvd", "fvd-stats"):
        app.command(name)(CORE_COMMANDS[name])
    options = ["--frames", FRAMES, "--size", SIDE, "--fps", FPS, "--threads", 1, "--skip-bad", "--json"]
    result = CliRunner().invoke(app, ["fvd", str(real), str(folder), *map(str, options)])
    if result.exception is not None:
        raise result.exception
    found = json.loads(result.stdout, parse_constant=_no_number)
    skipped = {
        os.fsencode(path).decode("utf-8", "backslashreplace").removeprefix(f"{folder}/"): reason
        for path, reason in found["skipped"].items()
    }
    return {"skipped": skipped, "used": found["n"]["generated"]}


def _no_number(text: str) -> float:
    raise AssertionError(f"{text} in JSON")


def main(jobs: list[Path]) -> None:
    """Every job in turn; the result appears whole."""
    for path in jobs:
        job = json.loads(path.read_text())
        folder, scratch = Path(job["folder"]), Path(job["scratch"])
        found = {
            "prepare": _guarded(lambda f=folder, s=scratch: prepare(f, s / "project")),
            "fvd": _guarded(lambda f=folder, j=job: fvd(f, Path(j["real"]))),
            "rss_mib": {
                name: resource.getrusage(who).ru_maxrss // 1024
                for name, who in (("self", resource.RUSAGE_SELF), ("decoders", resource.RUSAGE_CHILDREN))
            },
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found))
        temporary.replace(path.with_name(f"{path.stem}.result.json"))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
