"""The text encoder of the checkpoint (`cond_stage_model.model`, OpenCLIP ViT-H/14) and `CLIPTextModel`.

The U-Net was trained on the output of the last layer but one, with the final norm applied to it: here the
last layer is left out, so that `last_hidden_state` is what the U-Net wants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vdmini_core.convert.tables import our_key
from vdmini_core.errors import ModelError

HEAD_WIDTH = 64  # of every OpenCLIP text tower; the weights do not tell it
OUTSIDE = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Of CLIP as a whole: for comparing texts with images, and the causal mask that every layer makes itself.
NOT_NEEDED = frozenset({"text_projection", "logit_scale", "attn_mask"})
JOINT = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def text_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the `CLIPTextConfig` these weights are of, one layer fewer than they have.

    Args:
        state: weights by their original names, without the checkpoint's prefix.

    Raises:
        ModelError: when the weights that tell the sizes are not there, or a width is no multiple of 64.
    """
    layers = [int(match[1]) for key in state if (match := JOINT.fullmatch(key))]
    try:
        vocabulary, width = state["token_embedding.weight"].shape
        inner = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        length = state["positional_embedding"].shape[0]
        count = max(layers)
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(
            "the checkpoint's text encoder is incomplete",
            expected="the weights of `cond_stage_model.model` (OpenCLIP)",
            found=f"nothing to read its sizes from ({error})",
            fix="download the checkpoint again",
        ) from None
    if width % HEAD_WIDTH or count < 1:
        raise ModelError(
            "the checkpoint's text encoder is of an unknown kind",
            expected=f"two layers or more, of a width in multiples of {HEAD_WIDTH}",
            found=f"{count + 1} layers of width {width}",
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": count,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": length,
        "hidden_act": "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def module_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module path -> ours, but for the joint projections, which `text_weights` splits.

    Args:
        config: from `text_config`.
    """
    table = dict(OUTSIDE)
    for index in range(config["num_hidden_layers"]):
        table |= {
            f"transformer.resblocks.{index}.{old}": f"encoder.layers.{index}.{new}"
            for old, new in LAYER.items()
        }
    return table


def text_weights(key: str, weight: Tensor, config: Mapping[str, Any]) -> Iterator[tuple[str | None, Tensor]]:
    """Our names and tensors of one original weight: three of a joint projection, none of what is not needed.

    Args:
        key: original name without the checkpoint's prefix.
        weight: its tensor.
        config: from `text_config`.

    Yields:
        Name (None: the original has no such weight) and tensor.
    """
    last = f"transformer.resblocks.{config['num_hidden_layers']}."
    if key in NOT_NEEDED or key.startswith(last):
        return
    joint = JOINT.fullmatch(key)
    if joint is None:
        yield our_key(key, module_table(config)), weight
    elif weight.shape[0] % 3:
        yield None, weight
    else:
        for name, part in zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True):
            yield f"encoder.layers.{joint[1]}.self_attn.{name}.{joint[2]}", part.contiguous()
