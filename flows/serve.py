"""`python -m flows.serve`: compresses every night, looks at the champion every week, promotes on demand.

For one host without a work pool. It needs a Prefect server (`prefect server start`, `PREFECT_API_URL`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.quiet import patient_clients


def main() -> None:
    """Serve the deployments until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="project folder")
    parser.add_argument("--cron", default="0 2 * * *", help="when to compress (cron)")
    parser.add_argument("--weekly", default="0 6 * * 1", help="when to look at the champion (cron)")
    parser.add_argument("--gpu-slots", type=int, help="GPUs that all runs have between them")
    given = parser.parse_args()
    patient_clients()  # before Prefect reads its settings; the runs inherit them

    from prefect import serve
    from prefect.flows import EntrypointType

    from flows.compress import compress
    from flows.evaluate_registered import evaluate_registered
    from flows.promotion import promote
    from flows.server_rules import apply_rules

    for line in apply_rules(given.gpu_slots):
        print(line, flush=True)
    # found wherever the package is installed; each once at a time
    common = {
        "parameters": {"root": str(given.root.resolve())},
        "entrypoint_type": EntrypointType.MODULE_PATH,
        "concurrency_limit": 1,
    }
    serve(
        compress.to_deployment("nightly", cron=given.cron, **common),
        evaluate_registered.to_deployment("weekly", cron=given.weekly, **common),
        promote.to_deployment("on-demand", **common),
    )


if __name__ == "__main__":
    main()
