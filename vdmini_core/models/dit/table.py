"""Every video transformer of the pinned diffusers by class name: where its layers lie and what pins them."""

from __future__ import annotations

from typing import Any

from vdmini_core.errors import ModelError
from vdmini_core.models.dit.stacks import Architecture, Config, Stack

BOTH = ("hidden_states", "encoder_hidden_states")


def last_differs(config: Config, index: int, count: int) -> str:
    """Mochi: the stock class builds its last layer without a text stream."""
    return "the class builds its last layer without a text stream" if index == count - 1 else ""


def first_has_positions(config: Config, index: int, count: int) -> str:
    """Latte: frame positions are added between the two halves of layer 0."""
    return "the frames' positions are added inside the first layer" if index == 0 else ""


def last_decoder(config: Config, index: int, count: int) -> str:
    """Motif: without a decoder layer the class takes another way."""
    one_left = config["num_decoder_layers"] > 0 and index == count - 1
    return "without a decoder layer the class takes another way" if one_left else ""


def has_hint(config: Config, index: int, count: int) -> str:
    """VACE: the control stream's hints are added behind layers by number."""
    return "a hint of the control stream is added behind it" if index in config["vace_layers"] else ""


def has_input_projection(config: Config, index: int, count: int) -> str:
    """VACE: the first control layer holds the way in."""
    return "it holds the control stream's way in" if index == 0 else ""


def skipped_by_number(config: Config, index: int, count: int) -> str:
    """Wan-Animate 2: the class leaves out layer 9 by its number where it guides."""
    return "the class leaves out layer 9 by its number in its unconditional pass" if index <= 9 else ""


def controlled_by_number(config: Config, index: int, count: int) -> str:
    """Cosmos: a control network adds to layers by number where the config says so."""
    controlled = config.get("controlnet_block_every_n") is not None
    return "a control network adds to layers by their number" if controlled else ""


def blocks(count: str = "num_layers", **more: Any) -> tuple[Stack, ...]:
    """One stack called `blocks`."""
    return (Stack("layer", "blocks", count, **more),)


def transformer_blocks(count: str = "num_layers", **more: Any) -> tuple[Stack, ...]:
    """One stack called `transformer_blocks`."""
    return (Stack("layer", "transformer_blocks", count, **more),)


def two_streams(**single: Any) -> tuple[Stack, ...]:
    """Double-stream layers, then single-stream ones, as in HunyuanVideo."""
    return (
        Stack("double", "transformer_blocks", "num_layers", BOTH),
        Stack("single", "single_transformer_blocks", "num_single_layers", BOTH, **single),
    )


VACE = (
    Stack(
        "control",
        "vace_blocks",
        "vace_layers",
        ("hidden_states", "control_hidden_states"),
        named="vace_layers",
        pinned=has_input_projection,
    ),
    Stack("layer", "blocks", "num_layers", named="vace_layers", pinned=has_hint),
)
FACES = blocks(group="inject_face_latents_blocks", beside=("face_adapter",), adds=True)
IDENTITY = transformer_blocks(
    streams=BOTH, group="cross_attn_interval", beside=("perceiver_cross_attention",), adds=True
)
VISUAL = "visual_transformer_blocks"

ARCHITECTURES: dict[str, Architecture] = {
    "AllegroTransformer3DModel": Architecture(transformer_blocks(), "allegro"),
    "AnyFlowTransformer3DModel": Architecture(blocks(), "any_flow", layout="BFCHW"),
    "AnyFlowFARTransformer3DModel": Architecture(blocks(), "any_flow_far", layout="packed"),
    "ChronoEditTransformer3DModel": Architecture(blocks(), "wan"),
    "CogVideoXTransformer3DModel": Architecture(
        transformer_blocks(streams=BOTH), "cogvideox", text_tokens=226, layout="BFCHW"
    ),
    "ConsisIDTransformer3DModel": Architecture(
        IDENTITY,
        "consisid",
        text_tokens=226,
        note="with `is_train_face`, layers go in groups: the identity is added behind every n-th one",
        layout="BFCHW",
    ),
    "Cosmos3OmniTransformer": Architecture(
        (Stack("layer", "layers", "num_hidden_layers", ("und_seq", "gen_seq")),),
        "cosmos3",
        note="features are whole sequences: text and video share one",
        layout="packed",
    ),
    "CosmosTransformer3DModel": Architecture(
        transformer_blocks(pinned=controlled_by_number),
        "cosmos",
        note="with a padding mask it needs torchvision",
    ),
    "EasyAnimateTransformer3DModel": Architecture(
        transformer_blocks(streams=BOTH, first=("mmdit_layers",)), "easy_animate"
    ),
    "HeliosTransformer3DModel": Architecture(blocks(), "wan"),
    "HunyuanVideo15Transformer3DModel": Architecture(
        transformer_blocks(streams=BOTH), "hunyuan_video_15", text_tokens=1000
    ),
    "HunyuanVideoFramepackTransformer3DModel": Architecture(two_streams(), "framepack", text_tokens=256),
    "HunyuanVideoTransformer3DModel": Architecture(two_streams(), "hunyuan_video", text_tokens=256),
    "JoyImageEditPlusTransformer3DModel": Architecture(
        (Stack("layer", "double_blocks", "num_layers", BOTH),),
        "joy_image_plus",
        kind="image",
        layout="packed",
    ),
    "JoyImageEditTransformer3DModel": Architecture(
        (Stack("layer", "double_blocks", "num_layers", BOTH),), "joy_image", kind="image"
    ),
    "Kandinsky5Transformer3DModel": Architecture(
        (Stack("layer", VISUAL, "num_visual_blocks", ("visual_embed",)),), "kandinsky5", layout="BFHWC"
    ),
    "Kandinsky6SRTransformer3DModel": Architecture(
        (Stack("layer", VISUAL, "num_visual_blocks"),), "kandinsky6_sr", layout="BFHWC", shuffled=True
    ),
    "Kandinsky6Transformer3DModel": Architecture(
        (Stack("layer", VISUAL, "num_visual_blocks", ("vis", "aud")),), "kandinsky6", layout="BFHWC"
    ),
    "LTX2VideoTransformer3DModel": Architecture(
        transformer_blocks(streams=("hidden_states", "audio_hidden_states")),
        "ltx2",
        note="guidance that names layers by number in a call means the student's numbers",
        layout="tokens",
    ),
    "LTXVideoTransformer3DModel": Architecture(transformer_blocks(), "ltx", text_tokens=128, layout="tokens"),
    "LatteTransformer3DModel": Architecture(
        transformer_blocks(beside=("temporal_transformer_blocks",), pinned=first_has_positions),
        "latte",
        text_tokens=120,
        note="a layer is its spatial and its temporal half",
    ),
    "MiniMaxH3Transformer3DModel": Architecture(
        transformer_blocks(),
        "minimax_h3",
        note="features are whole sequences: text, video and sound share one",
        layout="packed",
    ),
    "MochiTransformer3DModel": Architecture(
        transformer_blocks(streams=BOTH, pinned=last_differs), "mochi", text_tokens=256
    ),
    "MotifVideoTransformer3DModel": Architecture(
        two_streams(last=("num_decoder_layers",), pinned=last_decoder), "motif"
    ),
    "SanaVideoTransformer3DModel": Architecture(transformer_blocks(), "sana_video", text_tokens=300),
    "SanaWMLTX2RefinerTransformer3DModel": Architecture(
        transformer_blocks(), "sana_refiner", layout="packed"
    ),
    "SanaWMTransformer3DModel": Architecture(
        blocks(streams=("x",), group="softmax_every_n", first=("chunk_plucker_post_attn_blocks",)),
        "sana_wm",
        text_tokens=300,
        note="layers go in groups: every n-th one attends by softmax",
    ),
    "SkyReelsV2Transformer3DModel": Architecture(blocks(), "sky_reels"),
    "WanAnimate2Transformer3DModel": Architecture(
        blocks(pinned=skipped_by_number),
        "wan_animate_2",
        note="features are those of its last call",
        layout="packed",
    ),
    "WanAnimateTransformer3DModel": Architecture(
        FACES, "wan_animate", note="layers go in groups: the face is added behind every n-th one"
    ),
    "WanTransformer3DModel": Architecture(blocks(), "wan"),
    "WanVACETransformer3DModel": Architecture(
        VACE, "wan_vace", note="layers behind which a hint is added stay; control layers are units"
    ),
}


def architecture_of(denoiser: Any) -> Architecture:
    """What the table says of a transformer.

    Raises:
        ModelError: for a class that is not in it.
    """
    name = type(denoiser).__name__
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{name} is no video transformer that is known here",
            expected=", ".join(ARCHITECTURES),
            found=name,
        )
    return ARCHITECTURES[name]
