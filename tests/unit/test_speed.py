"""Latency, memory and operations."""

import time

import pytest
import torch
from torch import nn

from vdmini_core.metrics import compare_latency, count_flops, measure_latency, peak_memory, speed
from vdmini_core.metrics.speed import parameter_bytes


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
    low, high = found["speedup_range"]["fast"]
    assert 1.5 < low <= found["speedup"]["fast"] <= high
    assert found["speedup_range"]["slow"] == [1.0, 1.0]
    assert found["latency"]["fast"]["repeats"] == 3
    turned = compare_latency({"a": lambda: None, "b": lambda: None}, 0, 1, reference="b")
    assert turned["speedup"]["b"] == 1.0


SIZE = 64 * 2**20


def test_peak_memory_sees_a_large_tensor():
    assert SIZE * 0.9 < peak_memory(lambda: torch.ones(SIZE // 4).sum()) < SIZE * 1.5


def test_peak_memory_is_the_same_again_and_again():
    """What the first call leaves free in the process must not hide the second one's need."""

    def many_small():
        return [torch.ones(2**14) for _ in range(512)]  # 32 MiB in pieces the C library keeps

    found = [peak_memory(many_small) for _ in range(3)]
    assert min(found) > 0.8 * 2**25 and max(found) < 1.5 * 2**25


def test_peak_memory_is_sampled_where_the_kernel_keeps_no_mark(monkeypatch):
    monkeypatch.setattr(speed, "_reset_high_water", lambda: False)

    def held():
        kept = torch.ones(SIZE // 4)
        time.sleep(0.05)
        return kept.sum()

    assert peak_memory(held) > SIZE * 0.9


def test_parameter_bytes_counts_the_type():
    assert parameter_bytes(nn.Linear(3, 2)) == 4 * 8
    assert parameter_bytes(nn.BatchNorm1d(2).half()) == 2 * 8 + 8  # and a counter of 64 bits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_by_its_own_events_and_its_allocator():
    left = torch.randn(4096, 4096, device="cuda")
    wall = time.perf_counter()
    found = measure_latency(lambda: [left @ left for _ in range(20)], 1, 3, device="cuda")
    assert 0 < found["median_ms"] < (time.perf_counter() - wall) * 1e3
    queued = measure_latency(lambda: torch.cuda._sleep(100_000_000), 1, 3, device="cuda")
    assert queued["median_ms"] > 10  # queueing alone takes microseconds
    assert peak_memory(lambda: torch.empty(SIZE, dtype=torch.uint8, device="cuda"), device="cuda") == SIZE


def test_count_flops_needs_no_memory():
    assert count_flops(nn.Linear(8, 4), (torch.zeros(2, 8),)) == 2 * 2 * 8 * 4
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    assert count_flops(huge, (torch.zeros(1, 10**6),)) == 2 * 10**12


def test_failing_call_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
