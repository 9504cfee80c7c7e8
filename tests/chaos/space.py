"""`python -m tests.chaos.space`: a nano story on a disk that is full again and again.

The disk is a small tmpfs of a mount namespace that ends with this process (`unshare`, which needs no root
where user namespaces are allowed). Each time the run stops for want of room it is given some more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.looking import torn
from tests.chaos.story import CHECKOUT, Story
from tests.flows.conftest import VDMINI
from vdmini_core.artifacts import code_version, tree_digests, write_json

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
LAST_MIB = 512.0


def why_not() -> str:
    """Empty where such a disk can be made; else the reason to skip."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` here"
    with tempfile.TemporaryDirectory() as folder:
        made = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        tried = subprocess.run([*NAMESPACE, *made], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no small disk can be mounted here: {tried.stderr.strip()}"


class Disk:
    """A tmpfs of some MiB at a folder."""

    def __init__(self, folder: Path, mib: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.mib = folder, mib
        self._mount("-t", "tmpfs", "-o", f"size={self._bytes()}", "none")

    def grow(self, mib: float) -> None:
        """Room for so much more."""
        self.mib += mib
        self._mount("-o", f"remount,rw,size={self._bytes()}")

    def close(self) -> None:
        """Read-only from now on."""
        self._mount("-o", f"remount,ro,size={self._bytes()}")

    def _bytes(self) -> int:
        return round(self.mib * 2**20)

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.folder)], check=True)


def tell(folder: Path, words: list[str], first_mib: float, seed: int) -> dict[str, Any]:
    """Run `vdmini` with `words` until it has had room enough.

    Returns:
        What it said each time, whether outputs were whole then, and the digests of what it made at last.
    """
    dice, story = random.Random(seed), Story(folder, "flow")
    disk = Disk(story.root, first_mib)
    story.lay_out()
    disk.close()
    stops = [_once(story, words, disk) | {"read-only": True}]
    disk.grow(0)
    while disk.mib < LAST_MIB:
        stop = _once(story, words, disk)
        if stop["exit"] == 0:
            break
        stops.append(stop)
        disk.grow(dice.uniform(0.2, 0.2 + disk.mib / 2))
    else:
        stops.append({"mib": disk.mib, "said": "no end", "torn": [], "exit": 1})
    made = {path.name: tree_digests(path) for path in sorted((story.root / "artifacts").iterdir())}
    shutil.rmtree(story.temporary, ignore_errors=True)
    return {"stops": stops, "made": made}


def _once(story: Story, words: list[str], disk: Disk) -> dict[str, Any]:
    done = story.command(str(VDMINI), *words)
    *_, said = re.split(r"^(?=error: )", done.stderr, flags=re.MULTILINE)
    said = said if said.startswith("error: ") else done.stderr[-2000:]
    traces = done.stderr.split("Traceback (most recent call last)")[1:]
    clear = not traces and ("disk is full" in said or "is closed to this" in said)
    left = [f"{len(left)} processes"] if (left := story.left()) else []
    return {
        "mib": round(disk.mib, 2),
        "exit": done.returncode,
        "clear": clear,
        "said": said,
        "trace": traces[0][-1500:] if traces else "",
        "torn": torn(story.root) + left,
    }


def in_namespace(folder: Path, out: Path, words: list[str], first_mib: float, seed: int) -> dict[str, Any]:
    """`tell` in a namespace of its own."""
    command = [*NAMESPACE, sys.executable, "-m", "tests.chaos.space", "--inside", str(folder)]
    command += ["--out", str(out), "--mib", str(first_mib), "--seed", str(seed), *words]
    path = {"PYTHONPATH": str(CHECKOUT)}
    subprocess.run(command, check=True, cwd=CHECKOUT, env={**os.environ, **path})
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def section(told: dict[str, Any], words: list[str], seed: int) -> dict[str, Any]:
    """What was seen as a section of docs/reliability.md."""
    rows = [
        {
            "MiB": stop["mib"],
            "": "read-only" if stop.get("read-only") else "full",
            "said": stop["said"].split("\n")[0].removeprefix("error: "),
            "torn outputs": len(stop["torn"]),
        }
        for stop in told["stops"]
    ]
    return {
        "section": "A full or read-only disk",
        "order": 2,
        "seed": seed,
        "code": code_version()["digest"][:12],
        "command": f"python -m tests.chaos.space --seed {seed} {' '.join(words)}",
        "rows": rows,
        "totals": {
            "stops": len(rows),
            "without a clear error": sum(not stop["clear"] for stop in told["stops"]),
            "with torn outputs": sum(bool(stop["torn"]) for stop in told["stops"]),
        },
        "problems": [
            {"stop": number, "MiB": stop["mib"], "what": (stop["trace"] or stop["said"])[-500:]}
            for number, stop in enumerate(told["stops"], 1)
            if not stop["clear"]
        ],
    }


def main() -> None:
    """Tell one story and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", default=["run"], help="of `vdmini`")
    parser.add_argument("--inside", type=Path, help="this process is in the namespace already")
    parser.add_argument("--mib", type=float, default=0.5, help="of the disk at first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".vdmini/space.json"))
    given = parser.parse_args()
    if given.inside:
        write_json(given.out, tell(given.inside, given.words, given.mib, given.seed))
        return
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        told = in_namespace(Path(folder) / "story", out, given.words, given.mib, given.seed)
    for stop in told["stops"]:
        if not stop["clear"] or stop["torn"]:
            print(json.dumps(stop, indent=2))
    found = section(told, given.words, given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, found)
    print(json.dumps(found, indent=2))
    sys.exit(0 if set(list(found["totals"].values())[1:]) == {0} else 1)


if __name__ == "__main__":
    main()
