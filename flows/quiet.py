"""Settings of the servers a run starts for itself: local, quiet, no phoning home. What is set stays set."""

from __future__ import annotations

import os

_DEFAULTS = {
    # The terminal gets our own lines; the run page keeps the full log with tracebacks.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Its first start on a machine makes a database: two slow cores need more than the default 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",  # it asks for torchvision, which nothing here needs
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# A server may be away for some minutes (a restart, a moved database) without a run ending over it. MLflow's
# client and boto3 wait that long by themselves. Prefect's answers 500 while its database does not answer.
_PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "7", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504"}


def quiet_servers() -> None:
    """Set defaults before the libraries are imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    patient_clients()
    os.environ["VDMINI_DRIVER"] = "dvc" if "DVC_STAGE" in os.environ else "flow"


def patient_clients() -> None:
    """Set how long Prefect's client waits for its server; before Prefect is imported."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
