"""The registered model as MLflow loads it ("models from code"): an image in, a video out.

MLflow runs this file in a fresh process with the runtime requirements alone, so it imports the core
and nothing above it.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import set_model


def _image(value: Any) -> Any:
    """A PIL image from an array (H, W, 3), a PIL image, encoded bytes, base64 text, or a `Path`."""
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, np.ndarray):
        return Image.fromarray(value.astype(np.uint8)).convert("RGB")
    if isinstance(value, Path):  # text is never a path: a served model must not open files for its callers
        return ImageOps.exif_transpose(Image.open(value)).convert("RGB")
    data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def _mp4_base64(frames: Any, fps: float) -> str:
    from vdmini_core.data.video import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, frames, fps)
        return base64.b64encode(path.read_bytes()).decode()


class VideoStudent(mlflow.pyfunc.PythonModel):
    """Image -> video.

    An array, a PIL image, bytes or a `Path` gives frames uint8 (F, H, W, 3), a 4-d array (B, H, W, 3)
    gives (B, F, H, W, 3). A table with the column `image` (base64 or bytes; the form that is served)
    gives one record per row: `{"video": base64 mp4}`. An optional column or param `seed` picks the noise.
    """

    def load_context(self, context: Any) -> None:
        """Load the pipeline directory that was registered."""
        import vdmini_core  # noqa: F401  (makes the student's class known to diffusers)
        from vdmini_core.models.registry import load_pipeline, load_settings

        folder = Path(context.artifacts["pipeline"])
        self.pipeline = load_pipeline(folder)
        self.settings = load_settings(folder, self.pipeline)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Generate; see the class for the forms of input and output.

        Not annotated: MLflow would take annotations for a schema that refuses arrays and images.
        """
        import numpy as np
        import pandas as pd

        seed = int((params or {}).get("seed", 0))
        if isinstance(model_input, dict):
            model_input = pd.DataFrame([model_input])
        if isinstance(model_input, pd.DataFrame):
            seeds = (
                [int(s) for s in model_input["seed"]] if "seed" in model_input else [seed] * len(model_input)
            )
            videos = self._generate([_image(value) for value in model_input["image"]], seeds)
            return [{"video": _mp4_base64(video, self.settings.fps)} for video in videos]
        if isinstance(model_input, np.ndarray) and model_input.ndim == 4:
            return self._generate([_image(image) for image in model_input], [seed] * len(model_input))
        return self._generate([_image(model_input)], [seed])[0]

    def _generate(self, images: list[Any], seeds: list[int]) -> Any:
        import numpy as np
        import torch
        from PIL import ImageOps

        from vdmini_core.models.generate import generate
        from vdmini_core.models.inputs import ClipInputs

        size = (self.settings.width, self.settings.height)
        frames = np.stack([np.asarray(ImageOps.fit(image, size)) for image in images])
        return generate(self.pipeline, ClipInputs(torch.from_numpy(frames)), seeds, self.settings).numpy()


set_model(VideoStudent())
