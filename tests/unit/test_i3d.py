"""I3D: agreement with the original network's numbers, exact folding, conventions, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vdmini_core.artifacts import sha256_file
from vdmini_core.errors import DataError
from vdmini_core.metrics import load_extractor
from vdmini_core.metrics.i3d import I3D, expected_shapes, max_pool, same_padding
from vdmini_core.metrics.i3d_extractor import MOST_CLIPS_ON_CPU
from vdmini_core.metrics.i3d_preprocess import preprocess
from vdmini_core.metrics.protocol import load_protocol_extractor
from vdmini_core.params import FvdParams

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "i3d"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the original network's numbers are not beside the checkout"
)
CASES = [("a", "cdfvd"), *((clip, p) for clip in "bcd" for p in ("videogpt", "styleganv", "cdfvd"))]


@pytest.fixture(scope="module")
def reference():
    return load_file(REFERENCE / "i3d_io.safetensors")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Weights of the right shapes that keep activations in a sane range."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in expected_shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("weight") and len(shape) == 5:
            state[name] = values * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + 0.1 * values.abs()
        else:
            state[name] = 0.1 * values
    path = tmp_path_factory.mktemp("i3d") / "random.safetensors"
    save_file(state, path)
    return path, state


def clip_of(reference, name):
    if name == "d":
        return reference["d.video_float01"].float().permute(0, 2, 3, 4, 1)
    return reference[f"{name}.video_uint8"]


@needs_reference
@pytest.mark.parametrize(("clip", "convention"), CASES)
def test_agrees_with_the_original(reference, clip, convention):
    videos = clip_of(reference, clip)
    sub = preprocess(videos, convention)[:, :, ::3, ::32, ::32]
    assert (sub - reference[f"{clip}.{convention}.preprocessed_sub"]).abs().max() <= 1e-5
    extract = load_extractor("i3d", weights=REFERENCE / "i3d_weights.safetensors", convention=convention)
    assert np.abs(extract(videos) - reference[f"{clip}.{convention}.logits"].numpy()).max() <= 1e-3


@needs_reference
@pytest.mark.parametrize("clip", "abcd")
@pytest.mark.parametrize(("bn_eps", "part"), [(1e-5, ""), (1e-3, ".bn_eps_1e-3")])
def test_pooled_and_the_other_epsilon_agree_with_the_original(reference, clip, bn_eps, part):
    weights = REFERENCE / "i3d_weights.safetensors"
    options = {"weights": weights, "convention": "cdfvd", "bn_eps": bn_eps}
    found = load_extractor("i3d", layer="pooled", **options)(clip_of(reference, clip))
    expected = reference[f"{clip}.cdfvd{part}.pooled"].mean(dim=(2, 3, 4))
    assert np.abs(found - expected.numpy()).max() <= 1e-4
    if part:
        logits = load_extractor("i3d", **options)(clip_of(reference, clip))
        per_time = reference[f"{clip}.cdfvd{part}.logits_per_time"]
        assert np.abs(logits - per_time.mean(dim=2).numpy()).max() <= 1e-3


def test_names_and_parameters_are_those_of_the_published_network():
    shapes = expected_shapes()
    learned = [shape for name, shape in shapes.items() if "running" not in name]
    assert sum(int(np.prod(shape)) for shape in learned) == 12_697_264
    assert len(shapes) == 344 - 57  # the file's 57 batch counters carry nothing
    assert shapes["Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)


@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [5, 6, 9, 14])
def test_padding_is_the_same_as_tensorflows(size, kernel, stride):
    before, after = same_padding(size, kernel, stride)
    # The rule as TensorFlow's documentation states it, from the output size.
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    assert (before, after) == (total // 2, total - total // 2)


@pytest.mark.parametrize("sizes", [(5, 7, 8), (6, 14, 9), (1, 4, 4)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1))]
)
def test_pooling_without_copies_is_pooling_with_zeros(sizes, kernel, stride):
    x = torch.rand((2, 3, *sizes))
    pads = [same_padding(n, k, s) for n, k, s in zip(sizes, kernel, stride, strict=True)]
    padded = F.pad(x, [p for pair in reversed(pads) for p in pair])
    assert torch.equal(max_pool(x, kernel, stride), F.max_pool3d(padded, kernel, stride))


@pytest.mark.parametrize("name", ["Conv3d_2c_3x3", "Mixed_3b.b1b"])  # scale apart, scale folded
def test_folding_changes_nothing(random_weights, name):
    _, state = random_weights
    layer = I3D().load(state, 1e-3).get_submodule(name)
    x = torch.rand(1, layer.weight.shape[1], 3, 6, 6)
    plain = F.conv3d(x.double(), state[f"{name}.conv3d.weight"].double(), padding=1)
    parts = [state[f"{name}.bn.{p}"].double() for p in ("running_mean", "running_var", "weight", "bias")]
    expected = F.batch_norm(plain, *parts, eps=1e-3).relu()
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_conventions_are_equal_on_square_bytes_and_differ_elsewhere(random_weights):
    path, _ = random_weights
    generator = torch.Generator().manual_seed(1)
    square = torch.randint(0, 256, (1, 9, 40, 40, 3), generator=generator, dtype=torch.uint8)
    found = [
        load_extractor("i3d", weights=path, convention=c)(square) for c in ("videogpt", "styleganv", "cdfvd")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)
    wide = torch.rand((1, 9, 24, 40, 3), generator=generator)
    prepared = [preprocess(wide, c) for c in ("videogpt", "styleganv", "cdfvd")]
    assert all(p.shape == (1, 3, 9, 224, 224) for p in prepared)
    assert 0 < (prepared[0] - prepared[1]).abs().max() <= 2 / 255 + 1e-6
    assert (prepared[2] - prepared[0]).abs().max() > 0.1


def test_batches_and_threads_of_clips_do_not_matter(random_weights):
    path, _ = random_weights
    clips = torch.rand((3, 9, 16, 16, 3))
    whole = load_extractor("i3d", weights=path)(clips)
    assert whole.shape == (3, 400) and whole.dtype == np.float32
    np.testing.assert_allclose(load_extractor("i3d", weights=path, batch_size=1)(clips), whole, atol=1e-4)
    pooled = load_extractor("i3d", weights=path, layer="pooled")
    assert pooled(clips[:1]).shape == (1, 1024)
    assert pooled.passport() != load_extractor("i3d", weights=path).passport()


def test_the_number_type_is_an_option_and_part_of_the_passport(random_weights):
    path, _ = random_weights
    clips = torch.rand((2, 9, 16, 16, 3), generator=torch.Generator().manual_seed(2))
    extractors = {kind: load_extractor("i3d", weights=path, dtype=kind) for kind in ("float32", "float64")}
    found = {kind: extract(clips) for kind, extract in extractors.items()}
    scale = np.abs(found["float64"]).max()
    assert 0 < np.abs(found["float32"] - found["float64"]).max() < 1e-5 * scale
    half = load_extractor("i3d", weights=path, dtype="bfloat16")
    # A small grid: a CPU without instructions for bfloat16 takes minutes for a clip of 224 x 224.
    grid = torch.rand((1, 3, 9, 32, 32), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        exact, rounded = (e._network.features(grid).double() for e in (extractors["float64"], half))
    assert 1e-4 < (rounded - exact).abs().max() / exact.abs().max() < 0.1
    assert half.passport() != extractors["float32"].passport() != extractors["float64"].passport()
    with pytest.raises(DataError, match="do not compute in `float8`"):
        load_extractor("i3d", weights=path, dtype="float8")


def test_many_clips_at_once_are_taken_in_small_batches(random_weights):
    path, _ = random_weights
    sizes = []
    extract = load_extractor("i3d", weights=path, batch_size=64)
    prepare = extract._network.prepare
    object.__setattr__(extract._network, "prepare", lambda clips: sizes.append(len(clips)) or prepare(clips))
    extract(torch.zeros((MOST_CLIPS_ON_CPU + 1, 9, 16, 16, 3), dtype=torch.uint8))
    assert sizes == [MOST_CLIPS_ON_CPU, 1]


def test_the_parameters_of_evaluate_reach_the_network(random_weights):
    path, _ = random_weights
    asked = {"convention": "cdfvd", "layer": "pooled", "bn_eps": 1e-3, "sha256": sha256_file(path)}
    made = load_protocol_extractor(FvdParams(extractor="i3d", weights=str(path), **asked), path, "cpu")
    assert made.passport() == load_extractor("i3d", weights=path, **asked).passport()
    assert made.passport()["bn_eps"] == 1e-3


def test_refusals(random_weights, tmp_path):
    path, state = random_weights
    with pytest.raises(DataError, match="needs weights"):
        load_extractor("i3d")
    with pytest.raises(DataError, match="no convention 'tensorflow'"):
        load_extractor("i3d", weights=path, convention="tensorflow")
    with pytest.raises(DataError, match=r"no bn_eps 0\.0001\n  expected: 1e-05, 0\.001"):
        load_extractor("i3d", weights=path, bn_eps=1e-4)
    with pytest.raises(DataError, match="no option bn_eps"):
        load_extractor("motion", bn_eps=1e-3)
    with pytest.raises(DataError, match="too few frames"):
        load_extractor("i3d", weights=path)(torch.rand(1, 8, 16, 16, 3))
    with pytest.raises(DataError, match="other ones"):
        load_extractor("i3d", weights=path, sha256="0" * 64)
    for address, why in (
        ("http://x/w.pt", "https"),
        ("s3://b/w.pt", "not read from S3"),
        ("https://x/w.pt", "sha256"),
    ):
        with pytest.raises(DataError, match=why):
            load_extractor("i3d", weights=address)
    save_file({k: v for k, v in state.items() if "Mixed_5c.b0" not in k}, tmp_path / "part.safetensors")
    with pytest.raises(DataError, match=r"(?s)not the weights of I3D.*5 missing: Mixed_5c.b0"):
        load_extractor("i3d", weights=tmp_path / "part.safetensors")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(DataError, match="TorchScript"):
        load_extractor("i3d", weights=tmp_path / "program.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pt")
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_extractor("i3d", weights=tmp_path / "pickled.pt")


def test_a_plain_pt_state_dict_is_read(random_weights, tmp_path):
    path, state = random_weights
    torch.save(state, tmp_path / "w.pt")
    clip = torch.rand(1, 9, 16, 16, 3)
    found = load_extractor("i3d", weights=tmp_path / "w.pt")(clip)
    np.testing.assert_array_equal(found, load_extractor("i3d", weights=path)(clip))
