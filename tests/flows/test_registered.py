"""Claims about a registered version: its tags, that it serves with little installed and can be made again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.artifacts
import mlflow.models
import numpy as np
import pytest
from dvc.repo import Repo
from PIL import Image

from tasks.project import change_params
from tasks.promote import DECISION_TAG
from tasks.recipe import FOLDER, write_recipe
from tasks.register import RUNTIME
from tasks.registry import PROVENANCE_TAGS, candidate_of
from tasks.reproduce import _against_the_registered, reproduce
from tasks.rescore import TAG
from tasks.tracking import connect
from tasks.versioning import init_repository
from tests.flows.conftest import environment, vdmini
from tests.services.serving import frames_of, videos_served
from vdmini_core.artifacts import digest_of, read_json, write_json
from vdmini_core.errors import VDMiniError

pytestmark = pytest.mark.services
URI = "models:/vdmini-nano@candidate"


def tracking(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def png() -> str:
    image = np.zeros((40, 30, 3), np.uint8)
    image[8:20, 8:20] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_version_carries_where_it_comes_from_and_what_was_checked(finished_project: Path) -> None:
    version = connect(finished_project).get_model_version_by_alias("vdmini-nano", "candidate")
    facts = candidate_of(version)
    assert facts.checks.generates is True and facts.checks.unsafe == ()
    assert set(facts.provenance) == set(PROVENANCE_TAGS)
    hashes = [value for key, value in facts.provenance.items() if key != "git_commit"]
    assert all(value and len(value) == 64 for value in hashes), facts.provenance
    measured = read_json(finished_project / "artifacts" / "evaluate" / "metrics.json")["passport"]["fvd"]
    assert json.loads(version.tags["vdmini.passport"]) == measured
    files = {item.path for item in connect(finished_project).list_artifacts(version.run_id, "decision")}
    assert files == {"decision/decision.json", "decision/decision.txt"}
    decided = connect(finished_project).download_artifacts(version.run_id, "decision/decision.json")
    assert read_json(Path(decided))["outcome"] == json.loads(version.tags[DECISION_TAG])["outcome"]


def test_what_it_takes_and_gives_is_written_down(
    finished_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking(finished_project))
    signature = mlflow.models.get_model_info(URI).signature
    assert signature.inputs.input_names() == ["image", "prompt", "seed", "frames"]
    assert signature.inputs.required_input_names() == ["image"]
    assert signature.outputs.input_names() == ["video"]
    assert {spec.name for spec in signature.params.params} == {"seed", "frames"}


# Hides every installed package that is not among the requirements or what these need themselves.
FRESH = """
import importlib.metadata, re, sys
import mlflow.pyfunc, pandas
uri, allowed = sys.argv[1], set()
def add(name):
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in allowed: return
    try: needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError: return
    allowed.add(name)
    for need in needs:
        if "extra ==" not in need: add(re.match(r"[\\w.-]+", need).group())
listed = open(mlflow.pyfunc.get_model_dependencies(uri)).read().split()
requirements = [line.split("==")[0] for line in listed]
for name in requirements: add(name)
modules = importlib.metadata.packages_distributions()
finders = list(sys.meta_path)
class Hide:  # vdmini_core comes with the version; its place is asked at the end
    find_distributions = importlib.metadata.MetadataPathFinder.find_distributions
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        owners = {re.sub(r"[-_.]+", "-", o).lower() for o in modules.get(top, [])}
        if top in ("tasks", "flows") or top != "vdmini_core" and owners and not owners & allowed: return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in found if spec is not None), None)
sys.meta_path[:] = [Hide()]
model = mlflow.pyfunc.load_model(uri)
answer = model.predict(pandas.DataFrame([{"image": sys.argv[2], "seed": 3, "frames": 2}]))
loaded = {name.split(".")[0] for name in sys.modules}
owners = {re.sub(r"[-_.]+", "-", o).lower() for n in loaded for o in modules.get(n, [])}
unused = [name for name in requirements if re.sub(r"[-_.]+", "-", name).lower() not in owners]
core = sys.modules["vdmini_core"].__file__
print("ANSWER", answer[0]["video"], ",".join(unused) or "-", core)
"""


def test_a_fresh_process_needs_the_listed_requirements_and_all_of_them(
    finished_project: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH, URI, png()],
        cwd=tmp_path,
        env=environment(MLFLOW_TRACKING_URI=tracking(finished_project)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER"))
    _, video, unused, core = line.split(" ", 3)
    assert frames_of(video, tmp_path / "v.mp4") == (2, 32, 32, 3)
    assert unused == "-" and len(RUNTIME) > 5
    assert "/code/" in core  # the code that was registered, not the one installed here


def test_it_answers_a_posted_image_with_a_video_that_plays(finished_project: Path, tmp_path: Path) -> None:
    rows = [{"image": png(), "seed": 1}, {"image": png(), "seed": 2}]
    first, second = videos_served(URI, tracking(finished_project), tmp_path, rows)
    assert frames_of(first, tmp_path / "v.mp4") == (4, 32, 32, 3)
    assert first != second


def test_made_again_it_has_the_same_hashes(finished_project: Path) -> None:
    done = vdmini(finished_project, "reproduce", URI, "--json")
    found = json.loads(done.stdout)
    assert found["equal"] and found["differences"] == [] and found["compared"] > 20
    assert not Path(found["folder"]).exists()


def test_the_registered_student_itself_is_compared(finished_project: Path, tmp_path: Path) -> None:
    """Whatever its recipe says: of another student, and of one whose files were changed on the server."""
    client = connect(finished_project)
    version = client.get_model_version_by_alias("vdmini-nano", "candidate")
    root = tmp_path / "again"
    for stage in ("distill", "evaluate"):
        shutil.copytree(finished_project / "artifacts" / stage, root / "artifacts" / stage)
    assert _against_the_registered(finished_project, root, version) == []
    (root / "artifacts" / "distill" / "student" / "plan.json").write_text("{}")
    (line,) = _against_the_registered(finished_project, root, version)
    assert line.startswith("registered student/plan.json: ")
    manifest = root / "artifacts" / "distill" / "manifest.json"
    write_json(manifest, {**read_json(manifest), "outputs": {}})
    (line,) = _against_the_registered(finished_project, root, version)
    assert "not those of the tag vdmini.student" in line


def test_another_hash_is_told_and_ends_it(finished_project: Path, tmp_path: Path) -> None:
    """A version whose recipe promises other clips: it stops after `prepare`, and says which file."""
    root = tmp_path / "other"
    root.mkdir()
    shutil.copyfile(finished_project / "params.yaml", root / "params.yaml")
    client = connect(root)
    run_id = client.create_run(client.create_experiment("e", (root / "mlruns").as_uri())).info.run_id
    write_recipe(finished_project, tmp_path / FOLDER)
    recipe = read_json(tmp_path / FOLDER / "recipe.json")
    recipe["outputs"]["prepare"]["clips-test.safetensors"] = "0" * 64
    recipe["provenance"]["data"] = digest_of(recipe["outputs"]["prepare"])
    write_json(tmp_path / FOLDER / "recipe.json", recipe)
    client.log_artifacts(run_id, str(tmp_path / FOLDER), FOLDER)
    client.create_registered_model("m")
    tags = {tag: recipe["provenance"][key] for key, tag in PROVENANCE_TAGS.items()}
    client.create_model_version("m", "file:///nowhere", run_id, tags=tags)
    lines: list[str] = []
    found = reproduce(root, "models:/m/1", listen=lines.append)
    assert not found.equal and lines == ["prepare: different"]
    (line,) = found.differences
    assert line.startswith("prepare/clips-test.safetensors: ") and "recorded 000000000000" in line
    assert (found.folder / "artifacts" / "prepare").is_dir()
    client.set_model_version_tag("m", "1", PROVENANCE_TAGS["plan"], "another")
    client.set_model_version_tag("m", "1", PROVENANCE_TAGS["data"], "others")
    with pytest.raises(VDMiniError, match=r"another plan, data"):
        reproduce(root, "models:/m/1")


def test_without_its_videos_the_clips_come_from_dvc(finished_project: Path, tmp_path: Path) -> None:
    """A version of a folder that is gone: from the cache, else from the remote, and never unlooked at."""
    root, remote = tmp_path / "later", tmp_path / "remote"
    root.mkdir()
    init_repository(root)
    write_recipe(finished_project, tmp_path / FOLDER)
    change_params(tmp_path / FOLDER, assignments=("prepare.source=folder",))
    recipe = read_json(tmp_path / FOLDER / "recipe.json")
    recipe["data"]["source"] = "folder"
    recipe["outputs"]["teacher"] = {"unet": "0" * 64}  # to end it before the training
    write_json(tmp_path / FOLDER / "recipe.json", recipe)
    client = connect(root)
    run_id = client.create_run(client.create_experiment("e", (root / "mlruns").as_uri())).info.run_id
    client.log_artifacts(run_id, str(tmp_path / FOLDER), FOLDER)
    client.create_registered_model("m")
    tags = {tag: recipe["provenance"][key] for key, tag in PROVENANCE_TAGS.items()}
    client.create_model_version("m", "file:///nowhere", run_id, tags=tags)

    with pytest.raises(VDMiniError, match="bring recorded data back"):  # there is no remote yet
        reproduce(root, "models:/m/1")
    with Repo(str(root)) as repo, repo.config.edit() as config:
        config["core"]["remote"] = "here"
        config["remote"] = {"here": {"url": str(remote)}}
    with pytest.raises(VDMiniError, match="DVC does not have all of the data"):
        reproduce(root, "models:/m/1")
    shutil.copytree(finished_project / ".dvc" / "cache" / "files", remote / "files")
    for _ in range(2):  # from the remote, then from the cache
        lines: list[str] = []
        found = reproduce(root, "models:/m/1", listen=lines.append)
        taken, equal, ended = lines
        assert "taken from DVC" in taken and equal.endswith("files equal") and ended == "teacher: different"
        assert "the clips are those that DVC kept" in found.remarks[0]
        shutil.rmtree(remote, ignore_errors=True)
    made = found.folder / "artifacts" / "prepare" / "clips-test.safetensors"
    assert made.read_bytes() == (finished_project / "artifacts/prepare/clips-test.safetensors").read_bytes()
    assert made.stat().st_nlink == 1 and not made.is_symlink(), "a run may write there"
    # What somebody has changed in the cache is not taken.
    digest = hashlib.md5(made.read_bytes()).hexdigest()
    kept = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    kept.chmod(0o644)
    kept.write_bytes(made.read_bytes()[:-1] + b"x")
    with pytest.raises(VDMiniError, match="DVC does not have all of the data"):  # the remote is gone, too
        reproduce(root, "models:/m/1")


def test_on_fresh_clips_it_is_measured_once_a_week_and_the_result_stays_with_it(
    finished_project: Path,
) -> None:
    """In the project that made it, whose outputs and parameters stay as they are."""
    before = (finished_project / "params.yaml").read_text()
    ask = ("evaluate-registered", URI, "--week", "2026-W48", "--json")
    with ThreadPoolExecutor(2) as pool:  # two processes at once
        both = [pool.submit(vdmini, finished_project, *ask, check=False) for _ in range(2)]
        first, second = (one.result() for one in both)
    assert first.stdout == second.stdout, first.stderr + second.stderr
    told = json.loads(first.stdout)
    assert first.returncode == second.returncode == (told["verdict"] == "fell"), first.stderr
    client = connect(finished_project)
    version = client.get_model_version_by_alias("vdmini-nano", "candidate")
    assert json.loads(version.tags[f"{TAG}2026-W48"]) == told
    recorded = json.loads(version.tags["vdmini.evidence"])["metrics"]["recovered"]
    assert told["recorded"] == recorded["fvd_real"] != told["fvd_real"] and told["clips"] == 8
    run = client.get_run(told["run_id"])
    assert run.data.metrics["recovered.fvd_real"] == told["fvd_real"]
    assert (run.data.tags["vdmini.model_version"], run.info.status) == (str(version.version), "FINISHED")
    clips = read_json(finished_project / "artifacts" / "evaluate" / "metrics.json")["passport"]["fvd"]
    assert run.data.params["clips_sha256"] != clips["real"]["data"]
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["fresh_fvd_real"] == told["fvd_real"]
    named = "tags.`vdmini.week` = '2026-W48'"
    assert len(client.search_runs([run.info.experiment_id], named)) == 1
    assert not list((finished_project / ".vdmini" / "rescore").glob("vdmini-nano*"))
    assert (finished_project / "params.yaml").read_text() == before
