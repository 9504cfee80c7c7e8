"""Claims: a kill between sample videos leaves nothing that looks like all of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vdmini_core.distillation.guards import film_name
from vdmini_core.distillation.validation import Examiner


def test_where_the_first_film_is_all_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver asks for the first one, where a killed run is gone on with after its last step."""
    clips = torch.zeros(3, 2, 32, 32, 3, dtype=torch.uint8)
    examiner: Any = object.__new__(Examiner)
    examiner.inputs = SimpleNamespace(clips=clips, settings=SimpleNamespace(fps=8))
    examiner.sample = lambda *_: (None, clips)
    whole = Path.replace
    names = [film_name(6, index) for index in range(3)]

    for done in range(4):
        moved: list[str] = []

        def dies(path: Path, target: Path, moved: list[str] = moved, done: int = done) -> Path:
            if len(moved) == done:
                raise KeyboardInterrupt
            moved.append(Path(target).name)
            return whole(path, target)

        folder = tmp_path / str(done)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dies)
            with contextlib.suppress(KeyboardInterrupt):
                examiner.write_films(None, 3, folder, 6)
        there = [name for name in names if (folder / name).is_file()]
        assert len(there) == done and (names[0] not in there or there == names)
