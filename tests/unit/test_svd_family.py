"""The SVD family: units, bypass and feature points."""

from __future__ import annotations

import json

import pytest
import svd_toys as toys
import torch

from vdmini_core.errors import ModelError, PlanError
from vdmini_core.models.base import Family
from vdmini_core.models.registry import family_of, fingerprint, load_pipeline, load_settings, save_pipeline


@pytest.fixture(scope="module")
def unet():
    return toys.tiny_unet()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "teacher"
    save_pipeline(toys.tiny_pipeline(), directory, toys.SETTINGS)
    return directory


def test_units_come_in_order_with_their_cost(unet):
    units = toys.FAMILY.units(unet, toys.SETTINGS)
    names = [unit.name for unit in units]
    assert isinstance(toys.FAMILY, Family)
    assert names[:4] == ["D.0.pair.0", "D.0.pair.1", "D.0", "D.1.pair.0"]
    assert names[-4:] == ["U.3.pair.0", "U.3.pair.1", "U.3.pair.2", "U.3"]
    assert len(names) == 8 + 12 + 9
    blocks = [unit for unit in units if unit.kind == "block"]
    outside = ("conv_in", "conv_out", "time_embedding", "add_embedding", "conv_norm_out")
    rest = sum(p.numel() for name in outside for p in getattr(unet, name).parameters())
    assert sum(u.parameters for u in blocks) + rest == sum(p.numel() for p in unet.parameters())
    why = {unit.name: unit.reason for unit in units if not unit.removable}
    assert set(why) == {"D.2.pair.0", "D.2", "D.3", "U.0", "U.2.pair.0", "U.2"}
    assert all(why.values())
    assert [u.name for u in toys.FAMILY.units(unet, toys.SETTINGS, "block")] == [u.name for u in blocks]
    assert "M" in [u.name for u in toys.FAMILY.units(unet, toys.SETTINGS, "pair")]


@pytest.mark.parametrize("variant", ["removed", "replaced"])
@pytest.mark.parametrize("name", ["D.0.pair.0", "D.2.pair.0", "D.2", "M", "U.0", "U.2.pair.0"])
def test_bypass_is_undone_exactly(unet, variant, name):
    before, state = toys.forward(unet, toys.inputs()), fingerprint(unet)
    modules = list(unet.modules())
    with toys.FAMILY.bypass(unet, name, variant, seed=3):
        inside = toys.forward(unet, toys.inputs())
    assert inside.shape == before.shape and torch.isfinite(inside).all()
    assert not torch.equal(inside, before)
    with pytest.raises(RuntimeError, match="boom"), toys.FAMILY.bypass(unet, name, variant):
        raise RuntimeError("boom")
    assert all(a is b for a, b in zip(unet.modules(), modules, strict=True))
    assert fingerprint(unet) == state
    assert torch.equal(toys.forward(unet, toys.inputs()), before)


def test_replaced_keeps_the_scale_and_follows_the_seed(unet):
    def fresh(seed):
        with toys.FAMILY.bypass(unet, "D.1.pair.1", "replaced", seed=seed):
            return unet.down_blocks[1].resnets[1].spatial_res_block.conv1.weight.clone()

    trained = unet.down_blocks[1].resnets[1].spatial_res_block.conv1.weight
    state = torch.get_rng_state()
    assert torch.equal(fresh(1), fresh(1))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    assert not torch.equal(fresh(1), fresh(2)) and not torch.equal(fresh(1), trained)
    torch.testing.assert_close(fresh(1).square().mean(), trained.square().mean())


def test_unknown_unit_names_the_nearest(unet):
    with (
        pytest.raises(PlanError, match=r"did you mean `D.1.pair.1`"),
        toys.FAMILY.bypass(unet, "D.1.pair.11", "removed"),
    ):
        pass


def test_feature_points_are_the_pairs_outputs(unet):
    points = toys.FAMILY.feature_points(unet)
    assert points["D.1.pair.1"] == "down_blocks.1.attentions.1"
    assert points["D.3.pair.0"] == "down_blocks.3.resnets.0"
    assert points["M"] == "mid_block"
    student = toys.FAMILY.prune(unet, toys.PAPER)
    assert set(toys.FAMILY.feature_points(student)) == set(points) - {
        *toys.PAPER, "D.3.pair.0", "D.3.pair.1", "U.0.pair.0", "U.0.pair.1", "U.0.pair.2"
    }  # fmt: skip


def test_round_trip_of_a_pipeline(saved):
    pipeline = load_pipeline(saved)
    assert family_of(pipeline) is family_of(saved)
    assert load_settings(saved, pipeline) == load_settings(saved) == toys.SETTINGS
    assert not any(p.requires_grad for p in pipeline.unet.parameters())
    assert fingerprint(pipeline.unet) == fingerprint(toys.tiny_pipeline().unet)
    assert "_name_or_path" not in (saved / "unet" / "config.json").read_text()


def copy_of(saved, tmp_path):
    import shutil

    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_pickles_are_refused(saved, tmp_path):
    bad = copy_of(saved, tmp_path)
    (bad / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled"):
        load_pipeline(bad)
    (bad / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="save it again with safetensors"):
        load_pipeline(bad)


@pytest.mark.parametrize("entry", [["os", "system"], ["diffusers", "FluxTransformer2DModel"], [None, None]])
def test_foreign_classes_are_refused(saved, tmp_path, entry):
    bad = copy_of(saved, tmp_path)
    index = json.loads((bad / "model_index.json").read_text())
    (bad / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
    with pytest.raises(ModelError, match="foreign class"):
        load_pipeline(bad)


def test_missing_parts_are_named(saved, tmp_path):
    bad = copy_of(saved, tmp_path)
    (bad / "image_encoder" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"image_encoder/config\.json"):
        load_pipeline(bad)
    with pytest.raises(ModelError, match="not a diffusers pipeline directory"):
        load_pipeline(tmp_path / "nowhere")
    (bad / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (bad / "image_encoder" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="vae has no weights"):
        load_pipeline(bad)
