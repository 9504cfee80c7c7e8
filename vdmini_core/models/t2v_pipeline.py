"""Text to video with VideoCrafter2 or T2V-Turbo-v2: text, latents, sampling, frames.

Which of the two is seen by the U-Net: one that takes an embedding of the guidance scale (T2V-Turbo-v2)
needs one pass a step, another (VideoCrafter2) two passes and classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from vdmini_core.errors import ModelError
from vdmini_core.models.fps_unet import guidance_embedding
from vdmini_core.models.registry import TURBO_DEFAULTS, VIDEOCRAFTER2_DEFAULTS

TRAINED_TIMESTEPS = 1000
MOTION_GUIDANCE = 0.05
# How the originals' own scripts sample: the pipeline's defaults, and what conversion writes to vdmini.json.
SAMPLING: dict[str, dict[str, Any]] = {
    kind: {"fps": int(own["fps"]), "num_inference_steps": own["steps"], "guidance": own["guidance"]}
    for kind, own in (("videocrafter2", VIDEOCRAFTER2_DEFAULTS), ("t2v-turbo-v2", TURBO_DEFAULTS))
}
MOTION_SHARE = 0.3  # of the timesteps, from the noisiest on, in which motion guidance is on


class VideoCrafterPipeline(DiffusionPipeline):
    """U-Net, sampler, per-frame VAE and text encoder of VideoCrafter2 or T2V-Turbo-v2.

    Args:
        vae: `AutoencoderKL`; decodes frame by frame.
        text_encoder: `CLIPTextModel` whose `last_hidden_state` the U-Net was trained on.
        tokenizer: `CLIPTokenizer`, or None: then text comes as embeddings.
        unet: `UNet3DFpsConditionModel`.
        scheduler: `RescaledDDIMScheduler` or `ConsistencyScheduler`.
    """

    __module__ = "vdmini_core"
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["tokenizer"]  # noqa: RUF012 - diffusers' own way to say it

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str = "",
        num_frames: int = 16,
        height: int = 320,
        width: int = 512,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_guidance_scale: float = MOTION_GUIDANCE,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        decode_chunk_size: int = 8,
    ) -> Any:
        """Generate clips.

        Args:
            prompt: one text or several.
            negative_prompt: what to guide away from, where guidance takes two passes.
            num_frames: of a clip.
            height: of a frame in pixels, a multiple of 8 U-Net cells.
            width: likewise.
            fps: frame rate the U-Net is told; None: 16 for T2V-Turbo-v2, 28 for VideoCrafter2.
            num_inference_steps: None: 8 for T2V-Turbo-v2, which takes 4 to 16, 50 for VideoCrafter2.
            guidance_scale: None: 7.5 for T2V-Turbo-v2, 12 for VideoCrafter2.
            motion_guidance_scale: of T2V-Turbo-v2, in the noisiest 30 % of the timesteps.
            generator: of all noise.
            latents: unit noise (B, C, F, h, w); drawn where None.
            prompt_embeds: text (B, N, D) in place of `prompt`.
            negative_prompt_embeds: text (B, N, D) in place of `negative_prompt`.
            output_type: `np`, `pt`, `pil`, or `latent`.
            decode_chunk_size: frames the VAE decodes at once.

        Returns:
            Clips as `VideoProcessor.postprocess_video` gives them (`np`: (B, F, H, W, 3) in 0..1), or
            scaled latents (B, C, F, h, w).

        Raises:
            ModelError: without a prompt, or with a text where there is no tokenizer.
        """
        device = self._execution_device
        text = self.encode_text(prompt, prompt_embeds, device)
        count, unet = len(text), cast(Any, self.unet)
        usual = SAMPLING["videocrafter2" if unet.config.time_cond_proj_dim is None else "t2v-turbo-v2"]
        fps = usual["fps"] if fps is None else fps
        guidance_scale = usual["guidance"] if guidance_scale is None else guidance_scale
        two_passes = unet.config.time_cond_proj_dim is None and guidance_scale != 1
        without = text
        if two_passes:
            without = self.encode_text(negative_prompt, negative_prompt_embeds, device)
            without = without.expand(count, -1, -1)
        self.scheduler.set_timesteps(num_inference_steps or usual["num_inference_steps"], device=device)
        if latents is None:
            cells = (height // self.vae_scale_factor, width // self.vae_scale_factor)
            shape = (count, unet.config.in_channels, num_frames, *cells)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=text.dtype)
        current = final = latents.to(device) * self.scheduler.init_noise_sigma
        conditions = {
            "text": text,
            "negative_text": without,
            "fps": torch.full((count,), fps, device=device),
            "guidance": torch.full((count,), guidance_scale, device=device),
            "motion_guidance": torch.full((count,), motion_guidance_scale, device=device),
        }
        for t in self.progress_bar(self.scheduler.timesteps):
            guided = guided_noise(unet, current, t, conditions, two_passes)
            step = self.scheduler.step(guided, t, current, generator=generator)
            current, final = step.prev_sample, step.denoised
        # The consistency model's last word is its clean sample; DDIM's last step lands on its own.
        final = final if unet.config.time_cond_proj_dim is not None else current
        if output_type == "latent":
            return final
        return self.video_processor.postprocess_video(self.decode(final, decode_chunk_size), output_type)

    def encode_text(self, prompt: str | Sequence[str] | None, embeds: Tensor | None, device: Any) -> Tensor:
        """Text embeddings (B, N, D)."""
        if embeds is not None:
            return embeds.to(device)
        encoder = cast(Any, self.text_encoder)
        if prompt is None or self.tokenizer is None:
            raise ModelError(
                "there is no text to make a video of" if prompt is None else "the pipeline has no tokenizer",
                expected="`prompt`, with a tokenizer in the pipeline, or `prompt_embeds`",
                fix="convert the checkpoint with --tokenizer DIR, or give the embeddings",
            )
        length = encoder.config.max_position_embeddings
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, words in zip(ids, prompts, strict=True):
            # Padded with zeros whatever the tokenizer's own padding: the encoder was trained so.
            tokens = cast(Any, self.tokenizer)(words, truncation=True, max_length=length).input_ids
            row[: len(tokens)] = torch.tensor(tokens)
        return encoder(ids.to(device)).last_hidden_state

    def decode(self, latents: Tensor, chunk: int) -> Tensor:
        """Scaled latents (B, C, F, h, w) -> frames (B, 3, F, H, W) in -1..1."""
        vae = cast(Any, self.vae)
        frames = (latents / vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)
        images = torch.cat([vae.decode(part.to(vae.dtype)).sample for part in frames.split(chunk)])
        return images.unflatten(0, (len(latents), -1)).transpose(1, 2).float()


def guided_noise(
    unet: Any, latents: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor], two_passes: bool
) -> Tensor:
    """Predicted noise with guidance, like `latents`.

    Args:
        unet: `UNet3DFpsConditionModel`.
        latents: noisy (B, C, F, h, w).
        timestep: one for all, or (B,).
        conditions: `text` (B, N, D), `fps` (B,), `guidance` (B,); `negative_text` (B, N, D) for two passes;
            `motion_guidance` (B,), 0.05 where it is left out.
        two_passes: classifier-free guidance; else the guidance scale goes into a U-Net that takes it.
    """
    text, fps, guidance = (conditions[name] for name in ("text", "fps", "guidance"))
    if two_passes:
        both = torch.cat([conditions["negative_text"], text])
        times = timestep.expand(len(latents)).repeat(2)
        twice = torch.cat([latents, latents])
        without, with_text = unet(twice, times, both, fps=fps.repeat(2), return_dict=False)[0].chunk(2)
        return without + guidance.to(latents.dtype)[:, None, None, None, None] * (with_text - without)
    given = {}
    if unet.config.time_cond_proj_dim is not None:
        given["timestep_cond"] = guidance_embedding(guidance, unet.config.time_cond_proj_dim)
    if unet.config.motion_cond_proj_dim is not None:
        motion = conditions.get("motion_guidance", torch.full_like(guidance, MOTION_GUIDANCE))
        on = timestep.to(guidance.device) >= TRAINED_TIMESTEPS * (1 - MOTION_SHARE)
        given["motion_cond"] = guidance_embedding(motion * on, unet.config.motion_cond_proj_dim)
    return unet(latents, timestep, text, fps=fps, return_dict=False, **given)[0]
