"""`python -m flows.serve`: one host that runs `compress` every night, and on demand from the Prefect page.

It needs a Prefect server (`prefect server start`, `PREFECT_API_URL`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prefect.flows import EntrypointType

from flows.compress import compress


def main() -> None:
    """Serve the nightly deployment until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="project folder")
    parser.add_argument("--cron", default="0 2 * * *", help="when to run (cron)")
    given = parser.parse_args()
    compress.serve(
        name="nightly",
        cron=given.cron,
        parameters={"root": str(given.root.resolve())},
        entrypoint_type=EntrypointType.MODULE_PATH,  # found wherever the package is installed
    )


if __name__ == "__main__":
    main()
