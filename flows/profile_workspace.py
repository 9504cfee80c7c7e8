"""The folder in which a deployment runs a profile: one project, a workspace for every profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.project import change_params, lay_out, workspace_folder
from tasks.versioning import init_repository
from vdmini_core.errors import VDMiniError


def profile_workspace(root: Path, profile: str, assignments: Sequence[str] = ()) -> Path:
    """Lay out `workspaces/PROFILE` of a project where it is missing, and set its parameters.

    They are those of the profile and the assignments at every call, whatever was edited there in between:
    a scheduled run is the same every night. Equal stages of all profiles come from one DVC cache.

    Args:
        root: the project.
        profile: name of a file in its `profiles/`.
        assignments: `key=value` on top of it, as for `--set`.

    Raises:
        VDMiniError: for a profile or a parameter that does not exist.
    """
    root = root.resolve()
    folder = workspace_folder(root, profile)
    if not (folder / ".dvc").is_dir():
        lay_out(folder, like=root)
        init_repository(folder, shared_cache=root / ".dvc" / "cache")
    change_params(folder, profile=profile, assignments=tuple(assignments))
    return folder


def workspace_of(root: Path, profile: str | None) -> Path:
    """The folder in which a deployment ran a profile: nothing in it is changed.

    Args:
        root: the project.
        profile: None for the project itself.

    Raises:
        VDMiniError: where there is no such workspace yet.
    """
    folder = root.resolve() if profile is None else workspace_folder(root.resolve(), profile)
    if profile is not None and not (folder / "params.yaml").is_file():
        raise VDMiniError(
            f"the profile `{profile}` has not been run here",
            expected=f"its workspace, {folder}",
            found="nothing",
            fix="run `compress` with this profile first",
        )
    return folder
