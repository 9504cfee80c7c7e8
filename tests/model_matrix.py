"""The table of model classes in docs/families.md; `python -m tests.model_matrix` writes it.

What is said of transformers comes from `vdmini_core.models.dit.table`; tests/unit/test_dits.py tries each.
"""

from __future__ import annotations

import re
from pathlib import Path

from vdmini_core.models.dit.stacks import Architecture, Stack
from vdmini_core.models.dit.table import ARCHITECTURES
from vdmini_core.models.registry import FAMILY_MODULES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
START, END = "<!-- classes: written by `python -m tests.model_matrix` -->", "<!-- end of classes -->"
# Transformer class -> the pipeline whose whole story runs.
STORIES = {
    "WanTransformer3DModel": "WanPipeline",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoPipeline",
    "CogVideoXTransformer3DModel": "CogVideoXPipeline",
    "LTXVideoTransformer3DModel": "LTXPipeline",
}
# What tests/unit/test_dits.py finds refused.
UNCOUNTED = ("AnyFlowFARTransformer3DModel", "HeliosTransformer3DModel", "Kandinsky6SRTransformer3DModel")
NO_CPU_BACKWARD = ("AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel")  # flex attention
STRUCTURE = "units, bypass, student (`{}`), features, operations"
UNETS = {
    "UNetSpatioTemporalConditionModel": "whole story: `StableVideoDiffusionPipeline`",
    "UNet3DConditionModel": STRUCTURE.format("UNet3DPrunedModel")
    + "; with a frame rate, as `UNet3DFpsConditionModel`, whole story",
    "UNetMotionModel": "no: its blocks call resnets by the keyword `input_tensor`, which no placeholder of "
    "ours takes, and hold motion modules in a list that no unit knows",
    "I2VGenXLUNet": STRUCTURE.format("I2VGenXLPrunedUNet"),
}


def section() -> str:
    """The table with its markers."""
    rows = ["| class | units | what the config counts | state |", "|---|---|---|---|"]
    rows += [_row(name, architecture) for name, architecture in ARCHITECTURES.items()]
    rows += [f"| `{name}` | U-Net | | {state} |" for name, state in UNETS.items()]
    others = ", ".join(f"`{name}`" for name in not_video())
    return "\n".join([START, "", *rows, "", f"Not of video, hence not here: {others}.", "", END])


def not_video() -> list[str]:
    """The other transformers and U-Nets that diffusers exports: of images, sound or proteins, and parts."""
    import diffusers

    names = [name for name in dir(diffusers) if any(word in name for word in ("Transformer", "UNet", "DiT"))]
    known = {*ARCHITECTURES, *UNETS}
    return [name for name in names if name not in known and not re.search(r"Pipeline|Blocks|Mixin", name)]


def written() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    return before + section() + rest.partition(END)[2]


def _row(name: str, architecture: Architecture) -> str:
    units = ", ".join(f"`{stack.prefix}`" for stack in architecture.stacks)
    counts = dict.fromkeys(f"`{key}`" for stack in architecture.stacks for key in _keys(stack))
    state = [f"whole story: `{STORIES[name]}`" if name in STORIES else "units, bypass, student, features"]
    assert name not in STORIES or STORIES[name] in FAMILY_MODULES
    state += ["makes images"] if architecture.kind == "image" else []
    state += ["operations are not counted"] if name in UNCOUNTED else []
    state += ["recovery needs a GPU"] if name in NO_CPU_BACKWARD else []
    state += [architecture.note] if architecture.note else []
    return f"| `{name}` | {units} | {', '.join(counts)} | {'; '.join(state)} |"


def _keys(stack: Stack) -> list[str]:
    named = [stack.named] if stack.named else []
    grouped = [stack.group] if stack.group else []
    return [stack.count, *stack.first, *stack.last, *named, *grouped]


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
