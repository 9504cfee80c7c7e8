"""`vdmini plan MODEL`: a plan outside any project."""

from __future__ import annotations

import json

import pytest
import svd_toys as toys
from typer.testing import CliRunner

from flows.cli import app
from vdmini_core.errors import ModelError, PlanError
from vdmini_core.models.registry import architecture, fingerprint, load_pipeline, save_pipeline
from vdmini_core.pruning.plan import Plan
from vdmini_core.pruning.planning import plan_model
from vdmini_core.pruning.surgery import apply_plan


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pipeline(toys.tiny_pipeline(), folder, toys.SETTINGS)
    return folder


def test_the_recipe_of_the_paper_on_the_full_size_architecture():
    plan = plan_model("stable-video-diffusion", {"recipe": "paper"})
    assert plan.expected_params == 939_884_186
    assert plan.expected_flops == pytest.approx(30.97e12, rel=0.001)
    assert plan.teacher_fingerprint.startswith("architecture:")


def test_a_directory_is_bound_to_its_weights(directory):
    plan = plan_model(str(directory), {"recipe": "manual", "units": ("D.0.pair.1",)})
    unet = load_pipeline(directory).unet
    assert plan.teacher_fingerprint == fingerprint(unet)
    student = apply_plan(unet, plan, toys.FAMILY)
    assert sum(p.numel() for p in student.parameters()) == plan.expected_params
    with pytest.raises(PlanError, match="another teacher"):
        apply_plan(toys.tiny_pipeline(seed=1).unet, plan, toys.FAMILY)


def test_magnitude_reads_the_weights_of_a_directory(directory):
    plan = plan_model(str(directory), {"recipe": "magnitude", "max_params_ratio": 0.9})
    assert plan.params_ratio <= 0.9
    with pytest.raises(PlanError, match="needs weights"):
        plan_model("stable-video-diffusion", {"recipe": "magnitude", "max_params_ratio": 0.9})


def test_auto_takes_the_profile_of_this_model_and_no_other(directory, tmp_path):
    unet = load_pipeline(directory).unet
    units = toys.FAMILY.units(unet, toys.SETTINGS)
    figures = {"fvd": 1.0, "content": 1.0, "motion": 1.0, "paired_mse": 1.0}
    rows = [unit.to_dict() | {"removed": figures} for unit in units]
    cheap = next(row for row in rows if row["name"] == "U.3.pair.1")
    cheap["removed"] = figures | {"paired_mse": 1e-3}
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps({"units": rows, "teacher_fingerprint": fingerprint(unet)}))
    share = 1 - cheap["flops"] / plan_model(str(directory), {"recipe": "paper"}).teacher_flops
    choices = {"recipe": "auto", "max_flops_ratio": share}
    assert plan_model(str(directory), choices, sensitivity=path).removed == ("U.3.pair.1",)
    path.write_text(json.dumps({"units": rows, "teacher_fingerprint": "other"}))
    with pytest.raises(PlanError, match="profile is of another model"):
        plan_model(str(directory), choices, sensitivity=path)
    with pytest.raises(PlanError, match="reads no profile"):
        plan_model(str(directory), {"recipe": "paper"}, sensitivity=path)
    for damaged, says in (("[]", "no profile"), ('{"units": 3}', "no profile"), ("{", "cannot be read")):
        path.write_text(damaged)
        with pytest.raises(PlanError, match=says):
            plan_model(str(directory), choices, sensitivity=path)


def test_times_of_a_profile_serve_any_weights_of_that_architecture_only(directory, tmp_path):
    unet = load_pipeline(directory).unet
    times = {unit.name: 2.0 for unit in toys.FAMILY.units(unet, toys.SETTINGS)}
    found = {"denoiser_ms": 100.0, "unit_ms": times, "architecture": architecture(unet)}
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(found))
    choices = {"recipe": "random", "max_latency_ratio": 0.95}
    assert len(plan_model(str(directory), choices, timing=path).removed) >= 3
    for damage, says in (
        ({"architecture": "other"}, "timing file is of another model"),
        ({"denoiser_ms": "x"}, "no unit times"),
        ({"unit_ms": 3}, "no unit times"),
    ):
        path.write_text(json.dumps(found | damage))
        with pytest.raises(PlanError, match=says):
            plan_model(str(directory), choices, timing=path)


def test_a_folder_of_a_built_in_name_is_not_mistaken(tmp_path, monkeypatch):
    (tmp_path / "stable-video-diffusion").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"of a folder here[\s\S]*\./stable-video-diffusion"):
        plan_model("stable-video-diffusion", {"recipe": "paper"})


@pytest.mark.parametrize(
    ("model", "choices", "says"),
    [
        ("stable-video-diffusion", {"recipe": "auto"}, "needs a budget"),
        ("stable-video-diffusion", {"recipe": "best"}, r"no recipe best(.|\n)*expected: paper, larger, auto"),
        ("stable-video-diffusion", {"recipe": "random", "max_params_ratio": 0.01}, "no plan reaches"),
        ("stable-video-diffusion", {"recipe": "random", "max_latency_ratio": 0.5}, "needs `timing`"),
        ("stable-video-diffusion", {"max_latency_ratio": 0.5}, "a budget needs a recipe"),
        ("stable-video-diffusion", {"recipe": "paper", "max_flops_ratio": 0.5}, "a budget needs a recipe"),
        ("stable-video-diffusion", {"recipe": "paper", "units": ("M",)}, "chooses units by itself"),
        ("stable-video-diffusion", {"recipe": "paper", "timing": "t.json"}, "for max_latency_ratio alone"),
        ("nowhere", {"recipe": "paper"}, "there is no model nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(model, choices, says):
    with pytest.raises((PlanError, ModelError), match=says):
        plan_model(model, choices)


def test_the_command_prints_writes_and_keeps_apart_from_the_stage(directory, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["plan", str(directory), "--unit", "M", "--json", "-o", str(tmp_path / "plan.json")])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert Plan.load(tmp_path / "plan.json").removed == tuple(printed["removed"]) == ("M",)
    assert printed["params_ratio"] == printed["expected_params"] / printed["teacher_params"]
    for arguments, says in (
        ([str(directory), "--set", "base.seed=1"], "--set: only without a MODEL"),
        ([str(directory), "--force", "--root", str(tmp_path)], "--force, --root: only without a MODEL"),
        (["-o", str(tmp_path / "other.json")], "-o: only with a MODEL"),
        (["--seed", "5"], "--seed: only with a MODEL"),
        (["--recipe", "paper", "--set", "plan.recipe=auto"], "say it once"),
    ):
        refused = run(app, ["plan", *arguments])
        assert refused.exit_code == 2 and says in " ".join(refused.output.split()), arguments
    for folder in (tmp_path / "none" / "plan.json", tmp_path):
        assert "cannot be written" in str(run(app, ["plan", str(directory), "-o", str(folder)]).exception)


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(PlanError, match=r"no recipe papre(?s:.)*magnitude(?s:.)*did you mean paper\?"):
        plan_model("stable-video-diffusion", {"recipe": "papre"})
    with pytest.raises(PlanError, match="no recipe bogus"):
        plan_model("stable-video-diffusion", {"recipe": "bogus"})
