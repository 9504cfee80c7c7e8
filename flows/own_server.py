"""The Prefect server that a run starts for itself: out of Ctrl-C's reach, and gone with the run."""

from __future__ import annotations

from tasks.apart import started_apart


def start_own_server() -> None:
    """Start Prefect's temporary server, if its settings mean one; call from the main thread before a flow.

    Prefect would start it in the process group of the run. Ended by the same Ctrl-C, it left a run that
    waited for it without end.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    from prefect.server.api.server import SubprocessASGIServer

    with started_apart(end_with_thread=True):
        SubprocessASGIServer().start()
