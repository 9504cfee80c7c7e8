"""Profiling: same inputs for every unit, figures that mean something, the model left as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import svd_toys as toys
import torch

from vdmini_core.metrics import load_extractor
from vdmini_core.models.flops import unet_inputs
from vdmini_core.models.registry import fingerprint
from vdmini_core.profiling import sensitivity
from vdmini_core.profiling.sensitivity import ProfileInputs, assemble, paired_damage, profile_unit
from vdmini_core.profiling.timing import time_units


@pytest.fixture(scope="module")
def pipeline():
    return toys.tiny_pipeline()


@pytest.fixture(scope="module")
def extractors():
    return {name: load_extractor(name) for name in sensitivity.COLUMNS}


@pytest.fixture(scope="module")
def inputs(pipeline):
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (4, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return sensitivity.prepare_inputs(pipeline, toys.FAMILY, clips, toys.SETTINGS, seed=1, batch_size=3)


def test_a_unit_is_measured_and_put_back(pipeline, inputs, extractors):
    before = fingerprint(pipeline.unet)
    row = profile_unit(pipeline, toys.FAMILY, "U.3.pair.2", "removed", inputs, extractors)
    for name in ("fvd", "content", "motion", "paired_mse"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["fvd"] > 0 and row["paired_mse"] > 0
    assert fingerprint(pipeline.unet) == before
    features = {name: extract(inputs.clips) for name, extract in extractors.items()}
    again = profile_unit(pipeline, toys.FAMILY, "U.3.pair.2", "removed", inputs, extractors, features)
    assert again == row


def test_an_untouched_model_does_no_damage(inputs, extractors):
    row = sensitivity.damage(inputs.latents, inputs.clips, inputs, extractors)
    assert row["paired_mse"] == 0 and row["paired_mse_high"] == 0
    assert all(abs(row[name]) < 1e-6 for name in ("fvd", "content", "motion"))


def test_the_noise_floor_is_another_draw_of_noise(pipeline, inputs, extractors):
    features = {name: extract(inputs.clips) for name, extract in extractors.items()}
    floor = sensitivity.noise_floor(pipeline, toys.FAMILY, inputs, extractors, features)
    assert floor["paired_mse"] > 0 and floor["fvd"] > 0


def test_inputs_survive_a_file(inputs, tmp_path):
    inputs.save(tmp_path / "inputs.safetensors")
    again = ProfileInputs.load(tmp_path / "inputs.safetensors", toys.SETTINGS, 3, 1, "cpu")
    for name in ("noise", "latents", "clips"):
        assert torch.equal(getattr(again, name), getattr(inputs, name))
    for name, tensor in inputs.conditions.tensors.items():
        assert torch.equal(again.conditions.tensors[name], tensor)
    assert replace(again, noise=inputs.noise).seed == inputs.seed


def test_paired_damage_is_the_mean_squared_error():
    teacher = torch.zeros(4, 2, 1, 2, 2)
    shifts = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1, 1)
    row = paired_damage(teacher + shifts, teacher)
    assert row["paired_mse"] == pytest.approx(7.5)
    assert row["paired_mse_low"] < 7.5 < row["paired_mse_high"]


def test_the_table_has_a_row_per_unit_in_order(pipeline):
    units = toys.FAMILY.units(pipeline.unet, toys.SETTINGS, "block")
    results = {("M", "removed"): {"fvd": 1.0}, ("M", "replaced"): {"fvd": 2.0}}
    table = assemble(units, results, {"fvd": 0.1}, "abc", 4, 0)
    assert [row["name"] for row in table["units"]] == [unit.name for unit in units]
    middle = table["units"][4]
    assert middle["removed"] == {"fvd": 1.0} and middle["replaced"] == {"fvd": 2.0}
    assert middle["parameters"] == units[4].parameters


def test_times_add_up_and_hooks_go(pipeline):
    unet = pipeline.unet
    units = toys.FAMILY.units(unet, toys.SETTINGS)
    args = unet_inputs(unet, 2, 8, 8, device="cpu")
    times = time_units(unet, units, lambda: unet(*args), repeats=2)
    assert set(times["unit_ms"]) == {unit.name for unit in units}
    blocks = sum(times["unit_ms"][unit.name] for unit in units if unit.kind == "block")
    assert 0 < blocks < times["denoiser_ms"] * 1.5
    assert not any(module._forward_hooks for module in unet.modules())
