"""Typed params at the door: unknown keys name the nearest known one, nothing impossible gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.check_project import committed_params
from vdmini_core.errors import ParamsError
from vdmini_core.params import Params, known_keys, load_params, nearest_key, parse_params

ROOT = Path(__file__).resolve().parents[2]


def test_params_yaml_is_the_typed_default() -> None:
    assert committed_params() == Params()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"distill": {"stepz": 3}}, "did you mean `distill.steps`"),
        ({"profle": {}}, "did you mean `profile`"),
        ({"plan": {"max_params_ratio": 2}}, "less than or equal to 1"),
        ({"plan": {"recipe": "auto"}}, "needs a budget"),
        ({"distill": {"batch_size": 3, "workers": 2}}, "not a multiple"),
        ({"distill": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"distill": {"lambda_task": 0, "lambda_icd": 0, "lambda_mca": 0}}, "nothing would be learned"),
        ({"profile": {"clips": 999}}, "exceeds prepare.clips.validation"),
        ({"teacher": {"source": "hub"}}, "needs `hub_id`"),
        ({"prepare": {"height": 65}}, "multiple of 8"),
        ({"evaluate": {"fvd": {"height": 64}}}, "height and width go together"),
        ({"evaluate": {"fvd": {"bn_eps": 1e-4}}}, r"fvd.bn_eps`: 1e-05 or 0.001 \(found 0.0001"),
        ({"evaluate": {"fvd": {"extractor": "i3d", "clips": 33}}}, "exceeds evaluate.clips 24"),
        ({"evaluate": {"fvd": {"extractor": "i3d", "fps": 7}}}, "divided by a whole number"),
        ({"evaluate": {"fvd": {"extractor": "i3d", "fps": 4, "frames": 5}}}, "span 9 prepared frames"),
        ([1, 2], "holds no parameters"),
    ],
)
def test_wrong_params_are_refused_with_the_reason(data: object, says: str) -> None:
    with pytest.raises(ParamsError, match="(?s).*" + says.replace(".", r"\.")):
        parse_params(data)


def test_missing_and_broken_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"no params\.yaml here"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("base: !!python/object/apply:os.system ['true']")
    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")


def test_a_section_whose_lines_are_all_comments_holds_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("distill:\n  # steps: 5\nbase: {seed: 3}\n")
    assert load_params(path).distill == Params().distill and load_params(path).base.seed == 3
    path.write_text("nonsense:\n")
    with pytest.raises(ParamsError, match="unknown key `nonsense`"):
        load_params(path)


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().base.seed = 3  # type: ignore[misc]


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(known_keys()), st.integers(0, 100))
def test_a_typo_of_any_key_finds_it(key: str, position: int) -> None:
    section, _, name = key.rpartition(".")
    if len(name) < 6:
        return
    cut = position % len(name)
    typo = (section + "." if section else "") + name[:cut] + name[cut + 1 :]
    if typo in known_keys():
        return
    near = nearest_key(typo)
    assert near is not None
    assert near.rsplit(".", 1)[-1][:3] == name[:3] or near == key or cut < 3


def test_the_page_of_parameters_is_what_the_code_reads() -> None:
    from vdmini_core.params_doc import document

    assert (ROOT / "docs" / "params.md").read_text() == document(), (
        "run: python -m vdmini_core.params_doc > docs/params.md"
    )


def test_the_ucf101_profile_names_every_choice_of_its_protocol() -> None:
    from tasks.project import profile_values

    params = parse_params(profile_values(ROOT, "ucf101-fvd"))
    fvd = params.evaluate.fvd
    unset = [name for name, value in fvd if value is None]
    assert unset == ["weights", "sha256"]  # the user's own
    assert (fvd.frames, fvd.fps) == (params.prepare.frames, params.prepare.fps)
    assert (fvd.height, fvd.width) == (params.prepare.height, params.prepare.width)
    assert fvd.clips == params.evaluate.clips <= params.prepare.clips.test
    assert (fvd.clips, fvd.frames, fvd.fps) == (2048, 16, 7.0)
    assert params.prepare.source == "folder"
