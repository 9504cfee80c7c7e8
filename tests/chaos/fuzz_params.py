"""Fed anything: drawn texts as `params.yaml`, and what the product makes of each before any work starts.

`python -m tests.chaos.fuzz_params --params 500 --seed 7 --state .vdmini/chaos --out FILE.json`; stopped, it
goes on with the next one. A text is accepted, and then a dry run must end with its lines or an error of ours,
or it is refused by an error of ours; both readers of the file (`run` and `--set`) must agree, and nothing may
be written.
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
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.param_cases import draw
from vdmini_core.artifacts import code_version
from vdmini_core.errors import ParamsError, VDMiniError
from vdmini_core.params import Params, load_params

CASE_S = 60.0  # of the processor's time: a case that takes more hangs, on however busy a machine
STILL_S = 900.0  # without a new line: the process hangs where no alarm reaches it
PEAK_MIB = 2048
COLUMNS = ("count", "accepted", "rejected", "crashed", "hung", "forgotten", "disagreed", "wrote")
_BATCH = 250


class TooLong(BaseException):
    """The alarm of a case."""


def _alarm(*_: object) -> None:
    raise TooLong


def judge(root: Path, text: bytes, *, dry: bool = True) -> dict[str, str]:
    """What the product makes of one text in a project folder: `fate`, and what was said.

    Args:
        root: a project that was laid out.
        text: of its params.yaml.
        dry: let a dry run plan with what is accepted.
    """
    from tasks.project import preview_params

    path = root / "params.yaml"
    path.write_bytes(text)
    before = sorted(root.rglob("*"))
    fates: dict[str, dict[str, str]] = {}
    accepted: Params | None = None
    for reader, read in (("run", lambda: load_params(path)), ("set", lambda: preview_params(root))):
        try:
            found = read()
        except ParamsError as error:
            fates[reader] = {"fate": "rejected", "said": str(error)}
        except TooLong:
            return {"fate": "hung", "said": reader}
        except Exception:
            return {"fate": "crashed", "said": f"{reader}: {traceback.format_exc()}"}
        else:
            fates[reader] = {"fate": "accepted", "said": ""}
            accepted = found if reader == "run" else accepted
    if fates["run"]["fate"] != fates["set"]["fate"] and not _empty(fates):
        return {"fate": "disagreed", "said": f"{fates}"}
    outcome = fates["run"] if accepted is None or not dry else _dry_run(root, accepted)
    if sorted(root.rglob("*")) != before or path.read_bytes() != text:
        return {"fate": "wrote", "said": outcome["said"]}
    return outcome


def _empty(fates: dict[str, dict[str, str]]) -> bool:
    """`--set` edits a file, so that it needs one with something in it; a run takes the defaults."""
    return "there is no params.yaml here" in fates["set"]["said"]


def _dry_run(root: Path, params: Params) -> dict[str, str]:
    from tasks.dry_run import examine_run, to_rows

    try:
        json.dumps(to_rows(examine_run(root, params)), allow_nan=False)
    except VDMiniError as error:
        return {"fate": "rejected", "said": str(error)}
    except TooLong:
        return {"fate": "hung", "said": "dry run"}
    except Exception:
        return {"fate": "crashed", "said": f"dry run: {traceback.format_exc()}"}
    return {"fate": "accepted", "said": ""}


def work(seed: int, indices: list[int], log: Path, root: Path) -> None:
    """The child's part: a line before each case and a line after it."""
    from tasks.project import lay_out

    if not root.exists():
        lay_out(root)
    _dry_run(root, Params())  # the libraries come in here, which is no case's own time
    signal.signal(signal.SIGPROF, _alarm)
    with log.open("a", encoding="utf-8") as lines:
        for index in indices:
            kind, text = draw(seed, index)
            started = time.process_time()
            print(json.dumps({"begun": index, "kind": kind}), file=lines, flush=True)
            signal.setitimer(signal.ITIMER_PROF, CASE_S)
            try:
                found = judge(root, text)
            except TooLong:
                found = {"fate": "hung", "said": ""}
            signal.setitimer(signal.ITIMER_PROF, 0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            facts = {
                "index": index,
                "kind": kind,
                "seconds": round(time.process_time() - started, 2),
                "peak_mib": peak,
            }
            print(json.dumps({**facts, **found}), file=lines, flush=True)


def run(seed: int, count: int, state: Path) -> list[dict[str, Any]]:
    """Every case that has no line of this code yet, in child processes; lines in the order of the cases."""
    folder = state / f"fuzz-params-{seed}-{code_version()['digest'][:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "cases.jsonl"
    while missing := [index for index in range(count) if index not in _known(log)]:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.chaos.fuzz_params", "--seed", str(seed)),
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


def document(seed: int, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, as it is committed."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        counts.setdefault(case["kind"], Counter()).update({"count": 1, case["fate"]: 1})
    rows = [{"kind": kind, **{column: row[column] for column in COLUMNS}} for kind, row in counts.items()]
    totals: dict[str, Any] = {column: sum(row[column] for row in rows) for column in COLUMNS}
    totals["forgotten"] = len(cases) - sum(totals[fate] for fate in COLUMNS[1:] if fate != "forgotten")
    totals["peak_mib"] = max(case.get("peak_mib", 0) for case in cases)
    totals["slowest_s"] = max(case.get("seconds", 0) for case in cases)
    bad = [case for case in cases if case["fate"] not in ("accepted", "rejected")]
    totals["noticed"] = [f"{case['index']} ({case['kind']}): {case['fate']} {case['said']}" for case in bad]
    head = {"section": "Fed any parameters", "order": 4, "command": "make chaos"}
    about = "Parameter files drawn from a seed, as a run and as `--set` read them; good ones get a dry run."
    code = code_version()["digest"][:12]
    return {**head, "about": about, "seed": seed, "code": code, "rows": rows, "totals": totals}


def faults(totals: dict[str, Any]) -> list[str]:
    """Why a result is not what was promised."""
    found = [f"{totals[name]} {name}" for name in COLUMNS[3:] if totals[name]]
    if totals["peak_mib"] > PEAK_MIB:
        found.append(f"{totals['peak_mib']} MiB resident, above {PEAK_MIB}")
    return found


def main() -> int:
    """The long form, or with `--work` a child of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", type=Path, default=Path(".vdmini/chaos"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    state = options.state.resolve()
    if options.work is not None:
        work(options.seed, options.work, state / "cases.jsonl", state / "project")
        return 0
    if options.out is None:
        parser.error("--out FILE.json is missing")
    found = document(options.seed, run(options.seed, options.params, state))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    for line in (*found["totals"]["noticed"], *faults(found["totals"])):
        print(line)
    return bool(faults(found["totals"]))


if __name__ == "__main__":
    sys.exit(main())
