"""VideoMAE features through `transformers`, from a local directory."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from vdmini_core.errors import DataError
from vdmini_core.metrics import load_extractor


def tiny(**changes):
    torch.manual_seed(0)
    return VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = tiny()
    path = tmp_path_factory.mktemp("videomae")
    VideoMAEModel(config).save_pretrained(path)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (path / "preprocessor_config.json").write_text(json.dumps(statistics))
    return path


def test_features_are_the_mean_of_the_last_hidden_states(directory):
    clips = torch.rand((3, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    extract = load_extractor("videomae", weights=directory, batch_size=2)
    model = VideoMAEModel.from_pretrained(directory).eval()
    pixels = (clips - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    with torch.no_grad():
        expected = model(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(extract(clips), expected.numpy(), atol=1e-5)
    assert extract(torch.rand(1, 4, 48, 20, 3)).shape == (1, 24)
    assert len(extract.passport()["weights_sha256"]) == 64


def test_another_number_of_frames_and_no_model_are_refused(directory, tmp_path):
    with pytest.raises(DataError, match=r"(?s)one length.*4 frames.*5"):
        load_extractor("videomae", weights=directory)(torch.rand(1, 5, 32, 32, 3))
    with pytest.raises(DataError, match="no VideoMAE"):
        load_extractor("videomae", weights=tmp_path)
    with pytest.raises(DataError, match="needs weights"):
        load_extractor("videomae")


def fine_tuned(path):
    """A classifier whose norm does something."""
    model = VideoMAEForVideoClassification(tiny(num_labels=3)).eval()
    torch.nn.init.normal_(model.fc_norm.weight)
    torch.nn.init.normal_(model.fc_norm.bias)
    model.save_pretrained(path)
    return model


def test_the_final_norm_of_the_weights_is_applied(tmp_path):
    clips = torch.rand((2, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet
    pixels = ((clips - mean) / spread).permute(0, 1, 4, 2, 3)
    model = fine_tuned(tmp_path / "classifier")
    extract = load_extractor("videomae", weights=tmp_path / "classifier")
    with torch.no_grad():
        np.testing.assert_allclose(
            model.classifier(torch.from_numpy(extract(clips))), model(pixels).logits, atol=1e-5
        )
    per_token = VideoMAEModel(tiny(use_mean_pooling=False)).eval()
    torch.nn.init.normal_(per_token.layernorm.weight)
    per_token.save_pretrained(tmp_path / "per_token")
    other = load_extractor("videomae", weights=tmp_path / "per_token")
    with torch.no_grad():
        expected = per_token(pixels).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(other(clips), expected, atol=1e-5)
    layers = {str(e.passport()["layer"]) for e in (extract, other)}
    assert len(layers) == 2 and all("final norm" in layer for layer in layers)


def test_weights_that_would_be_drawn_at_random_are_refused(tmp_path):
    fine_tuned(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = {k for k in state if "layer.1.attention" in k}
    save_file(
        {k: v for k, v in state.items() if k not in gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(DataError, match=rf"(?s)lacks weights.*{len(gone)} missing: videomae.encoder.layer.1"):
        load_extractor("videomae", weights=tmp_path)


def test_the_number_type_is_part_of_the_passport(directory):
    clips = torch.rand((2, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    extractors = {
        kind: load_extractor("videomae", weights=directory, dtype=kind) for kind in ("float32", "float64")
    }
    found = {kind: extract(clips) for kind, extract in extractors.items()}
    assert found["float64"].dtype == np.float32
    np.testing.assert_allclose(found["float64"], found["float32"], atol=1e-5)
    assert {extract.passport()["dtype"] for extract in extractors.values()} == {"float32", "float64"}
    with pytest.raises(DataError, match="do not compute in `int8`"):
        load_extractor("videomae", weights=directory, dtype="int8")
