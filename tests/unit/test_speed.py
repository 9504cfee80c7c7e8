"""Latency, memory and operations."""

import time

import pytest
import torch
from torch import nn

from vdmini_core.metrics import compare_latency, count_flops, measure_latency, peak_memory


def test_measure_latency_counts_and_orders():
    calls = []
    found = measure_latency(lambda: calls.append(time.sleep(0.003)), warmup=2, repeats=4)
    assert len(calls) == 6
    assert found["repeats"] == 4 and found["warmup"] == 2
    assert 3 <= found["min_ms"] <= found["median_ms"] and found["iqr_ms"] >= 0


def test_compare_latency_takes_turns():
    order = []

    def sleeper(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    found = compare_latency({"slow": sleeper("slow", 0.02), "fast": sleeper("fast", 0.005)}, 1, 3)
    assert order == ["slow", "fast"] * 4
    assert found["speedup"]["slow"] == 1.0
    assert found["speedup"]["fast"] > 1.5
    assert found["latency"]["fast"]["repeats"] == 3
    turned = compare_latency({"a": lambda: None, "b": lambda: None}, 0, 1, reference="b")
    assert turned["speedup"]["b"] == 1.0


def test_peak_memory_sees_a_large_tensor():
    size = 64 * 2**20
    assert peak_memory(lambda: torch.ones(size // 4).sum()) > size // 2


def test_count_flops_needs_no_memory():
    assert count_flops(nn.Linear(8, 4), (torch.zeros(2, 8),)) == 2 * 2 * 8 * 4
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    assert count_flops(huge, (torch.zeros(1, 10**6),)) == 2 * 10**12


def test_failing_call_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
