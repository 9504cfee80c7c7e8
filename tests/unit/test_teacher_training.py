"""Training of the teacher: it learns, resumes to the same bytes, and equals the stock pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.errors import ModelError, TrainingError
from vdmini_core.teacher import bypass, loop
from vdmini_core.teacher.__main__ import main as teacher_main
from vdmini_core.teacher.architecture import ARCHITECTURES, build_from, build_pipeline, call_arguments
from vdmini_core.teacher.clip_source import StoredClips, drawn_ahead
from vdmini_core.teacher.one_step import denoised, encode_clips, one_step
from vdmini_core.teacher.recipe import ProceduralData
from vdmini_core.teacher.temporal_conv import temporal_convolutions_as_2d
from vdmini_core.teacher.training import TrainConfig, _draw, train_unet
from vdmini_core.teacher.unet_start import start_from_first_frame
from vdmini_core.teacher.vae_start import patch_basis, patch_latents, start_from_patches
from vdmini_core.teacher.vae_training import VaeTrainConfig, iterate_latents, reconstruction_psnr, train_vae

CLIPS = render_clips(ProceduralSpec(4, 32, 32), split_seeds("train", 8, 0))
SHORT = TrainConfig(
    steps=4,
    window_steps=2,
    quiet_steps=3,
    batch_size=2,
    window_batch_size=2,
    log_every=1,
    checkpoint_every=2,
    warmup=2,
)
# The smallest network with room for the structured start.
ROOMY = replace(
    ARCHITECTURES["nano"], unet_widths=(96, 32, 64, 32), heads=(3, 1, 2, 1), vae_widths=(96, 64, 96)
)


class Stop(Exception):
    pass


def stop_after(step: int) -> Any:
    def on_log(row: dict[str, Any]) -> None:
        if row["step"] > step:
            raise Stop

    return on_log


def train(pipeline: Any, config: TrainConfig, folder: Path, on_log: Any = None) -> None:
    train_unet(pipeline, StoredClips(encode_clips(pipeline, CLIPS)), config, folder, on_log)


def weights(module: torch.nn.Module) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in module.parameters())


def test_one_step_is_what_the_stock_pipeline_returns() -> None:
    pipeline = build_pipeline("nano", 0)
    arguments = call_arguments("nano")
    stock = pipeline(
        Image.fromarray(CLIPS[0, 0]),
        **arguments,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    generator = torch.Generator().manual_seed(3)
    torch.randn(1, 3, 32, 32, generator=generator)  # the pipeline's noise augmentation, strength 0
    noise = torch.randn(stock.shape, generator=generator)
    first = next(iterate_latents(pipeline.vae, CLIPS[:1]))[:, 0]
    with torch.no_grad():
        ours = one_step(pipeline, noise, first, encode_clips(pipeline, CLIPS[:1], bf16=False).embeddings)
    assert torch.allclose(ours, stock, atol=1e-3)


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = build_from(ROOMY, 0)
    train(whole, SHORT, tmp_path / "whole")
    with pytest.raises(Stop):
        train(build_from(ROOMY, 0), SHORT, tmp_path / "cut", stop_after(2))
    resumed = build_from(ROOMY, 0)
    train(resumed, SHORT, tmp_path / "cut")
    assert weights(resumed.unet) == weights(whole.unet)


def test_a_noised_clip_is_denoised_as_the_stock_scheduler_does() -> None:
    pipeline = build_pipeline("nano", 0)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(3)
    clip, noise = torch.randn(2, 1, 4, pipeline.vae.config.latent_channels, 8, 8, generator=generator)
    image = torch.randn(1, clip.shape[2], 8, 8, generator=generator)
    embedding = torch.randn(1, 1, pipeline.unet.config.cross_attention_dim, generator=generator)
    for index in (1, 3):
        sigma, timestep = scheduler.sigmas[index], scheduler.timesteps[index]
        sample = clip + sigma * noise
        scheduler._step_index = None
        repeated = image[:, None].expand(-1, 4, -1, -1, -1)
        inputs = torch.cat([scheduler.scale_model_input(sample, timestep), repeated], 2)
        with torch.no_grad():
            output = pipeline.unet(inputs, timestep, embedding, torch.tensor([[7.0, 127.0, 0.0]])).sample
            theirs = scheduler.step(output, timestep, sample).pred_original_sample
            ours = denoised(pipeline, sample, sigma[None], image, embedding)
        assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max()


def test_noise_levels_are_drawn_for_their_share_of_the_clips() -> None:
    source = StoredClips(encode_clips(build_pipeline("nano", 0), CLIPS))
    some = replace(SHORT, noised_share=0.25, window_steps=0, batch_size=400)
    drawn, plain = _draw(source, some, 5), _draw(source, replace(some, noised_share=0.0), 5)
    assert torch.equal(drawn.noise, plain.noise)
    assert plain.sigma is None
    assert drawn.sigma is not None
    levels = drawn.sigma[drawn.sigma < 700]
    assert 70 < len(levels) < 130
    assert abs(levels.log().mean()) < 0.5
    assert 1.3 < levels.log().std() < 1.9
    # One clip at pure noise costs what it costs in one step from pure noise.
    assert torch.equal(_draw(source, replace(some, noised_share=1e-9), 5).sigma, torch.full((400,), 700.0))


def test_a_run_over_noise_levels_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    config = replace(SHORT, noised_share=0.5)
    whole, stopped = build_pipeline("nano", 0), build_pipeline("nano", 0)
    train(whole, config, tmp_path / "a")
    with pytest.raises(Stop):
        train(stopped, config, tmp_path / "b", stop_after(2))
    resumed = build_pipeline("nano", 0)
    train(resumed, config, tmp_path / "b")
    assert weights(resumed.unet) == weights(whole.unet)
    without = build_pipeline("nano", 0)
    train(without, SHORT, tmp_path / "c")
    assert weights(without.unet) != weights(whole.unet)


def test_processes_that_draw_ahead_draw_the_same(tmp_path: Path) -> None:
    pipeline = build_from(ROOMY, 0)
    held_out = encode_clips(pipeline, CLIPS[:2])
    data = ProceduralData(ProceduralSpec(4, 32, 32), 0, 8)
    draw = partial(_draw, data.source(pipeline, held_out), SHORT)
    before = torch.get_rng_state()
    ahead = list(drawn_ahead(draw, range(1, 4), 2))
    assert torch.equal(torch.get_rng_state(), before)
    for step, found in zip(range(1, 4), ahead, strict=True):
        expected = draw(step)
        assert torch.equal(found.noise, expected.noise)
        assert torch.equal(found.batch.latents, expected.batch.latents)
        assert torch.equal(found.batch.embeddings, expected.batch.embeddings)


def test_a_run_goes_on_from_an_exported_teacher_and_the_record_tells_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdmini_core.teacher.recipe.HELD_OUT", 4)
    monkeypatch.setattr("vdmini_core.teacher.recipe.STORED", 16)
    monkeypatch.setattr("vdmini_core.teacher.export.MEASURED_CLIPS", 4)
    first, second = tmp_path / "first", tmp_path / "second"
    quick = ["--size", "nano", "--steps", "2", "--window-steps", "0", "--quiet-steps", "0"]
    teacher_main(["train-vae", "--size", "nano", "--steps", "2", "--clips", "8", "--out", str(first)])
    teacher_main(["train-unet", *quick, "--out", str(first)])
    teacher_main(["export", "--size", "nano", "--out", str(first), "--to", str(tmp_path / "one")])
    teacher_main(["train-unet", *quick, "--start-from", str(tmp_path / "one"), "--out", str(second)])
    teacher_main(["export", "--size", "nano", "--out", str(second), "--to", str(tmp_path / "two")])
    records = [json.loads((tmp_path / name / "TRAINING.json").read_text()) for name in ("one", "two")]
    assert records[1]["commands"][: len(records[0]["commands"])] == records[0]["commands"]
    assert any("--start-from EARLIER_DIR" in line for line in records[1]["commands"])
    assert set(records[0]["runs"]) < set(records[1]["runs"])
    hashes = [record["weights_sha256"] for record in records]
    changed = [name for name in hashes[0] if hashes[0][name] != hashes[1][name]]
    assert changed == ["unet/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelError, match="not of size mini"):
        teacher_main(
            ["train-unet", "--steps", "1", "--start-from", str(tmp_path / "one"), "--out", str(second)]
        )
    with pytest.raises(ModelError, match="not a diffusers pipeline"):
        teacher_main(["train-unet", *quick, "--start-from", str(tmp_path / "nowhere"), "--out", str(second)])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = {"seed": 0, "steps": 4}
    loop.save_checkpoint(tmp_path / "unet.pt", {"config": config})
    with pytest.raises(TrainingError, match="another run"):
        loop.load_checkpoint(tmp_path / "unet.pt", {**config, "seed": 1})


def test_the_loss_falls(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    config = TrainConfig(steps=12, batch_size=4, log_every=4, warmup=2, window_steps=0)
    train(build_pipeline("nano", 0), config, tmp_path, rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"steps_per_second", "minutes_left"} <= rows[0].keys()


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    vae = build_from(ROOMY, 0).vae
    rows: list[dict[str, Any]] = []
    config = VaeTrainConfig(steps=40, batch_size=4, crop=16, warmup=2, log_every=1, full_size_share=0)
    result = train_vae(vae, CLIPS, config, tmp_path, rows.append)
    assert np.mean([row["mse"] for row in rows[-5:]]) < np.mean([row["mse"] for row in rows[:5]])
    assert result["psnr_db"] == pytest.approx(reconstruction_psnr(vae, CLIPS), abs=1e-6)


def test_the_encoder_is_its_closed_form() -> None:
    vae = build_from(ROOMY, 0).vae
    basis = patch_basis(CLIPS, 4, vae.config.latent_channels)
    start_from_patches(vae, basis)
    encoded = torch.cat(list(iterate_latents(vae, CLIPS)))
    assert torch.allclose(encoded, patch_latents(CLIPS, basis), atol=0.05)
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(len(basis.gains)), atol=1e-5)
    assert reconstruction_psnr(vae, CLIPS) > 15, "cells in their mean colour"


def test_the_untrained_network_repeats_the_first_frame() -> None:
    pipeline = build_from(ROOMY, 0)
    start_from_first_frame(pipeline.unet)
    target = torch.randn(2, 4, 4, 8, 8)
    with torch.no_grad():
        made = one_step(pipeline, torch.randn_like(target), target[:, 0], torch.zeros(2, 1, 16))
    assert torch.allclose(made, target[:, :1].expand_as(made), atol=0.1)


def test_only_the_second_pair_of_d2_tells_frames_apart_while_the_quiet_parts_rest() -> None:
    pipeline = build_from(ROOMY, 0)
    unet = pipeline.unet
    start_from_first_frame(unet)
    for name in ("U.2", "U.3"):  # as training would: the silent branches speak
        for resnet in bypass.block_of(unet, name).resnets:
            torch.nn.init.normal_(resnet.spatial_res_block.conv2.weight, std=0.1)
    image, noise, nothing = torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 4, 8, 8), torch.zeros(1, 1, 16)

    @torch.no_grad()
    def spread() -> float:
        made = one_step(pipeline, noise, image, nothing)
        return float((made - made[:, :1]).abs().max())

    assert spread() > 1e-3
    with bypass.without_pair(unet, "D.2", 1):
        assert spread() < 1e-4


def test_new_clips_are_new_and_repeatable() -> None:
    pipeline = build_from(ROOMY, 0)
    data = ProceduralData(ProceduralSpec(4, 32, 32), seed=0, count=8)
    start_from_patches(pipeline.vae, data.basis(pipeline.vae))
    source = data.source(pipeline, encode_clips(pipeline, CLIPS[:2]))
    first, again, other = (source.batch(2, loop.step_generator(0, step)).latents for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert source.windows(2, loop.step_generator(0, 1)).latents.shape == (2, 4, 4, 4, 4)


def test_a_left_out_pair_changes_nothing_once_the_context_ends() -> None:
    pipeline = build_pipeline("nano", 0)
    data = encode_clips(pipeline, CLIPS[:2])
    target = data.latents.float()

    @torch.no_grad()
    def sample() -> torch.Tensor:
        return one_step(pipeline, torch.zeros_like(target), target[:, 0], data.embeddings)

    before = sample()
    with bypass.without_pair(pipeline.unet, "U.1", 1), bypass.without_pair(pipeline.unet, "M", 1):
        cut = sample()
    assert not torch.equal(cut, before)
    assert torch.equal(sample(), before)


def test_shared_frames_make_a_down_block_blind_to_all_but_the_first() -> None:
    unet = build_pipeline("nano", 0).unet
    inputs = {
        "hidden_states": torch.randn(8, 32, 16, 16),
        "temb": torch.randn(8, 128),
        "encoder_hidden_states": torch.randn(8, 1, 16),
        "image_only_indicator": torch.zeros(2, 4),
    }
    with torch.no_grad(), bypass.shared_frames(unet, ("D.0",), 4):
        hidden, skips = unet.down_blocks[0](**inputs)
        first = {n: v[::4] if n != "image_only_indicator" else v[:, :1] for n, v in inputs.items()}
    with torch.no_grad():
        alone, _ = unet.down_blocks[0](**first)
    assert hidden.shape[0] == skips[0].shape[0] == 8
    assert torch.allclose(hidden[4:], alone[1:].expand(4, -1, -1, -1), atol=1e-5)


def test_temporal_convolutions_as_2d_are_the_same_sum() -> None:
    convolution = torch.nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
    x = torch.randn(2, 8, 4, 5, 6)
    expected = convolution(x)
    with temporal_convolutions_as_2d(torch.nn.Sequential(convolution)):
        assert torch.allclose(convolution(x), expected, atol=1e-6)
    assert np.array_equal(convolution(x).detach().numpy(), expected.detach().numpy())
