"""A local Ray session that is slow to start is asked for again; whatever else is wrong is told at once."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from tasks.ray_runtime import ray_session

SLOW = "The current node timed out during startup."


def answers(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> list[dict[str, Any]]:
    """`ray.init` raises these in turn (None: it starts); what it was called with."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append(options)
        if error := errors[len(calls) - 1]:
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    calls = answers(monkeypatch, Exception(SLOW), Exception(SLOW), None)
    with ray_session(num_cpus=1):
        assert len(calls) == 3 and all(call["_node_ip_address"] == "127.0.0.1" for call in calls)


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_other_errors_and_a_cluster_are_not(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    error = Exception("no such option")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        error = Exception(SLOW)
    calls = answers(monkeypatch, error)
    with pytest.raises(Exception, match=str(error)), ray_session(num_cpus=1):
        pass
    assert len(calls) == 1
