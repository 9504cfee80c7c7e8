"""Stage `evaluate` on a tiny random pipeline, its comparison and its videos."""

import copy
import json

import pytest
import torch

from tasks.stage import QuietMonitor, StageJob
from vdmini_core.data.clips import save_clips
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.metrics.comparison import compare_rows, repeat_first_frame
from vdmini_core.metrics.showcase import side_by_side
from vdmini_core.params import parse_params

ROWS = ("teacher", "pruned", "recovered", "repeat_first_frame", "real")
SPEC = ProceduralSpec(frames=4, height=32, width=32)


def clips(n, split="test"):
    return torch.from_numpy(render_clips(SPEC, split_seeds(split, n, 5)))


def prepare(folder):
    folder.mkdir(parents=True)
    for split, n in (("train", 6), ("validation", 2), ("test", 4)):
        found = clips(n, split)
        save_clips(folder, split, found, found.shape)
    (folder / "index.json").write_text(json.dumps({"test": [{"clip": 0, "decoder": "decord"}]}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from vdmini_core.models.registry import save_pipeline
    from vdmini_core.teacher.architecture import build_pipeline

    root = tmp_path_factory.mktemp("project")
    prepare(root / "artifacts" / "prepare")
    pipeline = build_pipeline("nano", seed=0)
    save_pipeline(pipeline, root / "artifacts" / "teacher" / "pipeline", None)
    for stage, size in (("prune", 0.5), ("distill", 0.02)):
        student = copy.deepcopy(pipeline)
        with torch.no_grad():
            for parameter in student.unet.parameters():
                parameter.mul_(1 + size)
        save_pipeline(student, root / "artifacts" / stage / "student", None)
    return root


def evaluate(root, out):
    from tasks.evaluate import run

    out.mkdir()
    params = parse_params(
        {
            "prepare": {"frames": 4, "height": 32, "width": 32, "clips": {"test": 6}},
            "sampling": {"steps": 1, "batch_size": 3},
            "evaluate": {"clips": 6, "videos": 1, "latency_repeats": 1, "latency_warmup": 0},
        }
    )
    monitor = QuietMonitor()
    outcome = run(StageJob(root, params, out, root, monitor))
    return outcome, json.loads((out / "metrics.json").read_text()), monitor


@pytest.fixture(scope="module")
def evaluated(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return *evaluate(root, out), out


def test_metrics_hold_every_row_and_measure(evaluated):
    _, metrics, monitor, _ = evaluated
    for row in ROWS:
        low, high = metrics[row]["fvd_real_interval"]
        assert low <= metrics[row]["fvd_real"] <= high
        assert {"content_real", "motion_real"} <= metrics[row].keys()
        keys = {"fvd_teacher", "mse_teacher", "psnr_teacher", "ssim_teacher", "temporal_error_teacher"}
        keys |= {"content_teacher", "motion_teacher"}
        assert keys <= metrics[row].keys() if row != "teacher" else not keys & metrics[row].keys()
    assert metrics["params_ratio"] == metrics["flops_ratio"] == 1.0
    assert metrics["teacher"]["params"] > 0 and metrics["teacher"]["flops"] > 0
    assert metrics["clips"] == 4 and "4 test clips" in monitor.notes[0]
    assert metrics["passport"]["decoders"] == ["decord"]
    assert metrics["recovered"]["mse_teacher"] < metrics["pruned"]["mse_teacher"]


def test_timing_and_table(evaluated):
    outcome, metrics, _, _ = evaluated
    for model in ("teacher", "pruned", "recovered"):
        assert set(outcome.timing["latency_ms"][model]) == {"unet", "vae_decoder", "end_to_end"}
        assert all(value >= 0 for value in outcome.timing["peak_memory_bytes"][model].values())
        assert outcome.timing["weight_bytes"][model] == 4 * metrics[model]["params"]
    assert outcome.timing["peak_memory_bytes"]["teacher"]["end_to_end"] > 0
    assert outcome.timing["details"]["unet"]["teacher"].keys() >= {"median_ms", "iqr_ms", "repeats", "warmup"}
    assert (outcome.timing["batch"], outcome.timing["resolution"]) == (1, [32, 32])
    assert all(value > 0 for value in outcome.timing["speedup"].values())
    assert [row["row"] for row in outcome.table] == list(ROWS)
    assert outcome.metrics["recovered.fvd_teacher"] == metrics["recovered"]["fvd_teacher"]


def test_videos(evaluated):
    *_, out = evaluated
    for name in ("real", "teacher", "pruned", "recovered"):
        assert (out / "videos" / name / "clip-00.mp4").stat().st_size > 0
    assert (out / "videos" / "side-by-side-00.mp4").stat().st_size > 0
    assert not (out / "videos" / "side-by-side-01.mp4").exists()


def test_twice_the_same_bytes(root, evaluated, tmp_path):
    *_, first = evaluated
    evaluate(root, tmp_path / "again")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for name in files:
        assert (first / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_comparison_ranks_damage():
    real, other = clips(6), clips(6, "validation")
    teacher = real
    slight = (real.int() + 4).clamp(0, 255).to(torch.uint8)
    rows = {
        "real": real,
        "teacher": teacher,
        "pruned": real.flip(1),
        "recovered": slight,
        "repeat_first_frame": repeat_first_frame(real),
    }
    found = compare_rows(rows, other, seed=0)
    table = found["rows"]
    assert table["recovered"]["mse_teacher"] == pytest.approx((4 / 255) ** 2, rel=0.05)
    assert table["recovered"]["fvd_teacher"] < table["repeat_first_frame"]["fvd_teacher"]
    assert table["real"]["mse_teacher"] == 0 and table["real"]["fvd_real"] > 0
    assert table["repeat_first_frame"]["motion_teacher"] > 10 * table["recovered"]["motion_teacher"]
    assert found["noise_floor"]["fvd"]["n"] == 6


def test_two_clips_get_values_without_intervals():
    real = clips(2)
    rows = {"real": real, "teacher": real.flip(1)}
    table = compare_rows(rows, clips(2, "validation"), seed=0)["rows"]
    assert table["teacher"]["fvd_real"] > 0 and "fvd_real_interval" not in table["teacher"]


def test_side_by_side_is_labelled_and_enlarged():
    films = {name: clips(1)[0].numpy() for name in ("real", "recovered")}
    shown = side_by_side(films)
    assert shown.shape[0] == 4 and shown.shape[1] > 192 and shown.shape[2] > 2 * 192
    assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0
    assert (shown[0, :24] > 150).any()  # the names
