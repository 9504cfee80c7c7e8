"""VBench's result files become metrics and a table of the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import report_fixture

from vdmini_core.errors import DataError
from vdmini_core.metrics.vbench_results import DIMENSIONS, read_results
from vdmini_core.report.page import render_report
from vdmini_core.report.vbench import vbench_table

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vbench"


def test_i2v_results_of_several_files_with_vbenchs_own_sums() -> None:
    found = read_results(FIXTURES / "i2v", "i2v")
    assert set(DIMENSIONS["i2v"]) < set(found)
    assert found["camera_motion"] == 0.4 and found["temporal_flickering"] == 0.9714
    # What VBench's scripts/cal_i2v_final_score.py gives for these files.
    assert found["quality_score"] == pytest.approx(0.7698658521540197, abs=1e-12)
    assert found["i2v_score"] == pytest.approx(0.9120034485203193, abs=1e-12)
    assert found["total_score"] == pytest.approx(0.8409346503371695, abs=1e-12)


def test_t2v_results_with_vbenchs_own_sums() -> None:
    found = read_results(FIXTURES / "t2v" / "all_eval_results.json", "t2v")
    # What VBench's scripts/cal_final_score.py gives for this file.
    assert found["quality_score"] == pytest.approx(0.8122103044356616, abs=1e-12)
    assert found["semantic_score"] == pytest.approx(0.6807569900847228, abs=1e-12)
    assert found["total_score"] == pytest.approx(0.7859196415654738, abs=1e-12)


def test_a_sum_with_a_dimension_missing_is_not_given(tmp_path: Path) -> None:
    shutil.copyfile(FIXTURES / "i2v" / "alignment_eval_results.json", tmp_path / "a.json")
    found = read_results(tmp_path, "i2v")
    assert list(found) == ["i2v_subject", "i2v_background", "camera_motion", "i2v_score"]
    assert read_results(tmp_path / "a.json", "i2v") == found
    (tmp_path / "a.json").unlink()
    assert read_results(tmp_path, "i2v") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"motion_smoothness": [NaN, []]}', "not a score"),
        ('{"motion_smoothness": []}', "not a score"),
        ('{"motion_smoothness": [null]}', "not a score"),
        ('{"imaging_quality": [62.38, []]}', "not a score"),
        ('{"human_action": [0.9, []]}', "does not have"),
        ('{"i2v_subject": [0.5, []]}', "disagree on i2v_subject"),
        ("{", "not a result file"),
    ],
)
def test_a_result_that_cannot_be_used_says_why(tmp_path: Path, text: str, says: str) -> None:
    shutil.copytree(FIXTURES / "i2v", tmp_path / "results")
    (tmp_path / "results" / "z.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_results(tmp_path / "results", "i2v")


def test_the_report_shows_them(tmp_path: Path) -> None:
    artifacts = report_fixture.build(tmp_path, clips=1)
    file = artifacts / "evaluate" / "metrics.json"
    metrics = json.loads(file.read_text())
    assert vbench_table(metrics) is None
    assert 'id="vbench"' not in render_report(artifacts, tmp_path / "without", "t", 0).read_text()
    teacher = read_results(FIXTURES / "i2v", "i2v")
    recovered = {"i2v_subject": 0.9333, "i2v_background": 0.9501}
    metrics["vbench"] = {
        "kind": "i2v",
        "suite": None,
        "scores": {"teacher": teacher, "recovered": recovered},
    }
    file.write_text(json.dumps(metrics))
    html = render_report(artifacts, tmp_path / "with", "t", 0).read_text()
    section = html.split('id="vbench"')[1].split("</section>")[0]
    assert "VBench-I2V" in section and section.count('<th scope="row">') == 3 + 10
    assert '<th scope="row"><b>Total score</b></th><td>84.09</td><td>–</td>' in section
    assert '<th scope="row">I2V subject</th><td>94.12</td><td>93.33</td>' in section
    assert '<th scope="row">Camera motion</th><td>40.00</td><td>–</td>' in section
