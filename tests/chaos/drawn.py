"""Drawn cases, one after the other in child processes: a case that kills or stops its process is one too.

What a fuzz of texts brings is a `Campaign`; stopped, it goes on with the next case, as long as the code is
the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import code_version

CASE_S = 60.0  # of the processor's time: a case that takes more hangs, on however busy a machine
WAIT_S = 300.0  # by the clock: one that waits for something
STILL_S = 900.0  # without a new line: the process hangs where no alarm reaches it
PEAK_MIB = 2048
FINE = ("accepted", "rejected")
# What no case may do: start a program, or ask the network. (Files are looked at by the campaigns.)
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
_NETWORK = ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname")
_BATCH = 250


class TooLong(BaseException):
    """The alarm of a case."""


def _alarm(*_: object) -> None:
    raise TooLong


def _timers(processor_s: float, clock_s: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)


class Watch:
    """What this process does that no case may make it do, by Python's own audit events."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if event.startswith((*_PROGRAMS, *_NETWORK)):
            self.seen.append(f"{event} {given}"[:200])


@dataclass(frozen=True)
class Campaign:
    """What is drawn and how it is judged.

    Attributes:
        module: that can be started with `--work`.
        name: of its folder of state.
        draw: kind and case, from the place that `prepare` made, a seed and a number.
        prepare: makes the place, once, and brings the libraries in, which is no case's own time.
        judge: `fate` of a case, and what was said.
        fates: the columns; all but `accepted` and `rejected` must stay empty.
        head: of the committed table.
    """

    module: str
    name: str
    draw: Callable[[Path, int, int], tuple[str, bytes]]
    prepare: Callable[[Path], None]
    judge: Callable[[Path, bytes], dict[str, str]]
    fates: tuple[str, ...]
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("count", *self.fates)


def work(campaign: Campaign, seed: int, indices: list[int], log: Path, root: Path) -> None:
    """The child's part: a line before each case and a line after it."""
    campaign.prepare(root)
    watch = Watch()
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _alarm)
    with log.open("a", encoding="utf-8") as lines:
        for index in indices:
            kind, case = campaign.draw(root, seed, index)
            started = time.process_time()
            print(json.dumps({"begun": index, "kind": kind}), file=lines, flush=True)
            _timers(CASE_S, WAIT_S)
            watch.seen.clear()
            try:
                found = campaign.judge(root, case)
            except TooLong:
                found = {"fate": "hung", "said": ""}
            _timers(0, 0)
            if watch.seen:
                fate = "executed" if any(seen.startswith(_PROGRAMS) for seen in watch.seen) else "asked"
                found = {"fate": fate, "said": "; ".join(watch.seen)[:300]}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            facts = {
                "index": index,
                "kind": kind,
                "seconds": round(time.process_time() - started, 2),
                "peak_mib": peak,
            }
            print(json.dumps({**facts, **found}), file=lines, flush=True)


def run(campaign: Campaign, seed: int, count: int, state: Path) -> list[dict[str, Any]]:
    """Every case that has no line of this code yet, in child processes; lines in the order of the cases."""
    folder = state / f"{campaign.name}-{seed}-{code_version()['digest'][:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "cases.jsonl"
    while missing := [index for index in range(count) if index not in _known(log)]:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", campaign.module, "--seed", str(seed)),
                *("--state", str(folder), "--work", *map(str, missing[:_BATCH])),
            ],
            start_new_session=True,
        )
        try:
            ended = _watch(child, log)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        begun = _last_begun(log)
        if ended and begun is None:
            raise RuntimeError(f"the process ended before its first case: {ended}")
        if ended and begun is not None:
            with log.open("a", encoding="utf-8") as lines:
                print(
                    json.dumps({**begun, "index": begun["begun"], "fate": ended, "said": "the process"}),
                    file=lines,
                )
    known = _known(log)
    return [known[index] for index in range(count)]


def _watch(child: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the child; `hung` when nothing new comes from it, `crashed` when it dies."""
    size, since = -1, time.monotonic()
    while child.poll() is None:
        now = log.stat().st_size if log.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STILL_S:
            return "hung"
        time.sleep(0.2)
    return "crashed" if child.returncode else ""


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _known(log: Path) -> dict[int, dict[str, Any]]:
    return {line["index"]: line for line in _lines(log) if "index" in line}


def _last_begun(log: Path) -> dict[str, Any] | None:
    lines = _lines(log)
    return lines[-1] if lines and "index" not in lines[-1] else None


def document(campaign: Campaign, seed: int, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, as it is committed."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        counts.setdefault(case["kind"], Counter()).update({"count": 1, case["fate"]: 1})
    columns = campaign.columns
    rows = [{"kind": kind, **{column: row[column] for column in columns}} for kind, row in counts.items()]
    totals: dict[str, Any] = {column: sum(row[column] for row in rows) for column in columns}
    totals["forgotten"] = len(cases) - sum(totals[fate] for fate in columns[1:] if fate != "forgotten")
    totals["peak_mib"] = max(case.get("peak_mib", 0) for case in cases)
    totals["slowest_s"] = max(case.get("seconds", 0) for case in cases)
    bad = [case for case in cases if case["fate"] not in FINE]
    totals["noticed"] = [f"{case['index']} ({case['kind']}): {case['fate']} {case['said']}" for case in bad]
    code = code_version()["digest"][:12]
    return {**campaign.head, "seed": seed, "code": code, "rows": rows, "totals": totals}


def faults(campaign: Campaign, totals: dict[str, Any]) -> list[str]:
    """Why a result is not what was promised."""
    found = [f"{totals[name]} {name}" for name in campaign.fates if name not in FINE and totals[name]]
    if totals["peak_mib"] > PEAK_MIB:
        found.append(f"{totals['peak_mib']} MiB resident, above {PEAK_MIB}")
    return found


def main(campaign: Campaign, about: str | None) -> int:
    """The long form, or with `--work` a child of it."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", type=Path, default=Path(".vdmini/chaos"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    state = options.state.resolve()
    if options.work is not None:
        work(campaign, options.seed, options.work, state / "cases.jsonl", state / "place")
        return 0
    if options.out is None:
        parser.error("--out FILE.json is missing")
    found = document(campaign, options.seed, run(campaign, options.seed, options.count, state))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    for line in (*found["totals"]["noticed"], *faults(campaign, found["totals"])):
        print(line)
    return bool(faults(campaign, found["totals"]))
