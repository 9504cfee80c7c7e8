"""Is every guard needed? `python -m tests.chaos.mutations [--out FILE]` takes each out and sees a test fail.

The tree is copied once, never touched itself. All tests must pass in the copy as it is; then each guard of
`tests/chaos/guards.py` is taken out of it in turn, its test must fail, and it is put back. Libraries are
imported once, and each run is a fork of that process: without it a guard would cost the half minute that
they take to start. Ends with 1 where a test still passes, or a guard's text is not there any more.

FILE is written after every guard; what it says of one is not done again as long as neither the guard's
file nor its test's has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.guards import GUARDS, Guard

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("vdmini_core", "tasks", "flows", "tests", "profiles", "pyproject.toml", "params.yaml", "dvc.yaml")
COPIED += (".dvcignore", "timing", "videos", "teachers", "vbench")  # what a new project is laid out from
OURS = ("vdmini_core", "tasks", "flows", "tests", "attack_toys")
LIBRARIES = (
    "pytest", "torch", "diffusers", "transformers", "safetensors.torch", "mlflow.pyfunc", "mlflow.artifacts",
    "prefect", "prefect.artifacts", "boto3", "pandas", "PIL.Image", "matplotlib.figure", "av", "jinja2",
)  # fmt: skip
WRONG_TREE = 3
SEEN = "seen to fail without the guard"
HEAD = {
    "section": "Refused attacks",
    "order": 6,
    "about": "Each guard against foreign material, taken out of a copy of the code: its test must then fail.",
    "command": "python -m tests.chaos.mutations --out docs/reliability/attacks.json",
    "seed": 0,  # nothing is drawn
}


# A mutation that is no longer a program fails every test, and shows nothing.
BROKEN = ("NameError:", "SyntaxError:", "IndentationError:", "UnboundLocalError:")


class Outcomes:
    """Pytest plugin: what became of each test that ran."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            name = report.nodeid if report.when == "call" else f"{report.when} of {report.nodeid}"
            broken = report.failed and any(name in str(report.longrepr) for name in BROKEN)
            self.found[name] = "broken" if broken else report.outcome


def lost_guards(root: Path = ROOT) -> list[str]:
    """Guards whose text is not in its file, or not once."""
    texts = {guard.file: (root / guard.file).read_text(encoding="utf-8") for guard in GUARDS}
    counts = [(guard, texts[guard.file].count(guard.text)) for guard in GUARDS]
    return [f"{guard.name}: found {count} times in {guard.file}" for guard, count in counts if count != 1]


def outcomes(tree: Path, tests: Sequence[str], write_bytecode: bool = False) -> dict[str, str]:
    """Outcome by test, run against the code in `tree` in a fork of this process.

    Raises:
        RuntimeError: when the fork did not get as far as the tests.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            sys.dont_write_bytecode = not write_bytecode  # of a mutated file none may stay
            status = _run(tree, tests, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise RuntimeError(f"the tests did not run (status {status}): {', '.join(tests)}")
    found: dict[str, str] = json.loads(answer)
    return found


def _run(tree: Path, tests: Sequence[str], pipe: int) -> int:
    import pytest

    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(tree)
    if not Path(importlib.import_module("vdmini_core").__file__ or "").is_relative_to(tree):
        return WRONG_TREE
    plugin, said = Outcomes(), io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tree}", *tests], plugins=[plugin])
    if status not in (0, 1):
        sys.stderr.write(said.getvalue()[-3000:])
        return int(status)
    with os.fdopen(pipe, "w") as out:
        json.dump(plugin.found, out)
    return 0


def is_missed(guard: Guard, tree: Path) -> bool:
    """Whether its test fails in `tree` without it; the file is as before afterwards."""
    path = tree / guard.file
    whole, facts = path.read_bytes(), path.stat()
    try:
        path.write_bytes(whole.replace(guard.text.encode(), guard.without.encode()))
        found = outcomes(tree, [guard.test])
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # its bytecode is good again
    failed = [name for name, result in found.items() if result == "failed"]
    return any(not name.startswith(("setup", "teardown")) for name in failed)


def copy_tree(target: Path) -> None:
    """What the tests need; bytecode, too, which saves every run the compiling."""
    ignored = shutil.ignore_patterns("fixtures")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, target / name)


def main() -> int:
    """Take out, test, put back; print and write what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", default="", help="guards whose name holds this text")
    given = parser.parse_args()
    if lost := lost_guards():
        print("\n".join(lost))
        return 1
    guards = [guard for guard in GUARDS if given.only in guard.name]
    rows = _rows_of(given.out, guards)
    todo = [guard for guard in guards if guard.name not in rows]
    started = time.monotonic()
    for name in LIBRARIES if todo else ():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="vdmini-mutations-") as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        files = sorted({guard.test.partition("::")[0] for guard in todo})
        whole = outcomes(tree, files, write_bytecode=True) if todo else {}
        if failed := [name for name, result in whole.items() if result != "passed"]:
            print("these fail with all guards in place:", *failed, sep="\n")
            return 1
        for guard in todo:
            seen = is_missed(guard, tree)
            print(f"{'missed' if seen else 'NOT MISSED'}: {guard.name} ({guard.attack})", flush=True)
            row = {"guard": guard.name, "attack": guard.attack, "test": guard.test.rpartition("/")[2]}
            rows[guard.name] = {**row, "place": guard.file, SEEN: seen}
            _write(given.out, guards, rows)
    missed = sum(row[SEEN] for row in rows.values())
    print(f"{missed} of {len(guards)} guards are missed by their tests, {time.monotonic() - started:.0f} s")
    return int(missed != len(guards))


def state_of(guard: Guard) -> str:
    """A hash of the guard, its file and its test's file."""
    digest = hashlib.sha256(repr(guard).encode())
    for name in (guard.file, guard.test.partition("::")[0]):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def _rows_of(out: Path | None, guards: Sequence[Guard]) -> dict[str, dict[str, Any]]:
    """What an earlier call saw of guards that are as they were then."""
    if out is None or not out.is_file():
        return {}
    table = json.loads(out.read_text(encoding="utf-8"))
    kept = {row["guard"]: row for row in table["rows"] if row[SEEN]}
    alike = {guard.name for guard in guards if table["states"].get(guard.name) == state_of(guard)}
    return {name: row for name, row in kept.items() if name in alike}


def _write(out: Path | None, guards: Sequence[Guard], rows: dict[str, dict[str, Any]]) -> None:
    if out is None:
        return
    listed = [rows[guard.name] for guard in guards if guard.name in rows]
    totals = {"guards": len(guards), "tried": len(listed), SEEN: sum(row[SEEN] for row in listed)}
    states = {guard.name: state_of(guard) for guard in guards if guard.name in rows}
    table = {**HEAD, "rows": listed, "totals": totals, "states": states}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
