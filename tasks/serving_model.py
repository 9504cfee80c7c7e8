"""The registered model as MLflow loads it ("models from code"): an image or a prompt in, a video out.

MLflow runs this file in a fresh process with the runtime requirements alone, so it imports the core
and nothing above it.
"""

from __future__ import annotations

import base64
import copy
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import set_model

# Of a request: more would fill the memory of the server for one caller.
MOST_ROWS = 64
MOST_VALUES = 3 * 2**26  # of an array, 8192 x 8192 x 3
LONGEST = 10_000  # characters of a prompt; text encoders read some hundred


def _image(value: Any) -> Any:
    """A PIL image from an array (H, W, 3), a PIL image, encoded bytes, base64 text, or a `Path`.

    Raises:
        DataError: for anything else, what is damaged or no PNG or JPEG, and absurd sizes.
    """
    import numpy as np
    from PIL import Image

    from vdmini_core.data.images import open_image

    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, list):  # an array that came as JSON
        value = _array(value)
    if isinstance(value, np.ndarray):
        if value.ndim != 3 or value.shape[-1] != 3 or not 0 < value.size <= MOST_VALUES:
            raise _no_image(f"an array of shape {value.shape}")
        return Image.fromarray(value.astype(np.uint8)).convert("RGB")
    if isinstance(value, Path):  # text is never a path: a served model must not open files for its callers
        return open_image(value, value.name)
    if not isinstance(value, str | bytes | bytearray | memoryview):  # `bytes` of a number are so many zeros
        raise _no_image(type(value).__name__)
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)
    except ValueError:
        raise _no_image("text that is not base64") from None
    return open_image(io.BytesIO(data), "the image")


def _array(value: list[Any]) -> Any:
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):  # ragged, nested too deeply, or no numbers
        raise _no_image("lists that are no array of numbers") from None


def _no_image(found: str) -> Exception:
    from vdmini_core.errors import DataError

    expected = f"PNG or JPEG as bytes or base64 text, or an array (H, W, 3) of at most {MOST_VALUES:,} values"
    return DataError("this is no image", expected=expected, found=found)


def _whole(value: Any, name: str) -> int:
    """A whole number from 0 to 2**63 - 1, which random generators and schemas take.

    Raises:
        DataError: for anything else.
    """
    from vdmini_core.errors import DataError

    try:
        number = int(value)
        fine = number == value and 0 <= number < 2**63
    except (TypeError, ValueError, OverflowError):  # a list, NaN, infinity
        fine = False
    if not fine:
        raise DataError(
            f"`{name}` is no number that can be used", expected="0 or more", found=repr(value)[:80]
        )
    return number


def _demand_few(rows: int) -> None:
    """All rows of a request are made in one batch.

    Raises:
        DataError: for more than a machine holds, or none.
    """
    from vdmini_core.errors import DataError

    if not 0 < rows <= MOST_ROWS:
        raise DataError(
            "a request of so many rows is not served",
            expected=f"1 to {MOST_ROWS}",
            found=str(rows),
            fix="send several requests",
        )


def _frames(model_input: Any, params: Any) -> int:
    """How many frames are asked for: the table's column `frames`, or the param; 0 for as many as usual.

    Raises:
        DataError: for rows that ask for different numbers: they are made in one batch.
    """
    import pandas as pd

    from vdmini_core.errors import DataError

    asked = {_whole((params or {}).get("frames", 0), "frames")}
    if isinstance(model_input, pd.DataFrame | dict) and "frames" in model_input:
        column = model_input["frames"]
        asked = {_whole(each, "frames") for each in (column if isinstance(column, pd.Series) else [column])}
    if len(asked) != 1:
        raise DataError("the rows ask for different numbers of frames", expected="one", found=str(asked))
    return asked.pop()


def _text(value: Any) -> str:
    from vdmini_core.errors import DataError

    if not isinstance(value, str) or not value.strip():
        raise DataError("this model starts from a prompt", expected="text", found=type(value).__name__)
    if len(value) > LONGEST:
        raise DataError(
            "this prompt is too long", expected=f"at most {LONGEST:,} characters", found=f"{len(value):,}"
        )
    return value


def _mp4_base64(frames: Any, fps: float) -> str:
    from vdmini_core.data.video import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, frames, fps)
        return base64.b64encode(path.read_bytes()).decode()


class VideoStudent(mlflow.pyfunc.PythonModel):
    """Image -> video, or prompt -> video, as the student's family needs it.

    From images: an array, a PIL image, bytes or a `Path` gives frames uint8 (F, H, W, 3), a 4-d array
    (B, H, W, 3) gives (B, F, H, W, 3). From prompts: a text gives (F, H, W, 3), a list of n texts
    (n, F, H, W, 3). A table with the column `image` (base64, bytes or array) or `prompt` (the form that is
    served) gives one record per row: `{"video": base64 mp4}`; a model that needs both takes only that form.
    An optional column or param `seed` picks the noise, `frames` how many frames, up to those of the recovery.
    MLflow's `model_config` (or MLFLOW_PYFUNC_INFERENCE_CONFIG for a server) sets `device` and `dtype`: auto,
    fp32, bf16 or fp16; auto is the GPU in bf16 where there is one, else the CPU in fp32.
    """

    def load_context(self, context: Any) -> None:
        """Load the pipeline directory that was registered."""
        import vdmini_core  # noqa: F401  (makes the student's class known to diffusers)
        from vdmini_core.models.precision import choose
        from vdmini_core.models.registry import family_of, load_pipeline, load_settings

        folder = Path(context.artifacts["pipeline"])
        config = getattr(context, "model_config", None) or {}
        place = choose(config.get("device") or "auto", config.get("dtype") or "auto")
        self.pipeline = load_pipeline(folder, *place)
        self.settings = load_settings(folder, self.pipeline)
        self.needs = family_of(self.pipeline).needs

    def _with_frames(self, frames: int) -> VideoStudent:
        """This student, to be sampled with so many frames; calls at the same time keep their own number."""
        from vdmini_core.errors import DataError

        most = self.settings.frames
        if not 2 <= frames <= most:
            raise DataError(
                "this student cannot make so many frames",
                expected=f"2 to {most}, which it was recovered on",
                found=str(frames),
            )
        other = copy.copy(self)
        other.settings = replace(
            self.settings, frames=frames, decode_chunk_size=min(frames, self.settings.decode_chunk_size)
        )
        return other

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Generate; see the class for the forms of input and output.

        Not annotated: MLflow would take annotations for a schema that refuses arrays and images.
        """
        import numpy as np
        import pandas as pd

        if _frames(model_input, params) not in (0, self.settings.frames):
            return self._with_frames(_frames(model_input, params)).predict(context, model_input, params)
        seed = _whole((params or {}).get("seed", 0), "seed")
        if isinstance(model_input, dict):
            model_input = pd.DataFrame([model_input])
        if isinstance(model_input, pd.DataFrame):
            return self._rows(model_input, seed)
        if self.needs == ("prompts",):
            texts = [model_input] if isinstance(model_input, str) else list(model_input)
            _demand_few(len(texts))
            videos = self._generate(None, texts, [seed] * len(texts))
            return videos[0] if isinstance(model_input, str) else videos
        if isinstance(model_input, np.ndarray) and model_input.ndim == 4:
            _demand_few(len(model_input))
            return self._generate([_image(image) for image in model_input], None, [seed] * len(model_input))
        return self._generate([_image(model_input)], None, [seed])[0]

    def _rows(self, table: Any, seed: int) -> list[dict[str, str]]:
        """One record a row of a table with the columns that the model needs."""
        from vdmini_core.errors import DataError

        _demand_few(len(table))
        columns = {"first_frames": "image", "prompts": "prompt"}
        wanted = [columns[need] for need in self.needs]
        if not set(wanted) <= set(table):
            raise DataError(
                "the table lacks what this model starts from",
                expected=" and ".join(f"a column `{name}`" for name in wanted),
                found=", ".join(map(str, table)) or "no columns",
            )
        images = [_image(value) for value in table["image"]] if "image" in wanted else None
        prompts = list(table["prompt"]) if "prompt" in wanted else None
        seeds = [_whole(s, "seed") for s in table["seed"]] if "seed" in table else [seed] * len(table)
        return [
            {"video": _mp4_base64(video, self.settings.fps)}
            for video in self._generate(images, prompts, seeds)
        ]

    def _generate(self, images: list[Any] | None, prompts: list[Any] | None, seeds: list[int]) -> Any:
        import numpy as np
        import torch
        from PIL import ImageOps

        from vdmini_core.models.generate import generate
        from vdmini_core.models.inputs import ClipInputs

        size, frames = (self.settings.width, self.settings.height), None
        if images is not None:
            frames = torch.from_numpy(np.stack([np.asarray(ImageOps.fit(image, size)) for image in images]))
        texts = None if prompts is None else tuple(_text(prompt) for prompt in prompts)
        return generate(self.pipeline, ClipInputs(frames, texts), seeds, self.settings).numpy()


set_model(VideoStudent())
