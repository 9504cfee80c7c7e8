"""Training of the teacher: it learns, resumes to the same bytes, and equals the stock pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.errors import TrainingError
from vdmini_core.teacher import bypass, loop
from vdmini_core.teacher.architecture import build_pipeline, call_arguments
from vdmini_core.teacher.one_step import encode_clips, one_step
from vdmini_core.teacher.temporal_conv import temporal_convolutions_as_2d
from vdmini_core.teacher.training import TrainConfig, prepare_unet, train_unet
from vdmini_core.teacher.vae_training import VaeTrainConfig, iterate_latents, reconstruction_psnr, train_vae

CLIPS = render_clips(ProceduralSpec(4, 32, 32), split_seeds("train", 8, 0))
SHORT = TrainConfig(
    steps=4, deep_steps=2, shared_steps=3, batch_size=2, log_every=1, checkpoint_every=2, warmup=2
)


class Stop(Exception):
    pass


def stop_after(step: int) -> Any:
    def on_log(row: dict[str, Any]) -> None:
        if row["step"] > step:
            raise Stop

    return on_log


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
    whole = build_pipeline("nano", 0)
    train_unet(whole, CLIPS, SHORT, tmp_path / "whole")
    with pytest.raises(Stop):
        train_unet(build_pipeline("nano", 0), CLIPS, SHORT, tmp_path / "cut", stop_after(2))
    resumed = build_pipeline("nano", 0)
    train_unet(resumed, CLIPS, SHORT, tmp_path / "cut")
    assert weights(resumed.unet) == weights(whole.unet)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = {"seed": 0, "steps": 4}
    loop.save_checkpoint(tmp_path / "unet.pt", {"config": config})
    with pytest.raises(TrainingError, match="another run"):
        loop.load_checkpoint(tmp_path / "unet.pt", {**config, "seed": 1})


def test_the_loss_falls(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    config = TrainConfig(steps=12, batch_size=4, log_every=4, warmup=2, skip_dropout=0.0)
    train_unet(build_pipeline("nano", 0), CLIPS, config, tmp_path, rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"steps_per_second", "minutes_left"} <= rows[0].keys()


def test_the_autoencoder_learns_and_keeps_its_latents_scaled(tmp_path: Path) -> None:
    vae = build_pipeline("nano", 0).vae
    config = VaeTrainConfig(steps=12, batch_size=2, crop=16, warmup=2, log_every=6, latent_std=2.0)
    result = train_vae(vae, CLIPS, config, tmp_path)
    latents = torch.cat(list(iterate_latents(vae, CLIPS)))
    assert vae.config.scaling_factor == 0.5
    assert torch.allclose(latents.std(dim=(0, 1, 3, 4)), torch.full((4,), 2.0), rtol=1e-3)
    assert result["psnr_db"] == pytest.approx(reconstruction_psnr(vae, CLIPS), abs=1e-6)


def test_closed_skips_and_a_left_out_block_change_nothing_once_the_context_ends() -> None:
    pipeline = build_pipeline("nano", 0)
    data = encode_clips(pipeline, CLIPS[:2], bf16=False)
    target = data.latents.float()
    noise = torch.zeros_like(target)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        return one_step(pipeline, noise, target[:, 0], data.embeddings)

    before = sample()
    with bypass.scaled_skips(pipeline.unet, ("U.2", "U.3"), torch.zeros(1)):
        closed = sample()
    with bypass.without_pair(pipeline.unet, "U.1", 1), bypass.without_pair(pipeline.unet, "M", 1):
        cut = sample()
    assert not torch.equal(closed, before)
    assert not torch.equal(cut, before)
    assert torch.equal(sample(), before)


def test_motion_starts_in_the_deep_blocks() -> None:
    unet = build_pipeline("nano", 0).unet
    prepare_unet(unet)

    def spatial_share(name: str) -> float:
        named = bypass.block_of(unet, name).named_parameters()
        return float(
            torch.stack([p.detach().sigmoid() for path, p in named if path.endswith("mix_factor")]).mean()
        )

    assert min(spatial_share("D.0"), spatial_share("U.3")) > 0.9
    assert max(spatial_share("D.2"), spatial_share("U.1")) < 0.5


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
