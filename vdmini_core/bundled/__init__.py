"""Teachers shipped inside the package, as `diffusers` pipeline directories."""

from __future__ import annotations

from pathlib import Path

from vdmini_core.errors import ModelError


def bundled_teacher_path(name: str) -> Path:
    """Directory of a shipped teacher.

    Raises:
        ModelError: when no teacher of that name is shipped; names the ones that are.
    """
    root = Path(__file__).parent
    known = sorted(path.parent.name for path in root.glob("*/model_index.json"))
    if name not in known:
        raise ModelError(
            "no such teacher in the package",
            expected=" or ".join(known) or "an installation with its weights",
            found=name,
            fix="set teacher.bundled to one of them, or teacher.source to path, hub or train",
        )
    return root / name
