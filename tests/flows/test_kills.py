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

# stage, event, place, before or after it: under `dvc repro`, then under `vdmini run`
DVC_MOMENTS = (
    ("report", "rename", "artifacts/report", "before"),  # whole, and not yet in its place
    ("report", "open", "dvc.lock", "after"),  # emptied, to be written anew
)
FLOW_MOMENTS = (
    ("register", "mlflow", "finalize_logged_model", "before"),  # the model is half there
    ("register", "mlflow", "create_model_version", "after"),  # nobody has written down its number yet
)


def die(story: Story, *moments: tuple[str, str, str, str]) -> None:
    """Start its driver once for every moment; it is killed at exactly that one, and nothing is torn."""
    for stage, event, place, when in moments:
        point = {"event": event, "place": place, "nth": 1, "when": when}
        died = story.attempt([Target(stage, "point", 0.5, point)], {})
        assert (died.fate, died.met, died.stage) == ("killed", "point", stage), f"{place}: {died.said}"
        assert died.moment["place"] == place
        assert torn(story.root) == []
        assert tree(story.mark) == set()


@pytest.fixture
def story(finished_project: Path, tmp_path: Path) -> Story:
    story = Story(tmp_path / "killed", "flow")
    story.folder.mkdir()
    shutil.copytree(finished_project, story.root)
    story.lay_out()
    # A model of its own, so that there is one version of it as in any story.
    change_params(story.root, assignments=("report.videos=1", "register.name=vdmini-killed"))
    return story


def test_killed_at_the_worst_moments_it_ends_as_any_other(story: Story, finished_project: Path) -> None:
    story.driver = "dvc"
    die(story, *DVC_MOMENTS)
    assert (story.root / "dvc.lock").read_text() == ""
    assert story.attempt([], {}).fate == "failed", "DVC asks for a person"
    told = story.command(str(VDMINI), "doctor", "--json").stdout
    assert "dvc.lock was cut off by a kill" in told
    story.driver = "flow"
    die(story, *FLOW_MOMENTS)
    done = story.attempt([], {})
    assert done.fate == "finished", done.said
    assert problems_of(story, finished_project, model="vdmini-killed") == []
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
