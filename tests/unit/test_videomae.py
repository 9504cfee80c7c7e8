"""VideoMAE features through `transformers`, from a local directory."""

import json

import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEModel

from vdmini_core.errors import DataError
from vdmini_core.metrics import load_extractor


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48,
    )  # fmt: skip
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
