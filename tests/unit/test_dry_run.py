"""`run --dry-run`: every profile says what it would do and what is missing, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.dry_run import examine_run, is_complete
from tasks.dry_run_step import LATER, MISSING, READY, Step, work
from tasks.dry_run_teacher import examine_teacher
from tasks.project import lay_out, preview_params, template_folder
from tasks.recovery_case import recovery_case
from tests.flows.conftest import vdmini
from vdmini_core.distillation.cost import devices
from vdmini_core.distillation.cost.estimate import estimate
from vdmini_core.params import Params

PROFILE_FOLDER = template_folder() / "profiles"
PROFILES = sorted(path.stem for path in PROFILE_FOLDER.glob("*.yaml"))
FROM_THE_PACKAGE = {"mini", "nano"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dry") / "proj"
    lay_out(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def by_stage(steps: list[Step]) -> dict[str, Step]:
    return {step.stage: step for step in steps}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_without_a_network(
    project: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = contents(project)
    steps = examine_run(project, preview_params(project, profile=profile))
    assert contents(project) == before
    assert is_complete(steps) == (profile in FROM_THE_PACKAGE or profile.startswith("nano"))
    for step in steps:
        assert bool(step.todo) == (step.state == MISSING), step
    if "hardware:" in (PROFILE_FOLDER / f"{profile}.yaml").read_text():
        fits_its_own_hardware_where_that_can_be_counted(by_stage(steps)["distill"])
        for stage in ("profile", "distill", "evaluate"):
            found = by_stage(steps)[stage]
            assert " hours" in found.does and "in bf16 (estimated)" in found.does, found
            assert ("there is no GPU here" in found.todo) == (not torch.cuda.is_available())
    if profile in SAID:
        SAID[profile](by_stage(steps))


def fits_its_own_hardware_where_that_can_be_counted(recovery: Step) -> None:
    assert "does not fit" not in recovery.todo, recovery
    assert ("cannot be counted" in recovery.does) != ("GiB each" in recovery.does)
    if "no GPU" not in recovery.todo:
        assert recovery.state == (LATER if "cannot be counted" in recovery.does else READY)
    assert "encoding" in recovery.does and "validations, the others waiting" in recovery.does


def svd_says_its_cuts(steps: dict[str, Step]) -> None:
    assert "1,524.6 M parameters" in steps["teacher"].does and "HF_TOKEN" in steps["teacher"].todo
    assert "939.9 M parameters" in steps["prune"].does and "31 TFLOP" in steps["prune"].does
    assert "docs/metrics.md" in steps["evaluate"].todo
    assert "VAE decoder: 512, 512, 256, 128 channels to " in steps["plan"].does
    assert "the cut VAE decoder, alone: 2,000 steps of 2 crops" in steps["distill"].does


def turbo_says_one_pass_a_step(steps: dict[str, Step]) -> None:
    assert "at most 1,856 passes" in steps["profile"].does, "guidance is told to the U-Net"
    names_the_whole_conversion(steps, "t2v-turbo-v2")


def names_the_whole_conversion(steps: dict[str, Step], profile: str = "videocrafter2") -> None:
    text = (PROFILE_FOLDER / f"{profile}.yaml").read_text()
    [command] = [line[1:].strip() for line in text.splitlines() if line.startswith("#   vdmini convert")]
    assert "--tokenizer" in command and ("--base" in command or profile == "videocrafter2")
    assert command in steps["teacher"].todo


def a_protocol_says_what_its_measure_lacks(steps: dict[str, Step]) -> None:
    assert "1,524.6 M parameters" in steps["teacher"].does and "PIPELINE" in steps["teacher"].todo
    assert "fvd.weights" in steps["evaluate"].todo and "fvd.sha256" in steps["evaluate"].todo


# Beside what holds for each; here, because counting a model of full size takes seconds.
SAID: dict[str, Callable[[dict[str, Step]], None]] = {
    "svd-i2v": svd_says_its_cuts,
    "t2v-turbo-v2": turbo_says_one_pass_a_step,
    "videocrafter2": names_the_whole_conversion,
    "ucf101-fvd": a_protocol_says_what_its_measure_lacks,
}


def test_a_protocol_of_an_unknown_teacher_says_what_its_measure_lacks(project: Path) -> None:
    unknown = preview_params(
        project, profile="ucf101-fvd", assignments=("teacher.architecture=null", "teacher.path=nowhere")
    )
    assert "fvd.weights" in by_stage(examine_run(project, unknown))["evaluate"].todo


def test_what_would_make_a_recovery_fit_is_what_to_add_to_the_command(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = preview_params(project, profile="nano", assignments=("base.hardware=h100",))
    _, known = examine_teacher(project, params)
    assert known is not None
    need = estimate(recovery_case(params, known), devices.known_device("h100", False)).need
    sheet = devices.KNOWN["h100"]
    monkeypatch.setitem(devices.KNOWN, "h100", sheet._replace(memory=need - 1))
    step = by_stage(examine_run(project, params))["distill"]
    assert step.state == MISSING and "add to the command --set distill." in step.todo
    monkeypatch.setitem(devices.KNOWN, "h100", sheet._replace(memory=1))
    assert "larger GPU" in by_stage(examine_run(project, params))["distill"].todo


def test_what_was_missing_is_ready_once_it_is_here(project: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no more than there")
    params = preview_params(project, profile="nano", videos=tmp_path / "videos")
    prepare = by_stage(examine_run(project, params))["prepare"]
    assert prepare.state == READY and "1 video " in prepare.does


def test_an_unknown_teacher_ends_the_list(project: Path) -> None:
    params = Params.model_validate({"teacher": {"source": "path", "path": "nowhere"}})
    steps = examine_run(project, params)
    assert [step.stage for step in steps] == ["prepare", "teacher", "profile"]
    assert "nowhere" in steps[1].todo


def test_the_command_prints_json_and_refuses_what_it_would_ignore(project: Path) -> None:
    done = vdmini(project, "run", "--profile", "nano", "--dry-run", "--json")
    answer = json.loads(done.stdout)
    assert answer["ready"] and answer["steps"][-1]["stage"] == "promote"
    assert vdmini(project, "run", "--dry-run", "--force", check=False).returncode == 2


def test_work_in_units_people_read() -> None:
    assert [work(n) for n in (2.5e9, 4.48e13, 1.44e19)] == ["2.5 GFLOP", "44.8 TFLOP", "14.4 EFLOP"]
