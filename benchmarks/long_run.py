"""Claims: a long recovery holds its memory, its files and its pace.

python benchmarks/long_run.py WORKSPACE [--minutes 60] [--checkpoint-every 100]

`vdmini distill` itself, on Ray, in a workspace that has a pruned student (any `vdmini run` leaves one), with
more steps than the time allows; it is told to stop (SIGTERM) when the time is over, and saves itself. Half a
second apart, the driver's and each worker's memory of their own (RssAnon), open files and processor time are
read beside the number of steps done. Within a step memory rises by activations, so after a warm-up the least
of each of forty stretches of steps is taken; a line through those, with its standard error: at most 1 MB
per 1,000 steps. Open files may not grow (medians of the first and the last third, as a checkpoint opens some
for a moment). Pace is processor seconds of a worker a step,
the last third against the first, over those of a matrix product that this process makes beside it: programs
on the other core add to both, as caches and memory are shared. Checkpoints, students
beside them, validations and sample videos are part of it, as in any run. Called again within the workspace
it goes on from the last checkpoint, and the samples are added.

What malloc has handed out at the end of each step, as the first worker logs it to MLflow
(`memory/in_use_mib`), is judged beside it: the resident memory of a process that leaks nothing moves with how
its allocator is cut into pieces, in steps of tens of MB.

The result is `benchmarks/results/long_run-DATE.json` and a chart, and a section of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from tasks.recovery_checkpoints import read_rows
from tasks.tracking import connect, experiment_id
from vdmini_core.artifacts import code_version, library_versions, write_json
from vdmini_core.metrics.speed import device_name
from vdmini_core.report.figures import PALETTE, house_style, save

RESULTS = Path(__file__).parent / "results"
RELIABILITY = Path(__file__).parents[1] / "docs" / "reliability" / "long-run.json"
EVERY_S, WARM_UP, STRETCHES = 0.5, 0.2, 40
SLOPE_MB, PACE = 1.0, 0.05
STEPS = 1_000_000
_SQUARE = np.random.default_rng(0).standard_normal((512, 512), np.float32)


def own_memory(process: psutil.Process) -> float:
    """MB that no other process shares and no file backs."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", text)[0]) / 1024


def watched(driver: psutil.Process) -> dict[str, psutil.Process]:
    """The driver and its training workers."""
    found = {"driver": driver}
    for process in driver.children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            found[f"worker {len(found) - 1}"] = process
    return found


def yardstick() -> float:
    """Processor seconds of work that is always the same: neighbours in the caches add to them as well."""
    began = time.process_time()
    for _ in range(4):
        _SQUARE @ _SQUARE
    return round(time.process_time() - began, 6)


def sample(driver: psutil.Process, work: Path) -> dict[str, Any] | None:
    """One look; None before the training."""
    rows = read_rows(next(iter(sorted(work.glob("*/losses.jsonl"))), work / "none"))
    if not rows:
        return None
    seen: dict[str, Any] = {
        "step": rows[-1]["step"],
        "time": round(time.time(), 1),
        "yardstick_s": yardstick(),
    }
    for name, process in watched(driver).items():
        with process.oneshot():
            used = process.cpu_times()
            seen[name] = {
                "mb": round(own_memory(process), 3),
                "files": process.num_fds(),
                "threads": process.num_threads(),
                "cpu_s": round(used.user + used.system, 2),
                "pid": process.pid,
            }
    return seen


def train(workspace: Path, minutes: float, command: list[str], log: Path) -> None:
    """Run the stage for that long, a line of `log` every ten seconds."""
    work = workspace / ".vdmini" / "work" / "distill"
    process = subprocess.Popen(command, cwd=workspace, stdout=subprocess.DEVNULL)
    driver, until = psutil.Process(process.pid), time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < until and process.poll() is None:
            time.sleep(EVERY_S)
            try:
                seen = sample(driver, work)
            except (psutil.Error, OSError, IndexError):
                continue  # one has just ended, or is a zombie, which has no memory of its own
            if seen is not None:
                with log.open("a") as lines:
                    lines.write(json.dumps(seen) + "\n")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def line(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope per 1,000 steps of the least-squares line, and its standard error."""
    x = steps - steps.mean()
    slope = float((x * values).sum() / (x**2).sum())
    rest = values - values.mean() - slope * x
    error = float(np.sqrt((rest**2).sum() / max(1, len(x) - 2) / (x**2).sum()))
    return 1000 * slope, 1000 * error


def floor(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least value of each of some equal stretches of steps: within a step memory rises by activations."""
    edges = np.linspace(steps[0], steps[-1], min(STRETCHES, len(steps)) + 1)[1:-1]
    of = np.digitize(steps, edges)
    kept = [np.flatnonzero(of == index) for index in np.unique(of)]
    least = [members[np.argmin(values[members])] for members in kept]
    return steps[least], values[least]


def judge(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes of each process over the samples of the longest stretch with the same processes."""
    stretches: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for seen in samples:
        pids = tuple(part["pid"] for part in seen.values() if isinstance(part, dict))
        stretches.setdefault(pids, []).append(seen)
    kept = max(stretches.values(), key=len)
    # The curve of an earlier run is read until the workers begin theirs.
    falls = [i for i in range(1, len(kept)) if kept[i]["step"] < kept[i - 1]["step"]]
    kept = kept[falls[-1] if falls else 0 :]
    first, last = kept[0]["step"], kept[-1]["step"]
    kept = [seen for seen in kept if seen["step"] >= first + WARM_UP * (last - first)]
    steps = np.array([seen["step"] for seen in kept], float)
    found: dict[str, Any] = {"from_step": kept[0]["step"], "to_step": last, "samples": len(kept)}
    for name in (key for key, part in kept[0].items() if isinstance(part, dict)):
        series = {
            key: np.array([seen[name][key] for seen in kept], float) for key in ("mb", "files", "cpu_s")
        }
        slope, error = line(*floor(steps, series["mb"]))
        third = len(kept) // 3
        pace = [
            (series["cpu_s"][b - 1] - series["cpu_s"][a]) / max(1.0, steps[b - 1] - steps[a])
            for a, b in ((0, third), (len(kept) - third, len(kept)))
        ]
        yards = [
            np.median([seen.get("yardstick_s", 1.0) for seen in part])
            for part in (kept[:third], kept[-third:])
        ]
        found[name] = {
            "mb_per_1000_steps": round(slope, 4),
            "standard_error": round(error, 4),
            "mb": [round(float(series["mb"].min()), 1), round(float(series["mb"].max()), 1)],
            "files": [float(np.median(part)) for part in (series["files"][:third], series["files"][-third:])],
            "cpu_s_per_step": [round(p, 4) for p in pace],
            "yardstick_s": [round(float(y), 6) for y in yards],
        }
    return found


def in_use(workspace: Path, first: int, last: int) -> dict[str, Any]:
    """Slope of what malloc has handed out to the first worker, over the same steps."""
    client = connect(workspace)
    (run,) = client.search_runs(
        [experiment_id(client, workspace)],
        "attributes.run_name = 'distill'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    points = client.get_metric_history(run.info.run_id, "memory/in_use_mib")
    kept = sorted((point.step, point.value) for point in points if first <= point.step <= last)
    steps, values = np.array(kept, float).T
    slope, error = line(steps, values)
    return {
        "mb_per_1000_steps": round(slope, 4),
        "standard_error": round(error, 4),
        "mb": [round(float(values.min()), 3), round(float(values.max()), 3)],
        "steps": len(kept),
    }


def verdicts(found: dict[str, Any]) -> dict[str, Any]:
    """The claims, of the driver and every worker."""
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    told = {}
    for name, part in parts.items():
        slope = part["mb_per_1000_steps"]
        told[f"{name}: resident memory rises by less than {SLOPE_MB:g} MB per 1,000 steps"] = {
            "holds": bool(slope < SLOPE_MB),
            "found": f"{slope} ± {part['standard_error']}",
        }
        told[f"{name}: open files do not rise"] = {
            "holds": part["files"][1] <= part["files"][0],
            "found": part["files"],
        }
        if "in_use" in part:
            rise = part["in_use"]["mb_per_1000_steps"]
            told[f"{name}: memory in use rises by less than {SLOPE_MB:g} MB per 1,000 steps"] = {
                "holds": bool(rise < SLOPE_MB),
                "found": f"{rise} ± {part['in_use']['standard_error']}",
            }
        if name != "driver":
            pace, yard = (last / first for first, last in (part["cpu_s_per_step"], part["yardstick_s"]))
            told[f"{name}: the pace holds within {PACE:.0%}"] = {
                "holds": bool(pace <= (1 + PACE) * yard),
                "found": f"{pace:.4f}, a yardstick {yard:.4f}",
            }
    return told


def section(found: dict[str, Any], minutes: float) -> dict[str, Any]:
    """For `python -m tests.chaos.page`, with the claims that do not hold."""
    failed = {claim: told["found"] for claim, told in verdicts(found).items() if not told["holds"]}
    rows = [
        {
            "process": name,
            "in use, MB per 1,000 steps": "{mb_per_1000_steps} ± {standard_error}".format(**part["in_use"])
            if "in_use" in part
            else "",
            "resident, MB per 1,000 steps": f"{part['mb_per_1000_steps']} ± {part['standard_error']}",
            "MB": f"{part['mb'][0]} to {part['mb'][1]}",
            "open files, first and last third": "{:g} and {:g}".format(*part["files"]),
            "processor s a step, first and last third": "{} and {}".format(*part["cpu_s_per_step"]),
        }
        for name, part in found.items()
        if isinstance(part, dict)
    ]
    return {
        "section": "A long recovery",
        "order": 9,
        "about": "`vdmini distill` on Ray with the mini teacher, checkpoints and validations among it; after "
        f"a warm-up of {WARM_UP:.0%} of the steps. In use is what malloc has handed out after a step; "
        "resident memory moves with how the allocator is cut into pieces. The pace of the driver is that of "
        "one that waits.",
        "seed": 0,
        "code": code_version()["digest"][:12],
        "command": "python benchmarks/long_run.py WORKSPACE",
        "rows": rows,
        "totals": {
            "minutes": minutes,
            "steps looked at": found["to_step"] - found["from_step"],
            "claims that fail": len(failed),
        },
        "problems": [{"claim that fails": claim, "found": str(told)} for claim, told in failed.items()],
    }


def chart(samples: list[dict[str, Any]], path: Path) -> None:
    """Memory against steps."""
    with house_style():
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        names = sorted({key for seen in samples for key, part in seen.items() if isinstance(part, dict)})
        for name, colour in zip(names, ("muted", "content", "motion"), strict=False):
            rows = [(seen["step"], seen[name]["mb"]) for seen in samples if name in seen]
            axes.plot(*zip(*rows, strict=True), color=PALETTE[colour], label=name, linewidth=1.2)
        axes.set(xlabel="steps", ylabel="memory of its own, MB", ylim=(0, None))
        axes.legend(frameon=False)
        save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    log = workspace / ".vdmini" / "long_run.jsonl"
    every = arguments.checkpoint_every
    change = ["--set", f"distill.steps={STEPS}", "--set", f"distill.checkpoint_every={every}"]
    command = [str(Path(sys.executable).with_name("vdmini")), "distill", *change]
    train(workspace, arguments.minutes, command, log)
    samples = [json.loads(text) for text in log.read_text().splitlines()]
    found = judge(samples)
    found["worker 0"]["in_use"] = in_use(workspace, found["from_step"], found["to_step"])
    result = {
        **found,
        "verdicts": verdicts(found),
        "settings": {"minutes": arguments.minutes, "checkpoint_every": every, "every_s": EVERY_S},
        "hardware": device_name(),
        "libraries": library_versions(),
    }
    path = RESULTS / f"long_run-{datetime.date.today().isoformat()}.json"
    write_json(path, result)
    write_json(RELIABILITY, section(found, arguments.minutes))
    chart(samples, path.with_suffix(".png"))
    for claim, verdict in result["verdicts"].items():
        print("holds" if verdict["holds"] else "FAILS", claim, verdict["found"])
    print(path)


if __name__ == "__main__":
    main()
