"""Killed at the worst moments of publishing, recording and registering; the long form is `make chaos`.

One story of the harness, on a copy of the finished project whose last three stages are stale.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.project import change_params
from tests.chaos.hook.chaos_tree import tree
from tests.chaos.looking import problems_of, torn
from tests.chaos.page import written
from tests.chaos.story import Story, Target
from tests.flows.conftest import VDMINI
from vdmini_core.artifacts import write_json

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_server")]

# stage, event, place, which one, before or after it
MOMENTS = (
    ("report", "rename", "artifacts/report", 1, "before"),  # the old outputs have gone, the new are not there
    ("report", "open", "dvc.lock", 1, "after"),  # emptied, to be written anew
    ("register", "mlflow", "finalize_logged_model", 1, "before"),  # the model is half there
    ("register", "mlflow", "create_model_version", 1, "after"),  # nobody holds its number yet
    ("promote", "mlflow", "delete_registered_model_tag", 1, "before"),  # decided, and the queue still held
)


def target(stage: str, event: str, place: str, nth: int, when: str) -> Target:
    return Target(stage, "point", 0.5, {"event": event, "place": place, "nth": nth, "when": when})


@pytest.fixture
def story(finished_project: Path, tmp_path: Path) -> Story:
    story = Story(tmp_path / "killed", "flow")
    story.folder.mkdir()
    shutil.copytree(finished_project, story.root)
    story.lay_out()
    # A model of its own, so that there is one version of it as in any story.
    change_params(story.root, assignments=("report.videos=1", "register.name=vdmini-killed"))
    return story


def test_a_run_killed_at_its_worst_moments_ends_as_any_other(story: Story, finished_project: Path) -> None:
    targets = [target(*moment) for moment in MOMENTS]
    for moment in MOMENTS:
        died = story.attempt(targets, {})
        assert (died.fate, died.met) == ("killed", "point"), f"{moment}: {died.fate}: {died.said}"
        assert died.moment["drawn"]["point"]["place"] == moment[2]
        assert torn(story.root) == []
        assert tree(story.mark) == set()
    assert targets == []
    done = story.attempt([], {})
    assert done.fate == "finished", done.said
    assert problems_of(story, finished_project, model="vdmini-killed") == []
    shutil.rmtree(story.temporary)


def test_a_dvc_that_was_killed_while_it_wrote_is_mended_by_the_doctor(
    story: Story, finished_project: Path
) -> None:
    story.driver = "dvc"
    died = story.attempt([target("report", "open", "dvc.lock", 1, "after")], {})
    assert died.fate == "killed", died.said
    assert (story.root / "dvc.lock").read_text() == ""
    refused = story.attempt([], {})
    assert refused.fate == "failed"
    assert "dvc.lock was cut off by a kill" in story.command(str(VDMINI), "doctor").stdout.replace("\n", " ")
    done = story.attempt([], {})
    assert done.fate == "finished", done.said
    shutil.rmtree(story.temporary)


def test_results_become_a_page(tmp_path: Path) -> None:
    told = {"section": "Killed", "seed": 7, "rows": [{"stage": "plan", "kills": 1200}, {"lost": 0}]}
    write_json(tmp_path / "b.json", {**told, "totals": {"kills": 1200}, "order": 2})
    problem = {"what": "<b>a|b</b>\nc"}
    write_json(tmp_path / "a.json", {"section": "Fed", "seed": 1, "problems": [problem], "order": 3})
    page = written(tmp_path)
    assert page.index("## Killed") < page.index("## Fed")
    assert "| stage | kills | lost |" in page
    assert "| plan | 1,200 |  |" in page
    assert "In all: 1,200 kills." in page
    assert "| &lt;b&gt;a\\|b&lt;/b&gt; c |" in page
