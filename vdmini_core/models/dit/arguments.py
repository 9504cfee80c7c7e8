"""What each transformer class is called with: noise, a prompt, and whatever else it cannot do without.

For counting operations (meta device), timing and tests; families of pipelines prepare the real thing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
Builder = Callable[[Any, "Maker"], Arguments]


@dataclass
class Maker:
    """Tensors of one size: zeros, or unit noise where there is a seed.

    Attributes:
        batch: clips B.
        frames: latent frames F.
        height: latent height h.
        width: latent width w.
        tokens: of a prompt, N.
        device: where they lie.
        seed: of the noise.
    """

    batch: int
    frames: int
    height: int
    width: int
    tokens: int
    device: torch.device | str = "cpu"
    seed: int | None = None
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed or 0)

    def new(self, *shape: int) -> Tensor:
        """A tensor of `shape`."""
        if self.seed is None:
            return torch.zeros(shape, device=self.device)
        return torch.randn(shape, generator=self.generator).to(self.device)

    def clip(self, channels: int) -> Tensor:
        """(B, C, F, h, w)."""
        return self.new(self.batch, channels, self.frames, self.height, self.width)

    def frames_first(self, channels: int) -> Tensor:
        """(B, F, C, h, w)."""
        return self.new(self.batch, self.frames, channels, self.height, self.width)

    def channels_last(self, channels: int) -> Tensor:
        """(B, F, h, w, C)."""
        return self.new(self.batch, self.frames, self.height, self.width, channels)

    def text(self, width: int) -> Tensor:
        """(B, N, D)."""
        return self.new(self.batch, self.tokens, width)

    def mask(self, tokens: int | None = None) -> Tensor:
        """Ones (B, N), int64."""
        return torch.ones(self.batch, tokens or self.tokens, dtype=torch.long, device=self.device)

    def time(self, *shape: int) -> Tensor:
        """Timestep 500, float32, (B,) or of `shape`."""
        return torch.full(shape or (self.batch,), 500.0, device=self.device)

    def grid(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, height and width in tokens."""
        return self.frames // patch[0], self.height // patch[1], self.width // patch[2]


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns in one token."""
    size = config.get("patch_size", config.get("latent_patch_size")) or 1
    if isinstance(size, int):
        return config.get("patch_size_t") or 1, size, size
    frames, height, width = size
    return frames, height, width


def arguments(denoiser: Any, maker: Maker) -> Arguments:
    """Keyword arguments of one call of `denoiser`, without `return_dict`."""
    from vdmini_core.models.dit.table import architecture_of

    return BUILDERS[architecture_of(denoiser).arguments](denoiser.config, maker)


def _basic(config: Any, make: Maker, text: str, channels: str = "in_channels") -> Arguments:
    """Clip channels first, timestep and text: what most classes take."""
    return {
        "hidden_states": make.clip(config[channels]),
        "timestep": make.time(),
        "encoder_hidden_states": make.text(config[text]),
    }


def _allegro(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "caption_channels")


def _any_flow(config: Any, make: Maker) -> Arguments:
    return {
        "hidden_states": make.frames_first(config.in_channels),
        "timestep": make.time(make.batch, make.frames),
        "r_timestep": make.time(make.batch, make.frames) / 2,
        "encoder_hidden_states": make.text(config.text_dim),
    }


def _any_flow_far(config: Any, make: Maker) -> Arguments:
    return {**_any_flow(config, make), "chunk_partition": [make.frames]}


def _wan(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "text_dim")


def _cogvideox(config: Any, make: Maker) -> Arguments:
    frames = make.frames + -make.frames % patch_of(config)[0]  # as many as fill tokens
    given = {
        "hidden_states": make.new(make.batch, frames, config.in_channels, make.height, make.width),
        "timestep": make.time(),
        "encoder_hidden_states": make.text(config.text_embed_dim),
    }
    return given | ({"ofs": make.time()} if config.get("ofs_embed_dim") else {})


def _consisid(config: Any, make: Maker) -> Arguments:
    if not config.is_train_face:
        return _cogvideox(config, make)
    views = [make.new(make.batch, 4, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
    face = {"id_cond": make.new(make.batch, config.LFE_id_dim), "id_vit_hidden": views}
    return _cogvideox(config, make) | face


def _cosmos(config: Any, make: Maker) -> Arguments:
    width = "crossattn_proj_in_channels" if config.use_crossattn_projection else "text_embed_dim"
    padding = make.new(1, 1, make.height, make.width) if config.concat_padding_mask else None
    return _basic(config, make, width) | {"fps": 16, "padding_mask": padding}


def _cosmos3(config: Any, make: Maker) -> Arguments:
    """One clip and its prompt in one sequence: text first."""
    frames, height, width = make.grid((1, config.latent_patch_size, config.latent_patch_size))
    video, device = frames * height * width, make.device
    places = torch.arange(make.tokens, make.tokens + video, device=device)
    return {
        "input_ids": torch.zeros(make.tokens, dtype=torch.long, device=device),
        "text_indexes": torch.arange(make.tokens, device=device),
        "position_ids": torch.arange(make.tokens + video, device=device).expand(3, -1),
        "und_len": make.tokens,
        "sequence_length": make.tokens + video,
        "vision_tokens": [make.new(1, config.latent_channel, make.frames, make.height, make.width)],
        "vision_token_shapes": [(frames, height, width)],
        "vision_sequence_indexes": places,
        "vision_mse_loss_indexes": places,
        "vision_timesteps": make.time(video),
        "vision_noisy_frame_indexes": [torch.arange(frames, device=device)],
    }


def _easy_animate(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "text_embed_dim")


def _framepack(config: Any, make: Maker) -> Arguments:
    def history(frames: int) -> Tensor:
        return make.new(make.batch, config.in_channels, frames, make.height, make.width)

    def places(frames: int) -> Tensor:
        return torch.arange(frames, device=make.device)

    return _hunyuan_video(config, make) | {
        "image_embeds": make.new(make.batch, 4, config.image_proj_dim),
        "indices_latents": places(make.frames),
        "latents_clean": history(1),
        "indices_latents_clean": places(1),
        "latents_history_2x": history(2),
        "indices_latents_history_2x": places(2),
        "latents_history_4x": history(4),
        "indices_latents_history_4x": places(4),
    }


def _hunyuan_video(config: Any, make: Maker) -> Arguments:
    guidance = {"guidance": make.time() * 12} if config.guidance_embeds else {}
    return {
        **_basic(config, make, "text_embed_dim"),
        "encoder_attention_mask": make.mask(),
        "pooled_projections": make.new(make.batch, config.pooled_projection_dim),
        **guidance,
    }


def _hunyuan_video_15(config: Any, make: Maker) -> Arguments:
    few = 4 if make.seed is not None else 256  # glyph tokens
    return {
        **_basic(config, make, "text_embed_dim"),
        "encoder_attention_mask": make.mask(),
        "encoder_hidden_states_2": make.new(make.batch, few, config.text_embed_2_dim),
        "encoder_attention_mask_2": make.mask(few),
        "image_embeds": make.new(make.batch, few, config.image_embed_dim),
    }


def _joy_image(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "text_dim")


def _joy_image_plus(config: Any, make: Maker) -> Arguments:
    grid = make.grid(patch_of(config))
    count = grid[0] * grid[1] * grid[2]
    return {
        "hidden_states": make.new(make.batch, count, config.in_channels, *patch_of(config)),
        "timestep": make.time(),
        "encoder_hidden_states": make.text(config.text_dim),
        "shape_list": [[grid]] * make.batch,
    }


def _kandinsky5(config: Any, make: Maker) -> Arguments:
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    rope = [torch.arange(size, device=make.device) for size in make.grid(patch_of(config))]
    return {
        "hidden_states": make.channels_last(channels),
        "encoder_hidden_states": make.text(config.in_text_dim),
        "timestep": make.time(),
        "pooled_projections": make.new(make.batch, config.in_text_dim2),
        "visual_rope_pos": rope,
        "text_rope_pos": torch.arange(make.tokens, device=make.device),
    }


def _kandinsky6(config: Any, make: Maker) -> Arguments:
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    return {
        "hidden_states": make.channels_last(channels),
        "encoder_hidden_states": make.text(config.in_text_dim),
        "timestep": make.time(),
        "pooled_projections": make.new(make.batch, config.in_text_dim2),
        "audio_hidden_states": make.new(make.batch, make.frames, config.in_audio_dim),
    }


def _kandinsky6_sr(config: Any, make: Maker) -> Arguments:
    return {"hidden_states": make.channels_last(2 * config.in_visual_dim + 1), "timestep": make.time()}


def _size(config: Any, make: Maker) -> dict[str, int]:
    """Latent size in tokens, as the LTX classes are told it."""
    return dict(zip(("num_frames", "height", "width"), make.grid(patch_of(config)), strict=True))


def _sequence(config: Any, make: Maker) -> Arguments:
    """Tokens (B, F*h*w, C) in place of a clip: what the LTX classes take."""
    frames, height, width = make.grid(patch_of(config))
    return {
        "hidden_states": make.new(make.batch, frames * height * width, config.in_channels),
        "encoder_hidden_states": make.text(config.caption_channels),
        "timestep": make.time(),
        "encoder_attention_mask": make.mask(),
    }


def _ltx(config: Any, make: Maker) -> Arguments:
    return _sequence(config, make) | _size(config, make)


def _ltx2(config: Any, make: Maker) -> Arguments:
    return {
        **_ltx(config, make),
        "timestep": make.time(),
        "sigma": make.time(),
        "audio_hidden_states": make.new(make.batch, make.frames, config.audio_in_channels),
        "audio_encoder_hidden_states": make.text(config.caption_channels),
        "audio_encoder_attention_mask": make.mask(),
        "audio_num_frames": make.frames,
    }


def _latte(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "caption_channels")


def _minimax_h3(config: Any, make: Maker) -> Arguments:
    """Text, then video, then as many tokens of sound as frames, in one sequence."""
    frames, height, width = make.grid(patch_of(config))
    video, sound, text = frames * height * width, make.frames, make.tokens
    count, patch = text + video + sound, patch_of(config)
    places = torch.arange(count, device=make.device)
    return {
        "hidden_states": make.new(1, video, config.in_channels * patch[0] * patch[1] * patch[2]),
        "audio_hidden_states": make.new(1, sound, config.audio_in_channels),
        "encoder_hidden_states": make.new(1, text, config.text_dim),
        "timestep": make.time(1),
        "timestep_indices": torch.zeros(count, dtype=torch.long, device=make.device),
        "token_tags": torch.zeros(count, dtype=torch.long, device=make.device),
        "position_ids": places[:, None].expand(-1, 3),
        "video_indices": places[text : text + video],
        "audio_indices": places[text + video :],
        "text_indices": places[:text],
    }


def _masked(config: Any, make: Maker, text: str) -> Arguments:
    return _basic(config, make, text) | {"encoder_attention_mask": make.mask()}


def _mochi(config: Any, make: Maker) -> Arguments:
    return _masked(config, make, "text_embed_dim")


def _motif(config: Any, make: Maker) -> Arguments:
    return _masked(config, make, "text_embed_dim")


def _sana_video(config: Any, make: Maker) -> Arguments:
    return _masked(config, make, "caption_channels")


def _sana_refiner(config: Any, make: Maker) -> Arguments:
    frames, height, width = make.grid(patch_of(config))
    angles = make.new(
        make.batch, frames * height * width, config.num_attention_heads * config.attention_head_dim
    )
    return _sequence(config, make) | {"video_rotary_emb": (angles.cos(), angles.sin())}


def _sana_wm(config: Any, make: Maker) -> Arguments:
    return _masked(config, make, "caption_channels") | {"timestep": make.time(make.batch, 1, make.frames)}


def _sky_reels(config: Any, make: Maker) -> Arguments:
    return _basic(config, make, "text_dim") | ({"fps": [0] * make.batch} if config.inject_sample_info else {})


def _wan_animate(config: Any, make: Maker) -> Arguments:
    """One latent frame more than the pose has: the reference comes first."""
    channels, size = config.in_channels, config.motion_encoder_size
    pose = make.new(make.batch, (channels - 4) // 2, make.frames - 1, make.height, make.width)
    return _basic(config, make, "text_dim") | {
        "pose_hidden_states": pose,
        "face_pixel_values": make.new(make.batch, 3, 4 * (make.frames - 1) - 3, size, size),
        "encoder_hidden_states_image": make.new(make.batch, 4, config.image_dim)
        if config.image_dim
        else None,
    }


def _wan_animate_2(config: Any, make: Maker) -> Arguments:
    """The pass over the reference: the denoising pass needs a compiled attention."""
    from diffusers import WanAnimate2Transformer3DModel

    grid = make.grid(patch_of(config))
    module = importlib.import_module(WanAnimate2Transformer3DModel.__module__)
    sizes = torch.tensor([grid])
    clip = [make.new(config.out_dim, make.frames, make.height, make.width) for _ in range(make.batch)]
    rest = config.in_dim - config.out_dim
    return {
        "hidden_states": clip,
        "condition_latents": [make.new(rest, make.frames, make.height, make.width) for _ in clip],
        "timestep": make.time(),
        "encoder_hidden_states": [make.new(min(make.tokens, config.text_len), config.text_dim) for _ in clip],
        "encoder_hidden_states_image": make.new(make.batch, 4, 1280) if config.use_img_emb else None,
        "kv_cache": module.WanAnimate2KVCache(config.num_layers),
        "kv_cache_mode": "extract",
        "seq_len": grid[0] * grid[1] * grid[2],
        "offset_grid_sizes": sizes,
    }


def _wan_vace(config: Any, make: Maker) -> Arguments:
    return _wan(config, make) | {"control_hidden_states": make.clip(config.vace_in_channels)}


BUILDERS: dict[str, Builder] = {
    name.removeprefix("_"): builder
    for name, builder in list(globals().items())
    if name.startswith("_") and callable(builder) and name not in ("_basic", "_size", "_sequence", "_masked")
}
