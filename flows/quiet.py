"""Settings of the servers a run starts for itself: local, quiet, no phoning home. What is set stays set."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.tracking import project_home

_DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_servers(root: Path) -> None:
    """Set defaults before the libraries are imported; a running Prefect server keeps its own home."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and "PREFECT_PROFILE" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(project_home(root) / ".vdmini" / "prefect"))
    os.environ["VDMINI_DRIVER"] = "dvc" if "DVC_STAGE" in os.environ else "flow"
