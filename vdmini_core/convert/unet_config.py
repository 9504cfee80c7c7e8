"""Constructor arguments of the original U-Net class -> the config of ours.

The original can be built in ways these models never were (relative positions, a causal mask, image
attention); what our class cannot repeat is refused here, not ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from vdmini_core.errors import ModelError

NORM_GROUPS = 32
_VIDEOCRAFTER2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "context_dim": 1024,
    "time_cond_proj_dim": None,
    "motion_cond_proj_dim": None,
    "temporal_length": 16,
}
# What the published checkpoints were built with: format -> arguments that set sizes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "videocrafter2": _VIDEOCRAFTER2,
    "t2v-turbo-v2": {**_VIDEOCRAFTER2, "time_cond_proj_dim": 256, "motion_cond_proj_dim": 256},
}
# Arguments that change the computation: only these values are what our class computes.
REQUIRED: dict[str, Any] = {
    "dims": 2,
    "conv_resample": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "num_heads": -1,
    "transformer_depth": 1,
    "temporal_transformer_depth": 1,
    "use_linear": True,
    "temporal_conv": True,
    "tempspatial_aware": False,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "addition_attention": True,
    "use_image_attention": False,
    "fps_cond": True,
}
# Arguments that are one whole number each.
WHOLE = (
    "in_channels",
    "out_channels",
    "model_channels",
    "num_res_blocks",
    "num_head_channels",
    "context_dim",
    "temporal_length",
)
# More of anything is a slip, and would not be built in a lifetime.
LARGEST, MOST_BLOCKS = 2**16, 64
# Arguments that change nothing at inference in single precision.
FREE = frozenset({"dropout", "use_checkpoint", "use_fp16"})


def unet_config(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Config of `UNet3DFpsConditionModel` for the original's constructor arguments.

    Args:
        kind: `videocrafter2` or `t2v-turbo-v2`; its published arguments hold where `given` says nothing.
        given: arguments as the original class takes them.

    Raises:
        ModelError: for an unknown argument, one our class cannot follow, or those of the other format.
    """
    arguments = {**PUBLISHED[kind], **given}
    for name, value in given.items():
        _check_known(name)
        if name in REQUIRED and value != REQUIRED[name]:
            raise _refused(name, f"{REQUIRED[name]!r}, the only structure that is converted", value)
    sizes = {name: _whole(name, arguments[name]) for name in WHOLE}
    multiples, attends = _levels(arguments)
    widths = [sizes["model_channels"] * multiple for multiple in multiples]
    if max(widths) > LARGEST:
        raise _refused("channel_mult", f"levels of at most {LARGEST} channels", widths)
    if sizes["model_channels"] % NORM_GROUPS:
        raise _refused("model_channels", f"a multiple of {NORM_GROUPS}", sizes["model_channels"])
    heads = sizes["num_head_channels"]
    # The mid block attends whatever the lowest level does.
    if any(width % heads for width, used in zip(widths, [*attends[:-1], True], strict=True) if used):
        raise _refused("num_head_channels", f"a divisor of the attending levels' widths {widths}", heads)
    conditions = {
        name: None if arguments[name] is None else _whole(name, arguments[name])
        for name in ("time_cond_proj_dim", "motion_cond_proj_dim")
    }
    _check_conditions(kind, conditions)
    return {
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_channels"],
        "down_block_types": ["CrossAttnDownBlock3D" if used else "DownBlock3D" for used in attends],
        "up_block_types": ["CrossAttnUpBlock3D" if used else "UpBlock3D" for used in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": sizes["num_res_blocks"],
        "norm_num_groups": NORM_GROUPS,
        "cross_attention_dim": sizes["context_dim"],
        "attention_head_dim": heads,
        **conditions,
    }


def _check_conditions(kind: str, widths: Mapping[str, int | None]) -> None:
    """The guidance scale is what tells the formats apart: their samplers differ, too."""
    if kind == "videocrafter2":
        for name, width in widths.items():
            if width is not None:
                expected = "null, as a VideoCrafter2 U-Net is told no guidance scale"
                raise _refused(name, expected, width, "for a T2V-Turbo U-Net use `convert t2v-turbo-v2`")
    elif widths["time_cond_proj_dim"] is None:
        expected = "a width, as a T2V-Turbo U-Net is told the guidance scale"
        fix = "for a VideoCrafter2 U-Net use `convert videocrafter2`"
        raise _refused("time_cond_proj_dim", expected, None, fix)


def _levels(arguments: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
    """Multiples of the width, and whether a level attends, level by level."""
    multiples, factors = arguments["channel_mult"], arguments["attention_resolutions"]
    for name, value in (("channel_mult", multiples), ("attention_resolutions", factors)):
        if not isinstance(value, list | tuple) or not value:
            raise _refused(name, "a list of whole numbers", value)
        for number in value:
            _whole(name, number)
    possible = [2**level for level in range(len(multiples))]
    if not set(factors) <= set(possible):
        raise _refused("attention_resolutions", f"factors out of {possible}", factors)
    return list(multiples), [factor in factors for factor in possible]


def _whole(name: str, value: Any) -> int:
    most = MOST_BLOCKS if name == "num_res_blocks" else LARGEST
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _refused(name, f"a whole number from 1 to {most}", value)
    return value


def _check_known(name: str) -> None:
    known = [*_VIDEOCRAFTER2, *REQUIRED, *FREE]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ModelError(
            f"--config: the original U-Net has no argument `{name}`",
            expected="its constructor arguments, as in its YAML under `unet_config.params`",
            found=name,
            fix=f"did you mean `{near[0]}`?",
        )


def _refused(name: str, expected: str, found: Any, fix: str = "") -> ModelError:
    found = "null" if found is None else repr(found)
    return ModelError(f"--config: `{name}` does not fit", expected=expected, found=found, fix=fix)
