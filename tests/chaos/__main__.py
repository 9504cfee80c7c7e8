"""`python -m tests.chaos`: everything of `make chaos`, one after the other, and the page at the end.

A part that finds something does not keep the others from being made; the exit status says so at last. Each
part goes on where it stopped, as long as the code is the same.
"""

from __future__ import annotations

import subprocess
import sys

STATE, OUT = ".vdmini/chaos", "docs/reliability"
PARTS = (
    f"-m tests.chaos.fuzz_files --files 1000 --seed 7 --state {STATE} --out {OUT}/fuzz-files.json",
    f"-m tests.chaos.fuzz_params --count 500 --seed 7 --state {STATE} --out {OUT}/fuzz-params.json",
    f"-m tests.chaos.fuzz_configs --count 500 --seed 7 --state {STATE} --out {OUT}/fuzz-configs.json",
    f"-m tests.chaos.mutations --out {OUT}/attacks.json",
    f"-m tests.chaos.space --out {OUT}/space.json run",
    "-m pytest tests/chaos -m long",
    f"-m tests.chaos.kills --hours 1.2 --seed 11 --state {STATE}/kills --out {OUT}/kills.json",
    "-m tests.chaos.page",
)


def main() -> int:
    """Run all; 1 where one of them found something."""
    found = []
    for part in PARTS:
        print(f"== python {part}", flush=True)
        if subprocess.run([sys.executable, *part.split()], check=False).returncode:
            found.append(part)
    for part in found:
        print(f"found something: python {part}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
