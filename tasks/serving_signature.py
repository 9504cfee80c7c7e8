"""The signature of the registered model: what its page says it takes, and what MLflow holds callers to."""

from __future__ import annotations

from pathlib import Path

from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema


def signature_of(folder: Path) -> ModelSignature:
    """Columns and params of the student in a pipeline directory, by what its family starts from.

    `image` is png or jpeg as bytes or base64 text, or an array (H, W, 3), which as JSON is nested lists;
    `prompt` is text. `seed` and `frames` may be columns or params; 0 frames are as many as the student was
    recovered on. The answer is `video`, an mp4 as base64 text.
    """
    from vdmini_core.models.registry import family_of

    needs = family_of(folder).needs
    columns = [
        ColSpec(AnyType(), "image", required="first_frames" in needs),
        ColSpec("string", "prompt", required="prompts" in needs),
        ColSpec("long", "seed", required=False),
        ColSpec("long", "frames", required=False),
    ]
    return ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec("string", "video")]),
        params=ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("frames", "long", 0)]),
    )
