"""Claims about what `evaluate-registered` reads from a server: tags that others wrote are no results."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import rescore
from tasks.registry import EVIDENCE_TAG
from tasks.rescore import TAG, Rescore, _compare, _told
from vdmini_core.artifacts import write_json
from vdmini_core.errors import DataError

RESULT = Rescore("toy", "3", "2026-W48", 9.5, 9.0, 10.0, 9.6, None, None, 8.0, 64, "within", "0a")


def changed(**values: Any) -> str:
    return json.dumps(asdict(RESULT) | values)


def test_a_result_is_found_again() -> None:
    assert _told(json.dumps(asdict(RESULT))) == RESULT


@pytest.mark.parametrize(
    "tag",
    [
        *(None, "", "{", "[]", "null", '"fell"', "{}"),
        *(changed(verdict="fine"), changed(fvd_real="9"), changed(clips=1.5), changed(recorded=None)),
    ],
)
def test_any_other_tag_is_none_and_the_week_is_measured(tag: str | None) -> None:
    assert _told(tag) is None


@pytest.mark.parametrize(
    "evidence",
    [None, "{", "[]", "{}", '{"metrics": {"recovered": 3}}', '{"metrics": {"recovered": {"fvd_real": "9"}}}'],
)
def test_a_version_without_a_recorded_distance_is_refused(evidence: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "evaluate"
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", {"passport": {"fvd": {}}, "recovered": {"fvd_real": 9.0}})
    tags = {} if evidence is None else {EVIDENCE_TAG: evidence}
    version: Any = SimpleNamespace(name="toy", version="3", tags=tags)
    with pytest.raises(DataError, match=r"(?s)has no recorded fvd_real.*register --force"):
        _compare(tmp_path, version, "2026-W48")


@pytest.mark.parametrize("force", [False, True])
def test_a_result_that_another_machine_told_meanwhile_stays(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two schedules of two machines: one result and one notice, unless asked for; the second is marked."""
    theirs = SimpleNamespace(name="toy", version="3", tags={f"{TAG}2026-W48": changed()})
    answers = iter([SimpleNamespace(name="toy", version="3", tags={}), theirs])
    mine, asked = replace(RESULT, run_id="0b"), []
    client = SimpleNamespace(
        set_tag=lambda *given: asked.append(given), set_model_version_tag=lambda *given: asked.append(given)
    )
    turn = nullcontext(SimpleNamespace(check=lambda: None))
    monkeypatch.setattr(rescore, "turn_of", lambda *_: turn)
    monkeypatch.setattr(rescore, "connect", lambda _: client)
    monkeypatch.setattr(rescore, "find_version", lambda *_: next(answers))
    for name in ("_lay_out", "_prepare", "_bring_teacher", "_bring_student", "run_stage", "_compare"):
        monkeypatch.setattr(rescore, name, lambda *_: None)
    monkeypatch.setattr(rescore, "_keep", lambda *_: mine)
    told: list[Rescore] = []
    (tmp_path / ".vdmini" / "rescore" / "toy-3-2026-W48").mkdir(parents=True)
    found = rescore.rescore(tmp_path, "models:/toy/3", week="2026-W48", force=force, tell=told.append)
    assert (found, told) == ((mine, [mine]) if force else (RESULT, []))
    mark = ("0b", "vdmini.second_to", "0a")
    assert asked == [("toy", "3", f"{TAG}2026-W48", json.dumps(asdict(mine))) if force else mark]
