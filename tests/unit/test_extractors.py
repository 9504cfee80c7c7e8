"""Extractors: the interface, and a small sanity suite with known damage."""

import json

import numpy as np
import pytest
import torch

from vdmini_core.artifacts import sha256_file
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.errors import DataError
from vdmini_core.metrics import distortions as damage
from vdmini_core.metrics import frechet_distance, load_extractor
from vdmini_core.metrics.extractor import Extractor, Network
from vdmini_core.metrics.extractors import EXTRACTORS, WEIGHTS
from vdmini_core.metrics.motion import flow_field

N, FRAMES = 32, 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def films():
    seeds = split_seeds("test", N, 123)
    return torch.from_numpy(render_clips(ProceduralSpec(frames=3 * FRAMES), seeds)).float() / 255


@pytest.fixture(scope="module")
def clips(films):
    return films[:, :FRAMES]


@pytest.fixture(scope="module")
def features(clips):
    return {name: load_extractor(name)(clips) for name in EXTRACTORS}


def generator():
    return torch.Generator().manual_seed(0)


def moved(name, clips, features):
    """Paired distance that damage causes."""
    return frechet_distance(load_extractor(name)(clips), features[name])


@pytest.mark.parametrize("name", EXTRACTORS)
def test_interface(name, clips, features):
    extract = load_extractor(name, batch_size=5)
    found = extract(clips[:7])
    assert found.dtype == np.float32 and found.shape == (7, extract.dim) and np.isfinite(found).all()
    np.testing.assert_allclose(found, features[name][:7], atol=1e-4)  # batches do not matter
    np.testing.assert_array_equal(extract.extract(clips[:7]), found)
    as_bytes = (clips[:2] * 255).round().to(torch.uint8)
    np.testing.assert_allclose(extract(as_bytes), found[:2], atol=1e-4)
    json.dumps(extract.passport())
    assert extract.passport()["extractor"] == name
    for frames, height, width in ((2, 16, 24), (17, 96, 80)):
        assert extract(torch.rand(2, frames, height, width, 3)).shape == (2, extract.dim)


def test_shipped_weights_are_small_and_recorded():
    record = json.loads((WEIGHTS / "embedded.json").read_text())
    assert record["sha256"] == sha256_file(WEIGHTS / "embedded.safetensors")
    assert record["command"].startswith("python -m vdmini_core.metrics.train_embedded --seed")
    assert (WEIGHTS / "embedded.safetensors").stat().st_size < 5_000_000
    assert load_extractor("embedded").passport()["weights_sha256"] == record["sha256"]


@pytest.mark.parametrize("kind", ["noise", "blur", "colour", "contrast", "shuffle", "freeze", "jitter"])
def test_embedded_rises_with_damage(kind, clips, features):
    function, strengths = {**damage.CONTENT, **damage.MOTION}[kind]
    distances = [moved("embedded", function(clips, s, generator()), features) for s in strengths[1:]]
    assert distances == sorted(distances) and distances[0] > 0


def test_embedded_rises_with_speed(films, features):
    distances = [moved("embedded", damage.speed(films, s, FRAMES), features) for s in damage.SPEEDS]
    assert distances == sorted(distances)


def test_content_cannot_see_order_and_sees_looks(clips, features):
    reversed_order = load_extractor("content")(clips.flip(1))
    np.testing.assert_allclose(reversed_order, features["content"], atol=1e-5)
    shuffled = moved("content", damage.shuffle(clips, 1.0, generator()), features)
    assert shuffled < 1e-6 < moved("content", damage.blur(clips, 1.0, generator()), features)


def test_motion_sees_time_and_hardly_looks(clips, features):
    seen = [
        moved("motion", function(clips, strength, generator()), features)
        for function, strength in ((damage.shuffle, 0.5), (damage.freeze, 0.25), (damage.jitter, 1.0))
    ]
    ignored = [
        moved("motion", function(clips, strength, generator()), features)
        for function, strength in (
            (damage.colour_shift, 0.2),
            (damage.blur, 1.5),
            (damage.static_noise, 0.1),
            (damage.contrast, 0.6),
        )
    ]
    assert min(seen) > 10 * max(ignored)


def test_flow_is_measured_in_pixels():
    texture = torch.rand((1, 3, 80, 80), generator=generator())
    texture = torch.nn.functional.avg_pool2d(texture, 5, 1, 2)
    frames = torch.stack([texture[0, :, 8 : 8 + 64, 8 - 3 * t : 8 - 3 * t + 64] for t in range(3)], dim=1)
    flow, weight = flow_field(frames[None])
    assert flow.shape == (1, 2, 2, 16, 16) and weight.shape == (1, 2, 16, 16)
    middle = flow[0, :, :, 4:12, 4:12]
    assert middle[:, 0].median() == pytest.approx(3.0, abs=0.3)
    assert middle[:, 1].median() == pytest.approx(0.0, abs=0.3)


def test_repeat_first_frame_has_no_motion(clips):
    extract = load_extractor("motion")
    still = extract(clips[:, :1].expand_as(clips))
    assert np.ptp(still, axis=0).max() < 1e-5


def test_errors(clips):
    extract = load_extractor("motion")
    with pytest.raises(DataError, match="too few frames"):
        extract(clips[:, :1])
    with pytest.raises(DataError, match="wrong shape"):
        extract(clips[0])
    broken = clips[:3].clone()
    broken[1, 2] = float("nan")
    with pytest.raises(DataError, match=r"(?s)clip 1 of videos.*\[2\]"):
        extract(broken)
    with pytest.raises(DataError, match="no extractor"):
        load_extractor("i4d")


def test_a_gpu_takes_no_short_cuts_in_float32():
    seen = []

    def features(clips):
        seen.append(torch.backends.cudnn.allow_tf32)
        return clips.flatten(1).float()

    before = torch.backends.cudnn.allow_tf32
    Extractor("own", Network(24, lambda clips: clips, features))(torch.zeros((1, 2, 2, 2, 3)))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before
