"""Parameters change in the open, whole or not at all; projects and workspaces are laid out once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.cli_project import project_folder
from flows.execution import check_hashable, check_outside_inputs
from tasks.project import change_params, lay_out, parse_assignment, workspace_folder
from tasks.versioning import init_repository
from tests.check_project import problems
from vdmini_core.errors import ParamsError, VDMiniError
from vdmini_core.params import Params, load_params


@pytest.fixture
def project(tmp_path: Path) -> Path:
    lay_out(tmp_path / "proj")
    return tmp_path / "proj"


def test_the_projects_own_files_fit_the_code() -> None:
    assert problems() == []


def test_a_new_project_holds_the_defaults(project: Path) -> None:
    assert load_params(project / "params.yaml") == Params()
    assert (project / "profiles" / "nano.yaml").is_file()
    stages = YAML(typ="safe").load((project / "dvc.yaml").read_text())["stages"]
    deps = [dep for stage in stages.values() for dep in stage["deps"]]
    assert not [dep for dep in deps if dep.startswith(("vdmini_core/", "tasks/"))]
    assert all(stage["deps"].count("vdmini-code.json") == 1 for stage in stages.values())
    init_repository(project)
    with pytest.raises(VDMiniError, match="already holds a project"):
        lay_out(project)


def test_changes_are_shown_and_comments_survive(project: Path) -> None:
    changes = change_params(project, assignments=("plan.max_params_ratio=0.75", "distill.steps=7"))
    assert changes == ["plan.max_params_ratio: None -> 0.75", f"distill.steps: {Params().distill.steps} -> 7"]
    assert load_params(project / "params.yaml").distill.steps == 7
    assert (project / "params.yaml").read_text().startswith("#")
    assert change_params(project, assignments=("distill.steps=7",)) == []


def test_a_bad_change_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    for bad in (
        "plan.max_params_ratio=7",
        "distill.step=7",
        "nonsense",
        "distill.steps=[1",
        "distill.steps=abc",
    ):
        with pytest.raises(ParamsError):
            change_params(project, assignments=(bad,))
    assert (project / "params.yaml").read_text() == before


def test_a_bad_change_leaves_no_new_workspace_and_spares_an_old_one(project: Path) -> None:
    def change(assignment: str) -> Path:
        return project_folder(project, "try", None, None, [assignment])

    with pytest.raises(ParamsError, match=r"plan\.vae_decoder"):
        change("plan.vae_decoder=papr")
    assert not (project / "workspaces" / "try").exists()
    folder = change("plan.vae_decoder=paper")
    with pytest.raises(ParamsError):
        change("plan.vae_decoder=papr")
    assert load_params(folder / "params.yaml").plan.vae_decoder == "paper"


def test_profile_starts_from_the_defaults(project: Path) -> None:
    change_params(project, assignments=("distill.learning_rate=0.01",))
    change_params(project, profile="nano", assignments=("distill.steps=3",))
    params = load_params(project / "params.yaml")
    assert (params.teacher.bundled, params.distill.steps) == ("nano", 3)
    assert params.distill.learning_rate == Params().distill.learning_rate
    change_params(project, profile="mini")
    assert load_params(project / "params.yaml") == Params()
    with pytest.raises(ParamsError, match="mini, nano"):
        change_params(project, profile="nope")
    with pytest.raises(ParamsError):
        change_params(project, profile="../nano")


def test_videos_are_kept_relative_to_the_project(project: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    change_params(project, videos=tmp_path / "films")
    params = load_params(project / "params.yaml")
    assert (params.prepare.source, params.prepare.videos) == ("folder", "../films")


def test_assignments_are_yaml() -> None:
    assert parse_assignment("plan.units=[M, D.1.pair.1]") == ("plan.units", ["M", "D.1.pair.1"])
    assert parse_assignment("plan.max_params_ratio=") == ("plan.max_params_ratio", None)


def test_workspace_names_stay_inside(tmp_path: Path) -> None:
    assert workspace_folder(tmp_path, "try-1") == tmp_path / "workspaces" / "try-1"
    for bad in ("../x", "a/b", "", ".hidden", "x" * 65):
        with pytest.raises(VDMiniError):
            workspace_folder(tmp_path, bad)


def test_a_workspace_starts_from_the_projects_parameters(project: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "suite.txt").write_text("a lake\n")
    vbench = (f"evaluate.vbench.{key}={tmp_path / name}" for key, name in
              (("suite", "suite.txt"), ("images", "films"), ("results", "films")))  # fmt: skip
    change_params(project, videos=tmp_path / "films", assignments=("distill.steps=7", *vbench))
    workspace = workspace_folder(project, "try")
    lay_out(workspace, like=project)
    params = load_params(workspace / "params.yaml")
    assert params.distill.steps == 7
    assert (workspace / params.prepare.videos).resolve() == (tmp_path / "films").resolve()
    assert (workspace / params.teacher.path).resolve() == (project / "teachers").resolve()
    wanted = params.evaluate.vbench
    assert (workspace / str(wanted.suite)).resolve() == (tmp_path / "suite.txt").resolve()
    assert (workspace / str(wanted.images)).resolve() == (tmp_path / "films").resolve()
    # What VBench found belongs to one project's models.
    assert wanted.results == "vbench" and (workspace / "vbench" / "README.md").is_file()


def test_folders_that_cannot_be_versioned_are_refused(project: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").write_bytes(b"x")
    (films / "linked.mp4").symlink_to(films / "a.mp4")
    check_hashable(films, project)
    (films / "dangling.mp4").symlink_to(films / "nowhere")
    os.mkfifo(films / "pipe.mp4")
    with pytest.raises(VDMiniError, match=r"(?s)dangling\.mp4, pipe\.mp4"):
        check_hashable(films, project)
    with pytest.raises(VDMiniError, match="contains this project"):
        check_hashable(project.parent, project)
    change_params(project, assignments=("teacher.path=nowhere",))
    with pytest.raises(VDMiniError, match=r"teacher\.path"):
        check_outside_inputs(project, load_params(project / "params.yaml"))


def test_a_broken_params_file_is_said_plainly(project: Path) -> None:
    (project / "params.yaml").write_text("prepare:\n")
    assert change_params(project, assignments=("prepare.frames=4",))
    (project / "params.yaml").write_text("a: [1,")
    with pytest.raises(ParamsError, match="not valid YAML"):
        change_params(project, assignments=("prepare.frames=4",))
