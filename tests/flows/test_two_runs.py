"""Two runs of one project at once, started by two people: every stage runs once, and both come to its end."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tasks.project import change_params
from tasks.tracking import connect
from tests.flows.conftest import VDMINI, environment
from tests.flows.test_compress import hashes

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_server")]


def test_two_runs_of_one_project_take_turns(finished_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "shared"
    shutil.copytree(finished_project, root)
    change_params(root, assignments=("report.videos=1", "register.name=vdmini-shared"))
    runs = [
        subprocess.Popen(
            [str(VDMINI), "run", "--json", "--root", str(root)],
            cwd=place,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in (root, tmp_path)  # the second from outside: nothing may depend on where it is called
    ]
    told = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    fates = Counter(
        (row["stage"], row["fate"]) for out, _ in told for row in json.loads(out)["stages"]
    )  # of both runs
    ran = {stage: count for (stage, fate), count in fates.items() if fate == "ran"}
    assert ran == {"report": 1, "register": 1, "promote": 1}
    assert hashes(root) == hashes(finished_project)
    client = connect(root)
    assert len(client.search_model_versions("name = 'vdmini-shared'")) == 1
    assert client.search_runs(["1"], "attributes.status = 'RUNNING'") == []
