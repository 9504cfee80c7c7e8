"""Sharing what lies before a unit: the same bits, fewer modules computed, nothing left behind."""

from __future__ import annotations

import dataclasses

import pytest
import svd_toys as toys
import torch

from vdmini_core.models.registry import fingerprint
from vdmini_core.profiling.sensitivity import prepare_inputs, profile_unit, record_shared
from vdmini_core.profiling.sharing import start_of

MUCH = 2**40


def inputs_of(pipeline, steps=1, guidance=1.0):
    settings = dataclasses.replace(toys.SETTINGS, steps=steps, guidance=guidance)
    clips = torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8)
    return prepare_inputs(pipeline, toys.FAMILY, clips, settings, seed=1, batch_size=2)


@pytest.fixture(scope="module")
def pipeline():
    return toys.tiny_pipeline()


@pytest.fixture(scope="module")
def inputs(pipeline):
    return inputs_of(pipeline)


def rows(pipeline, inputs, names, variant="removed", traces=()):
    return {
        name: profile_unit(pipeline, toys.FAMILY, name, variant, inputs, {}, {}, traces) for name in names
    }


@pytest.mark.parametrize(("variant", "granularity"), [("removed", "both"), ("replaced", "block")])
def test_every_unit_gives_the_same_bits(pipeline, inputs, variant, granularity):
    names = [unit.name for unit in toys.FAMILY.units(pipeline.unet, inputs.settings, granularity)]
    before = fingerprint(pipeline.unet)
    traces = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    assert len(traces) == 2
    found = rows(pipeline, inputs, names, variant, traces)
    assert found == rows(pipeline, inputs, names, variant)
    assert len({row["paired_mse"] for row in found.values()}) > len(names) // 2
    assert fingerprint(pipeline.unet) == before
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_later_steps_and_guidance_run_whole(pipeline):
    inputs = inputs_of(pipeline, steps=3, guidance=2.0)
    traces = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    names = ("D.0.pair.1", "M", "U.2", "U.3.pair.2")
    assert len(traces) == 2
    assert rows(pipeline, inputs, names, traces=traces) == rows(pipeline, inputs, names)


@pytest.mark.parametrize("removed", [toys.PAPER, ("D.0.pair.1", "M", "U.1.pair.2")])
def test_a_student_can_be_profiled_again(inputs, removed):
    pipeline = toys.tiny_pipeline()
    pipeline.unet = toys.FAMILY.prune(pipeline.unet, removed).eval().requires_grad_(False)
    names = [unit.name for unit in toys.FAMILY.units(pipeline.unet, inputs.settings, "block")]
    traces = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    assert len(traces) == 2
    assert rows(pipeline, inputs, names, traces=traces) == rows(pipeline, inputs, names)


def test_only_what_follows_the_unit_is_computed(pipeline, inputs):
    traces = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    ran = []
    points = toys.FAMILY.trace_points(pipeline.unet)
    handles = [
        pipeline.unet.get_submodule(p.path).register_forward_hook(lambda *_, path=p.path: ran.append(path))
        for p in points
    ]
    rows(pipeline, inputs, ["U.2.pair.1"], traces=traces)
    for handle in handles:
        handle.remove()
    first = "up_blocks.2.resnets.2"  # the removed pair itself is a placeholder
    following = [p.path for p in points if p.path.startswith(("up_blocks.2.", "up_blocks.3."))]
    assert ran == 2 * following[following.index(first) :]


def test_the_points_are_in_order_and_cover_every_unit(pipeline):
    unet, met = pipeline.unet, []
    points = toys.FAMILY.trace_points(unet)
    paths = {module: path for path, module in unet.named_modules()}
    wanted = {point.path for point in points}
    handles = [
        unet.get_submodule(path).register_forward_hook(lambda module, *_: met.append(paths[module]))
        for path in wanted
    ]
    toys.forward(unet, toys.inputs())
    for handle in handles:
        handle.remove()
    assert met == [point.path for point in points]
    for unit in toys.FAMILY.units(unet, toys.SETTINGS):
        start = start_of(points, unit.modules)
        assert start > 0 and points[start - 1].kept, unit.name


def test_memory_is_bounded_and_shapes_cost_none(pipeline, inputs):
    first, second = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    for limit, kept in (
        (0, 0),
        (first.size - 1, 0),
        (first.size, 1),
        (first.size + second.size - 1, 1),
        (first.size + second.size, 2),
    ):
        assert len(record_shared(pipeline, toys.FAMILY, inputs, limit)) == kept, limit
    dropped = [first.outputs[p.path] for p in toys.FAMILY.trace_points(pipeline.unet) if not p.kept]
    assert dropped and all(t.untyped_storage().nbytes() <= 8 and t.numel() > 64 for t in dropped)
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_only_the_first_step_is_recorded(pipeline):
    inputs = inputs_of(pipeline, steps=3)
    calls = []
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    traces = record_shared(pipeline, toys.FAMILY, inputs, MUCH)
    handle.remove()
    assert len(traces) == len(calls) == 2
    points = {point.path for point in toys.FAMILY.trace_points(pipeline.unet)}
    assert all(set(trace.outputs) == points for trace in traces)
