"""Tiny checkpoints laid out like VideoCrafter2's, for tests of the way through the converter.

U-Net and VAE are ours under the original's names: they prove the way, not the names. The text encoder is
made of torch's own layers, in OpenCLIP's order of computation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from vdmini_core.convert import unet_keys, vae_keys
from vdmini_core.convert.checkpoint import TEXT, UNET, VAE
from vdmini_core.convert.tables import our_key
from vdmini_core.convert.unet_config import unet_config
from vdmini_core.models.fps_unet import UNet3DFpsConditionModel

WIDTH, WORDS, LENGTH, LAYERS = 64, 50, 7, 3
ARGUMENTS = {
    "model_channels": 32,
    "channel_mult": [1, 2],
    "attention_resolutions": [1],
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "context_dim": WIDTH,
    "temporal_length": 3,
}
TURBO = {**ARGUMENTS, "time_cond_proj_dim": 8, "motion_cond_proj_dim": 8}


def tiny_unet(kind: str = "videocrafter2", seed: int = 0, **changes: Any) -> Any:
    arguments = (TURBO if kind == "t2v-turbo-v2" else ARGUMENTS) | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = UNet3DFpsConditionModel.from_config(unet_config(kind, arguments))
        for parameter in model.parameters():  # nothing stays at zero or one
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def original_unet(model: Any) -> dict[str, Tensor]:
    back = {ours: theirs for theirs, ours in unet_keys.module_table(model.config).items()}
    state = {}
    for name, tensor in model.state_dict().items():
        key = our_key(name, back)
        assert key is not None
        state[key] = tensor[..., None] if name in unet_keys.SQUEEZED else tensor
    return state


def tiny_vae(seed: int = 1) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
        ).eval()


def original_vae(vae: Any) -> dict[str, Tensor]:
    back = {ours: theirs for theirs, ours in vae_keys.module_table(vae.config).items()}
    state = {}
    for name, tensor in vae.state_dict().items():
        key = our_key(name, back)
        assert key is not None
        state[key] = tensor[:, :, None, None] if vae_keys.SQUEEZED.search(name) else tensor
    return state


class OpenCLIPText(nn.Module):
    """OpenCLIP's text tower from torch's own layers: norm first, GELU, causal, learned positions."""

    def __init__(self, seed: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(WORDS, WIDTH)
            self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
            layer = {"dim_feedforward": 2 * WIDTH, "activation": "gelu", "norm_first": True}
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(WIDTH, WIDTH // 64, batch_first=True, dropout=0.0, **layer)  # type: ignore[arg-type]
                for _ in range(LAYERS)
            )
            self.norm = nn.LayerNorm(WIDTH)
            for parameter in self.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)

    def penultimate(self, ids: Tensor) -> Tensor:
        """What the U-Net is trained on: every layer but the last, then the final norm."""
        hidden = self.tokens(ids) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        for layer in list(self.layers)[:-1]:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.norm(hidden)

    def original(self) -> dict[str, Tensor]:
        """Its weights by OpenCLIP's names."""
        names = {
            "norm1": "ln_1",
            "norm2": "ln_2",
            "linear1": "mlp.c_fc",
            "linear2": "mlp.c_proj",
            "self_attn": "attn",
        }
        state: dict[str, Tensor] = {
            "token_embedding.weight": self.tokens.weight,
            "positional_embedding": self.positions,
            "ln_final.weight": self.norm.weight,
            "ln_final.bias": self.norm.bias,
            "text_projection": torch.randn(WIDTH, WIDTH),
            "logit_scale": torch.tensor(4.6),
        }
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.state_dict().items():
                module, _, rest = name.partition(".")
                state[f"transformer.resblocks.{index}.{names[module]}.{rest}"] = tensor
        return {name: tensor.detach() for name, tensor in state.items()}


def checkpoint(unet: Any, vae: Any, text: OpenCLIPText) -> dict[str, Tensor]:
    """All of it, by the names of the training class."""
    parts = ((UNET, original_unet(unet)), (VAE, original_vae(vae)), (TEXT, text.original()))
    return {prefix + name: tensor for prefix, state in parts for name, tensor in state.items()}


def unet_file(path: Path, kind: str = "videocrafter2", drop: str = "", **more: Tensor) -> Path:
    """A file with a U-Net's weights alone, without `drop`, with `more`."""
    state = original_unet(tiny_unet(kind))
    save_file({k: v.contiguous() for k, v in state.items() if k != drop} | more, path)
    return path
