"""`make audit`: the lock file against the advisory database, and honestly so where there is none to ask.

pip-audit, which asks, counts a package that its database does not know as skipped and ends with success;
behind a mirror without advisories that is every package, and "nothing known" would be a lie.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
NOT_ASKED = 3  # exit status: nothing was found out


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit status and lines to print, of pip-audit's list of dependencies."""
    skipped = [d["name"] for d in dependencies if "skip_reason" in d]
    asked = len(dependencies) - len(skipped)
    found = [(d, each) for d in dependencies for each in d.get("vulns", ())]
    lines = [
        f"{d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version'}"
        for d, v in found
    ]
    if not asked:
        return NOT_ASKED, [
            "NOT AUDITED: the advisory database cannot be reached, or knows none of the packages"
        ]
    if skipped:
        lines.append(f"not known to the database: {', '.join(skipped)}")
    lines.append(f"{asked} of {len(dependencies)} packages looked up, {len(found)} advisories")
    return int(bool(found)), lines


def main() -> int:
    """Ask, print, and end with 0 (nothing known), 1 (advisories) or 3 (not audited)."""
    command = [sys.argv[1], "--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        dependencies = []
    status, lines = verdict(dependencies)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
