"""What a killed `register` leaves in MLflow: a logged model, whole or not, that no version names."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


def drop_unregistered(client: MlflowClient, experiment: str, run_id: str) -> list[str]:
    """Delete the logged models of a killed run that did not become a version; returns their ids.

    The next `register` logs its own: MLflow would show the others as pending for ever.
    """
    try:
        found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
        if not found:
            return []
        sources = {version.source for version in client.search_model_versions(f"run_id = '{run_id}'")}
    except MlflowException:  # a server of before there were logged models
        return []
    left = [model.model_id for model in found if f"models:/{model.model_id}" not in sources]
    for model_id in left:
        client.delete_logged_model(model_id)
    return left
