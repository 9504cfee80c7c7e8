"""From an original checkpoint to a pipeline directory: names, shapes, whole or not at all, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner
from videocrafter_toys import (
    ARGUMENTS,
    LENGTH,
    TURBO,
    WORDS,
    OpenCLIPText,
    checkpoint,
    original_unet,
    tiny_unet,
    tiny_vae,
    unet_file,
)

import vdmini_core
from vdmini_core.cli import CORE_COMMANDS, new_app
from vdmini_core.convert import text_keys, vae_keys
from vdmini_core.convert.checkpoint import TEXT, UNET, VAE
from vdmini_core.convert.parts import check_fit, text_part, unet_part, vae_part
from vdmini_core.convert.tables import our_key
from vdmini_core.convert.unet_config import unet_config
from vdmini_core.convert.videocrafter import convert_videocrafter
from vdmini_core.errors import ModelError
from vdmini_core.models import load_denoiser
from vdmini_core.models.fps_unet import guidance_embedding
from vdmini_core.models.pipeline_dir import read_index

KEYS = json.loads((Path(__file__).parents[1] / "fixtures" / "videocrafter" / "keys.json").read_text())
FULL_SIZE = Path(__file__).parents[3] / "shared" / "reference" / "full_size_keys"
needs_reference = pytest.mark.skipif(
    not FULL_SIZE.is_dir(), reason="the originals' key lists are not beside the checkout"
)


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def numbers_in(shapes):
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole tiny checkpoint as .ckpt, its models, and the pipeline directory made of it."""
    folder = tmp_path_factory.mktemp("whole")
    models = tiny_unet(), tiny_vae(), OpenCLIPText()
    state = checkpoint(*models) | {"betas": torch.linspace(0, 1, 1000)}
    torch.save({"state_dict": state, "global_step": 3, "epoch": 0}, folder / "model.ckpt")
    (folder / "config.json").write_text(json.dumps(ARGUMENTS))
    made = run(
        "videocrafter2", folder / "model.ckpt", folder / "out", "--config", folder / "config.json", "--json"
    )
    assert made.exit_code == 0, made.output
    return folder, models, json.loads(made.stdout)


def run(*arguments):
    app = new_app("")
    for name in ("convert", "inspect"):
        app.command(name)(CORE_COMMANDS[name])
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("kind", "changes", "extra", "parameters"),
    [
        ("videocrafter2", {}, (), 1_413_284_420),
        ("t2v-turbo-v2", {}, ("time", "motion", "combine"), 1_413_653_060),
        ("t2v-turbo-v2", {"motion_cond_proj_dim": None}, ("time",), 1_413_366_340),
    ],
)
def test_full_size_unets_convert_completely(kind, changes, extra, parameters):
    beside = KEYS["t2v_turbo_v2_unet_beside_videocrafter2"]
    shapes = KEYS["videocrafter2_unet"] | {k: v for k, v in beside.items() if k.startswith(extra)}
    part = unet_part(on_meta(shapes), unet_config(kind, changes))
    check_fit(part)
    assert len(part.weights) == len(shapes) == 1484 + len(extra)
    assert sum(p.numel() for p in part.model.parameters()) == numbers_in(shapes) == parameters


def test_the_full_size_vae_converts_completely_as_diffusers_does_it():
    shapes = KEYS["videocrafter2_first_stage"]
    part = vae_part(on_meta(shapes))
    check_fit(part)
    assert sum(p.numel() for p in part.model.parameters()) == numbers_in(shapes) == 83_653_863
    small = {
        k: torch.full([min(n, 2) for n in shape], float(i)) for i, (k, shape) in enumerate(shapes.items())
    }
    table = vae_keys.module_table(vae_keys.vae_config(on_meta(shapes)))
    ours = {our_key(key, table): tensor.flatten()[0].item() for key, tensor in small.items()}
    theirs = convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": tensor for key, tensor in small.items()}, part.model.config
    )
    assert ours == {key: tensor.flatten()[0].item() for key, tensor in theirs.items()}


@needs_reference
def test_the_key_lists_kept_here_are_the_originals():
    turbo = KEYS["videocrafter2_unet"] | KEYS["t2v_turbo_v2_unet_beside_videocrafter2"]
    for name, shapes in (
        ("videocrafter2_unet", KEYS["videocrafter2_unet"]),
        ("t2v_turbo_v2_unet", turbo),
        ("videocrafter2_first_stage", KEYS["videocrafter2_first_stage"]),
        ("t2v_turbo_v1_unet", {k: v for k, v in turbo.items() if not k.startswith(("motion", "combine"))}),
    ):
        stored = json.loads((FULL_SIZE / f"{name}.json").read_text())
        prefix = stored["key_prefix_in_checkpoint"]
        assert {key.removeprefix(prefix): shape for key, shape in stored["shapes"].items()} == shapes
        assert stored["total_parameters"] == numbers_in(shapes)


def test_the_text_encoder_is_the_last_layer_but_one():
    tower = OpenCLIPText()
    part = text_part(tower.original())
    check_fit(part)
    part.model.load_state_dict(part.weights, assign=True)
    config = CLIPTextConfig(**text_keys.text_config(tower.original()))
    model = CLIPTextModel(config).eval()
    model.load_state_dict(part.weights)
    ids = torch.randint(0, WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[1, 3:] = 0
    with torch.no_grad():
        found, expected = model(ids).last_hidden_state, tower.eval().penultimate(ids)
    assert (found - expected).abs().max() < 1e-5
    theirs = convert_open_clip_checkpoint(
        model, {TEXT + key: value for key, value in tower.original().items()}
    )
    theirs = {key.removeprefix("text_model."): value for key, value in theirs.items()}
    for name, tensor in part.weights.items():
        assert torch.equal(tensor, theirs[name.removeprefix("text_model.")]), name


def test_a_whole_checkpoint_becomes_a_pipeline(whole):
    folder, (unet, vae, _), summary = whole
    assert set(summary["parameters"]) == {"unet", "vae", "text_encoder"}
    assert summary["files"] == len([p for p in (folder / "out").rglob("*") if p.is_file()]) == 9
    settings = json.loads((folder / "out" / "vdmini.json").read_text())
    assert (settings["num_frames"], settings["guidance"]) == (3, 12.0)
    for name, tensor in load_denoiser(folder / "out").state_dict().items():
        assert torch.equal(tensor, unet.state_dict()[name]), name
    pipeline = vdmini_core.VideoCrafterPipeline.from_pretrained(folder / "out")
    pipeline.set_progress_bar_config(disable=True)
    for name, tensor in pipeline.vae.state_dict().items():
        assert torch.equal(tensor, vae.state_dict()[name]), name
    given = {
        "prompt_embeds": torch.randn(1, LENGTH, 64),
        "negative_prompt_embeds": torch.zeros(1, LENGTH, 64),
        "num_frames": 3,
        "height": 8,
        "width": 12,
        "num_inference_steps": 2,
    }
    videos = [pipeline(**given, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert videos[0].shape == (1, 3, 8, 12, 3) and np.array_equal(*videos)
    with pytest.raises(ModelError, match="no tokenizer"):
        pipeline("a dog")


def test_a_tokenizer_comes_along_and_pads_with_zeros(whole, tmp_path):
    folder, (_, _, text), _ = whole
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "d", "o", "g</w>", "do", "dog</w>"]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.json").write_text(json.dumps({word: 40 + i for i, word in enumerate(words)}))
    (tmp_path / "words" / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n")
    source, more = folder / "model.ckpt", {"config": ARGUMENTS, "tokenizer": tmp_path / "words"}
    made = convert_videocrafter("videocrafter2", source, tmp_path / "out", **more)
    assert made.notes == ()
    pipeline = vdmini_core.VideoCrafterPipeline.from_pretrained(tmp_path / "out")
    found = pipeline.encode_text("a dog", None, "cpu")
    ids = torch.tensor([[40, 42, 47, 41, 0, 0, 0]])
    with torch.no_grad():
        assert (found - text.eval().penultimate(ids)).abs().max() < 1e-5
    vocabulary = {f"w{i}": i for i in range(WORDS + 1)}
    (tmp_path / "words" / "vocab.json").write_text(json.dumps(vocabulary))
    for wrong in (tmp_path / "words", tmp_path / "none"):
        with pytest.raises(ModelError, match="not the text encoder's tokenizer"):
            convert_videocrafter("videocrafter2", source, tmp_path / "new", **more | {"tokenizer": wrong})
    alone = unet_file(tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match="a U-Net alone"):
        convert_videocrafter("videocrafter2", alone, tmp_path / "new", **more)
    assert not (tmp_path / "new").exists()


def test_a_turbo_unet_takes_vae_and_text_from_the_base(whole, tmp_path):
    folder, _, _ = whole
    alone = unet_file(tmp_path / "unet_mg.safetensors", "t2v-turbo-v2")
    made = convert_videocrafter(
        "t2v-turbo-v2", alone, tmp_path / "out", config=TURBO, base=folder / "model.ckpt", dtype="float16"
    )
    assert list(made.parameters) == ["unet", "vae", "text_encoder"]
    stored = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipeline = vdmini_core.VideoCrafterPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    given = {"prompt_embeds": torch.ones(1, LENGTH, 64), "latents": latents, "output_type": "latent"}
    # One step ends in the consistency function of one U-Net pass with the guidance embeddings.
    found = pipeline(**given, num_inference_steps=1, guidance_scale=7.5, fps=16)
    conditions = {
        "timestep_cond": guidance_embedding(torch.tensor([7.5]), 8),
        "motion_cond": guidance_embedding(torch.tensor([0.05]), 8),
    }
    with torch.no_grad():
        noise = pipeline.unet(latents, 999, given["prompt_embeds"], fps=16, **conditions).sample
    expected = vdmini_core.ConsistencyScheduler().denoised(noise, 999, latents)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(
        pipeline(**given, num_inference_steps=1, motion_guidance_scale=0.5), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    "layout",
    [
        "bare.safetensors",
        "named.ckpt",
        "bare.pt",
        "prefixed.ckpt",
        "deepspeed.ckpt",
        "engine.ckpt",
        "old.ckpt",
    ],
)
def test_every_layout_gives_the_same_unet(layout, tmp_path):
    unet = tiny_unet()
    state, path = original_unet(unet), tmp_path / layout
    prefixed = {UNET + key: value for key, value in state.items()}
    if layout in ("bare.safetensors", "named.ckpt"):
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif layout == "deepspeed.ckpt":
        torch.save({"module": {"_forward_module." + key: value for key, value in prefixed.items()}}, path)
    elif layout == "engine.ckpt":  # DeepSpeed without the wrapper
        torch.save({"module": prefixed}, path)
    else:
        content = state if layout == "bare.pt" else {"state_dict": prefixed}
        torch.save(content, path, _use_new_zipfile_serialization=layout != "old.ckpt")
    made = convert_videocrafter("videocrafter2", path, tmp_path / "out", config=ARGUMENTS)
    assert made.parameters == {"unet": sum(p.numel() for p in unet.parameters())}
    found = load_denoiser(tmp_path / "out" / "unet").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in unet.state_dict().items())


def test_a_vae_or_text_encoder_that_is_cut_is_refused(whole, tmp_path):
    folder, models, _ = whole
    state = checkpoint(*models)
    for drop, why in (
        (VAE + "decoder.up.0.block.0.conv1.weight", "checkpoint's vae does not fit"),
        (TEXT + "transformer.resblocks.1.attn.in_proj_bias", "checkpoint's text_encoder does not fit"),
        (TEXT + "token_embedding.weight", "text encoder is incomplete"),
        (VAE, "has no VAE"),
        (TEXT, "has no text encoder"),
    ):
        torch.save({k: v for k, v in state.items() if not k.startswith(drop)}, tmp_path / "m.ckpt")
        with pytest.raises(ModelError, match=why):
            convert_videocrafter("videocrafter2", tmp_path / "m.ckpt", tmp_path / "out", config=ARGUMENTS)
    torch.save(state | {"alphas_cumprod": torch.linspace(1, 0, 1000)}, tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match="another noise schedule"):
        convert_videocrafter("videocrafter2", tmp_path / "m.ckpt", tmp_path / "out", config=ARGUMENTS)
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]
    with pytest.raises(ModelError, match="--base is for a U-Net alone"):
        source = folder / "model.ckpt"
        convert_videocrafter("videocrafter2", source, tmp_path / "out", config=ARGUMENTS, base=source)


def test_the_command_line(whole, tmp_path):
    folder, _, _ = whole
    path = unet_file(tmp_path / "unet.safetensors")
    config = folder / "config.json"
    made = run("videocrafter2", path, tmp_path / "out", "--config", config)
    assert made.exit_code == 0
    assert made.stdout.startswith(f"{tmp_path}/out: unet ") and "3 files" in made.stdout
    assert "no VAE and text encoder" in made.stderr
    for name, way_out in (
        ("out", "again with --base"),
        ("out/unet", "again with --base"),
        ("scheduler", "save_pretrained"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(ModelError, match=f"not a diffusers pipeline[\\s\\S]*{way_out}"):
            read_index(tmp_path / name)
    with pytest.raises(ModelError, match=f"a U-Net alone[\\s\\S]*give {folder / 'out'}$"):
        read_index(folder / "out" / "unet")
    again = run("videocrafter2", path, tmp_path / "out", "--config", config)
    assert again.exit_code == 1 and "is there already" in str(again.exception)
    assert run("videocrafter3", path, tmp_path / "new").exit_code == 2
    assert run("videocrafter2", tmp_path / "none.ckpt", tmp_path / "new").exit_code == 2
    sized = run("videocrafter2", path, tmp_path / "new")  # the published sizes
    assert "--config" in str(sized.exception)
    (tmp_path / "bad.json").write_text("[1")
    (tmp_path / "file").write_text("")
    under = run("videocrafter2", path, tmp_path / "file" / "new", "--config", config)
    assert "cannot be written" in str(under.exception)
    assert "is not JSON" in str(
        run("videocrafter2", path, tmp_path / "n", "--config", tmp_path / "bad.json").exception
    )
