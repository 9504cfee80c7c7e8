"""What a registered student was made from and by, and whether its files do what they should."""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks.gate import Checks
from tasks.stage import finished
from vdmini_core.artifacts import digest_of, is_safetensors, sha256_file

HARMLESS = frozenset({".json", ".txt", ".md"})  # read as text, never run
_ON_PURPOSE = ("type hints", "input example")  # what MLflow warns of
TRIAL_STEPS = 2  # whether it generates shows after two steps; how well, `evaluate` has measured


def provenance(root: Path) -> dict[str, str]:
    """What the project's student rests on; `none` where there is no such thing.

    `data` is one hash over the outputs of `prepare`: the clips themselves, wherever they came from.
    """
    lock = root / "dvc.lock"
    return {
        "teacher": str(finished(root, "teacher")["metrics"].get("fingerprint", "unknown")),
        "plan": sha256_file(root / "artifacts" / "plan" / "plan.json"),
        "data": digest_of(finished(root, "prepare")["outputs"]),
        "dvc_lock": sha256_file(lock) if lock.is_file() else "none",
        "git_commit": git_commit(root),
        "code": digest_of(finished(root, "distill")["code"]),
    }


def git_commit(root: Path) -> str:
    """Commit of the project folder, `none` outside git."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return found.stdout.strip() or "none"


def check_student(folder: Path, device: str = "cpu") -> Checks:
    """Look at the registered files, and only where they are safe load them and make a clip.

    Args:
        folder: the pipeline directory as it came back from the registry.
        device: where to try it.
    """
    unsafe = unsafe_files(folder)
    if unsafe:
        return Checks(unsafe, "its files are not safe to load")
    try:
        return Checks((), _generates(folder, device))
    except Exception as error:  # whatever it is: the gate tells it, the version stays out
        told = str(error).strip().splitlines() or [""]
        return Checks((), f"{type(error).__name__}: {told[0]}"[:500])


def unsafe_files(folder: Path) -> tuple[str, ...]:
    """Files that are neither safetensors by content nor plain text by name, links included."""
    found = []
    for path in sorted(folder.rglob("*")):
        fine = path.suffix in HARMLESS or (path.suffix == ".safetensors" and is_safetensors(path))
        if path.is_symlink() or (path.is_file() and not fine):
            found.append(path.relative_to(folder).as_posix())
    return tuple(found)


@contextmanager
def without_hint_warning() -> Iterator[None]:
    """Not told that `predict` has no type hints (MLflow would refuse arrays and images with them), nor that
    there is no input example (it would make a video while the model is logged; `check_student` makes one).

    It sets filters of its own, so that the one who shows warnings is replaced.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.showwarning = lambda message, *more, **named: (
            None if any(text in str(message) for text in _ON_PURPOSE) else show(message, *more, **named)
        )
        yield


def _generates(folder: Path, device: str) -> bool | str:
    """One clip through the very class that is served."""
    import pandas as pd
    from PIL import Image

    from vdmini_core.data.video import read_video
    from vdmini_core.models.registry import quiet_libraries

    with quiet_libraries(), without_hint_warning():
        from tasks.serving_model import VideoStudent

        student = VideoStudent()
        context = SimpleNamespace(artifacts={"pipeline": folder}, model_config={"device": device})
        student.load_context(context)
    wanted = student.settings
    student.settings = replace(wanted, steps=min(wanted.steps, TRIAL_STEPS))
    image = Image.new("RGB", (wanted.width, wanted.height), (128, 96, 64))
    row: dict[str, Any] = {"image": image, "prompt": "a red ball rolls over grass"}
    (answer,) = student.predict(None, pd.DataFrame([row]))
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "clip.mp4"
        path.write_bytes(base64.b64decode(answer["video"]))
        frames = len(read_video(path)[0])
    return True if frames == wanted.frames else f"made {frames} frames, not {wanted.frames}"
