"""The plan as data: saved, read, described, compared."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from vdmini_core.errors import PlanError
from vdmini_core.pruning.plan import Plan, diff_plans

PLAN = Plan(
    recipe="manual",
    removed=("D.0.pair.1", "M"),
    teacher_fingerprint="ab" * 32,
    family="svd",
    teacher_params=1_524_623_082,
    teacher_flops=44_801_842_380_800,
    expected_params=939_884_000,
    expected_flops=30_970_000_000_000,
    layer_map={"conv_in": "conv_in", "up_blocks.2.resnets.1": "up_blocks.2.resnets.2"},
    feature_pairs=(("down_blocks.0.attentions.0", "down_blocks.0.attentions.0"),),
    notes=("chosen by hand",),
)


def test_save_and_load_give_the_same_plan_and_bytes(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    again.save(tmp_path / "again.json")
    assert again == PLAN
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_a_plan_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PLAN.recipe = "auto"  # type: ignore[misc]


def test_describe_says_what_goes_and_what_is_left():
    text = PLAN.describe()
    for part in ("D.0.pair.1, M", "1.525 G -> 939.884 M", "61.6% left", "44.802 T -> 30.970 T", "by hand"):
        assert part in text


def test_diff_names_what_differs():
    other = replace(PLAN, removed=("M", "U.3.pair.1"), expected_params=900_000_000)
    difference = diff_plans(PLAN, other)
    assert difference["only_first"] == ["D.0.pair.1"]
    assert difference["only_second"] == ["U.3.pair.1"]
    assert difference["same_teacher"] is True
    assert difference["changed"] == {"expected_params": [939_884_000, 900_000_000]}
    assert diff_plans(PLAN, PLAN)["changed"] == {}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("removed"),
        lambda data: data.update(extra=1),
        lambda data: data.update(feature_pairs=[["one"]]),
        lambda data: data.update(expected_params="many"),
        lambda data: data.update(layer_map=[1]),
    ],
)
def test_what_is_no_plan_is_refused(spoil):
    data = PLAN.to_dict()
    spoil(data)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_dict(data)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nothing\.json"):
        Plan.load(tmp_path / "nothing.json")
