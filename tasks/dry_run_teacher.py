"""The teacher of `vdmini run --dry-run`: where it is, what it is, and whether its stage would take it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tasks.dry_run_step import MISSING, Step, count_of, refusal, step
from tasks.recovery_case import Architecture
from vdmini_core.errors import ModelError, VDMiniError
from vdmini_core.params import Params

if TYPE_CHECKING:
    pass

# Repositories of the hub whose architecture is built in, so that it is known before they are downloaded.
HUB_ARCHITECTURES = {
    "stabilityai/stable-video-diffusion-img2vid": "stable-video-diffusion",
    "stabilityai/stable-video-diffusion-img2vid-xt": "stable-video-diffusion",
    "hunyuanvideo-community/HunyuanVideo": "hunyuan-video",
    "THUDM/CogVideoX-2b": "cogvideox-2b",
    "THUDM/CogVideoX-5b": "cogvideox-5b",
    "Lightricks/LTX-Video": "ltx-video",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1-t2v-1.3b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan2.1-t2v-14b",
}


def examine_teacher(root: Path, params: Params) -> tuple[Step, Architecture | None]:
    """The line, and the architecture at the prepared clips' size where it is known and takes them."""
    from tasks.clip_size import check_fit
    from tasks.teacher import fitted_settings
    from vdmini_core.models.inspect import load_architecture

    with tempfile.TemporaryDirectory() as scratch:
        name, todo = _source(root, params, Path(scratch))
        if name is None:
            return Step("teacher", "an architecture that its config.json will tell", MISSING, todo), None
        family, denoiser, vae, own = load_architecture(name)
    settings = fitted_settings(params, own)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    does = f"{name if isinstance(name, str) else name.name}: {count / 1e6:,.1f} M parameters, " + (
        f"{count_of(settings.steps, 'step')}, guidance {settings.guidance:g}"
    )
    try:
        check_fit(SimpleNamespace(**{family.denoiser_name: denoiser}), settings)
    except ModelError as error:
        return step("teacher", does, todo, refusal(error)), None
    return step("teacher", does, todo), Architecture(family, denoiser, vae, settings)


def _source(root: Path, params: Params, scratch: Path) -> tuple[str | Path | None, str]:
    """Built-in name or directory to read the architecture from, and what keeps it from being used."""
    teacher = params.teacher
    if teacher.source == "bundled":
        return _bundled(root, params, scratch), ""
    if teacher.source == "train":
        return None, "a teacher trained here is known once it is trained: vdmini teacher --train"
    if teacher.source == "hub":
        return _on_hub(params)
    if "://" in teacher.path:
        return teacher.architecture, f"{teacher.path} is looked into when the run has fetched it"
    folder = root / Path(teacher.path).expanduser()
    if folder.is_dir() and any(folder.iterdir()):
        return _in_folder(folder, params, folder.name)
    how = teacher.obtain or "save a diffusers pipeline there with save_pretrained"
    return teacher.architecture, f"there is no pipeline directory {teacher.path}: {how}"


def _bundled(root: Path, params: Params, scratch: Path) -> Path:
    """A teacher of the package; the smallest ones are made on the spot."""
    from tasks.monitor import QuietMonitor
    from tasks.stage import StageJob
    from tasks.teacher import fetch_bundled

    folder = scratch / params.teacher.bundled
    fetch_bundled(StageJob(root, params, folder, folder, QuietMonitor()), folder)
    return folder


def _in_folder(folder: Path, params: Params, shown: str) -> tuple[str | Path | None, str]:
    """A directory that is there, by the check that the stage makes; its configs serve where weights lack."""
    from vdmini_core.models.inspect import load_architecture
    from vdmini_core.models.pipeline_dir import check_directory

    try:
        check_directory(folder)
    except ModelError as error:
        how = params.teacher.obtain or "get the whole pipeline directory"
        todo = f"{shown}: {refusal(error)}; {how}"
    else:
        return folder, ""
    try:
        load_architecture(folder)
    except ModelError:
        return params.teacher.architecture, todo
    return folder, todo


def _on_hub(params: Params) -> tuple[str | Path | None, str]:
    from huggingface_hub import snapshot_download

    teacher = params.teacher
    if not teacher.revision:
        raise VDMiniError("source: hub needs a pinned revision", fix="set teacher.revision to a commit")
    try:
        cached = snapshot_download(teacher.hub_id or "", revision=teacher.revision, local_files_only=True)
    except (OSError, ValueError):
        pass
    else:
        return _in_folder(Path(cached), params, f"{teacher.hub_id} in the hub's cache here")
    name = teacher.architecture or HUB_ARCHITECTURES.get(teacher.hub_id or "")
    todo = f"{teacher.hub_id} is not in the hub's cache here: the stage downloads it" + (
        f" ({teacher.obtain})" if teacher.obtain else "; a gated one needs HF_TOKEN"
    )
    return name, todo
