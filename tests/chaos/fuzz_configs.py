"""Fed anything: drawn configs in a teacher's folder, and what `inspect` and `generate` make of it.

`python -m tests.chaos.fuzz_configs --count 500 --seed 7 --state .vdmini/chaos --out FILE.json`; stopped, it
goes on with the next one. Three small pipelines with all their parts (Stable Video Diffusion, T2V-Turbo-v2
and Wan) have one JSON file changed at a time. The command either writes a video or ends with an error of ours
(accepted, rejected); nothing but the video may be written, no program started, no network asked and no more
memory asked for than the pipelines need (filled).
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.config_cases import draw
from tests.chaos.drawn import Campaign, TooLong, main
from vdmini_core.errors import VDMiniError

MODELS = ("nano", "nano-dit", "nano-t2v")
LARGE = 2**18  # frames, pixels and steps together: 16 times the usual
ADDRESS_SPACE = 16 * 2**30  # no case takes the machine with it


def prepare(root: Path) -> None:
    """The three pipelines, whole, with a picture beside them; each makes a video."""
    from PIL import Image

    from vdmini_core.models.registry import merge_settings, pipeline_settings, save_pipeline
    from vdmini_core.teacher.architecture import build_pipeline
    from vdmini_core.teacher.dit_architecture import NANO_DIT_CALL, build_dit_pipeline
    from vdmini_core.teacher.text_architecture import NANO_T2V_CALL, build_text_pipeline

    if not (root / "picture.png").exists():
        made: tuple[tuple[Any, dict[str, Any]], ...] = (
            (build_pipeline("nano", 0), {}),
            (build_dit_pipeline(0), NANO_DIT_CALL),
            (build_text_pipeline(0), NANO_T2V_CALL),
        )
        for name, (pipeline, call) in zip(MODELS, made, strict=True):
            settings = merge_settings(pipeline_settings(pipeline), call)
            save_pipeline(pipeline, root / "models" / name, settings)
        Image.new("RGB", (32, 32), (90, 120, 60)).save(root / "picture.png")
    for name in MODELS:
        assert use(root, name) == {"fate": "accepted", "said": ""}, use(root, name)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def judge(root: Path, case: bytes) -> dict[str, str]:
    """What the product makes of a pipeline with one file changed; the file is put back."""
    head, text = case.split(b"\n", 1)
    changed = json.loads(head)
    path = root / "models" / changed["model"] / changed["file"]
    kept = path.read_bytes()
    before = sorted(root.rglob("*"))
    path.write_bytes(text)
    try:
        found = use(root, changed["model"])
        wrote = sorted(root.rglob("*")) != before or path.read_bytes() != text
    finally:
        path.write_bytes(kept)
    said = f"{changed['model']}/{changed['file']}: {found['said']}" if found["said"] else ""
    return {"fate": "wrote" if wrote else found["fate"], "said": said}


def use(root: Path, model: str) -> dict[str, str]:
    """`vdmini inspect` and `vdmini generate`."""
    from vdmini_core.cli_generate import generate
    from vdmini_core.models.inspect import inspect_model
    from vdmini_core.models.parts import of_the_machine
    from vdmini_core.models.registry import load_settings

    directory, output = root / "models" / model, root / "out.mp4"
    image, prompt = (root / "picture.png", None) if model == "nano" else (None, "a red ball")

    def inspect() -> None:
        json.dumps(inspect_model(directory))

    def sample() -> None:
        asked = load_settings(directory)
        if asked.frames * asked.height * asked.width * asked.steps > LARGE:
            return  # so much work is what the file asks for
        generate(directory, output, image, prompt, 0, None, 1, None, 1, "cpu", "fp32")
        output.unlink()  # written, or that is an error of its own

    steps: tuple[tuple[str, Callable[[], None]], ...] = (("inspect", inspect), ("generate", sample))
    refused = ""
    for step, run in steps:
        try:
            run()
        except VDMiniError as error:
            refused = f"{step}: {error}"
        except TooLong:
            return {"fate": "hung", "said": step}
        except Exception as error:
            if of_the_machine(error):  # ADDRESS_SPACE, which users do not have
                return {"fate": "filled", "said": f"{step}: {error}"}
            return {"fate": "crashed", "said": f"{step}: {traceback.format_exc()}"}
    return {"fate": "rejected" if refused else "accepted", "said": refused}


CAMPAIGN = Campaign(
    module="tests.chaos.fuzz_configs",
    name="fuzz-configs",
    draw=lambda root, seed, index: draw(root / "models", seed, index),
    prepare=prepare,
    judge=judge,
    fates=("accepted", "rejected", "crashed", "hung", "filled", "forgotten", "wrote", "executed", "asked"),
    head={
        "section": "Fed any configs",
        "order": 5,
        "command": "make chaos",
        "about": "One JSON file of a pipeline's folder changed at a time, drawn from a seed (Stable Video "
        "Diffusion, T2V-Turbo-v2, Wan): `vdmini inspect` and `vdmini generate` use it or refuse it in words.",
    },
)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, __doc__))
