"""Stage `evaluate` on a tiny random pipeline, its comparison and its videos."""

import copy
import dataclasses
import json

import pytest
import torch

from tasks.monitor import QuietMonitor
from tasks.stage import StageJob
from vdmini_core.data.clips import save_clips
from vdmini_core.data.procedural import ProceduralSpec, render_clips, split_seeds
from vdmini_core.errors import DataError
from vdmini_core.metrics.comparison import compare_rows, repeat_first_frame
from vdmini_core.metrics.extractors import load_extractor
from vdmini_core.metrics.passport import Passport, require_comparable
from vdmini_core.metrics.protocol import make_protocol
from vdmini_core.metrics.showcase import side_by_side
from vdmini_core.params import FvdParams, parse_params

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
    from vdmini_core.models.base import SamplingSettings
    from vdmini_core.models.registry import save_pipeline
    from vdmini_core.teacher.architecture import build_pipeline

    root = tmp_path_factory.mktemp("project")
    prepare(root / "artifacts" / "prepare")
    pipeline = build_pipeline("nano", seed=0)
    settings = SamplingSettings(frames=4, height=32, width=32, fps=8.0, steps=1)
    save_pipeline(pipeline, root / "artifacts" / "teacher" / "pipeline", settings)
    for stage, size in (("prune", 0.5), ("distill", 0.02)):
        student = copy.deepcopy(pipeline)
        with torch.no_grad():
            for parameter in student.unet.parameters():
                parameter.mul_(1 + size)
        save_pipeline(student, root / "artifacts" / stage / "student", None)
    return root


def evaluate(root, out, work=None, **fvd):
    from tasks.evaluate import run

    out.mkdir()
    params = parse_params(
        {
            "prepare": {"frames": 4, "height": 32, "width": 32, "clips": {"test": 6}},
            "sampling": {"steps": 1, "batch_size": 3},
            "evaluate": {"clips": 6, "videos": 1, "latency_repeats": 1, "latency_warmup": 0, "fvd": fvd},
        }
    )
    monitor = QuietMonitor()
    outcome = run(StageJob(root, params, out, work or out.with_name(f"{out.name}-work"), monitor))
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
    for measure in ("fvd", "content", "motion"):
        passport = Passport.from_json(metrics["passport"][measure])
        assert passport.frames == 4 and passport.size == (32, 32) and passport.fps == 8.0
        assert passport.real.clips == passport.generated.clips == 4
        assert passport.real.decoders == ("decord",) and passport.real.split == "test"
    assert metrics["passport"]["motion"]["extractor"] == "motion"
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


class ColourNetwork:
    """An extractor that takes six numbers of a clip: the mean colours of its first and last frame."""

    name, dim, least_frames = "i3d", 6, 2

    def __init__(self, identity):
        self.identity, self.frames_seen = identity, set()

    def __call__(self, videos, progress=False):
        self.frames_seen.add(videos.shape[1])
        return (videos[:, [0, -1]].float() / 255).mean(dim=(2, 3)).flatten(1).numpy()

    def passport(self):
        return {"extractor": self.name, "dim": self.dim, "resize": "none", **self.identity}


def test_a_published_protocol_is_one_more_measure(root, tmp_path, monkeypatch):
    import tasks.protocol

    made = []

    def network(fvd, weights, device):
        assert (str(weights), device) == (str(root / "i3d.pt"), "cpu")
        made.append(ColourNetwork({"weights_sha256": fvd.sha256, "layer": fvd.layer}))
        return made[0]

    monkeypatch.setattr(tasks.protocol, "load_protocol_extractor", network)
    asked = {"extractor": "i3d", "weights": "i3d.pt", "sha256": "ab" * 32, "layer": "pooled"}
    asked |= {"clips": 4, "clips_per_video": 1, "frames": 2, "fps": 4.0, "height": 16, "width": 24}
    outcome, metrics, _ = evaluate(root, tmp_path / "out", **asked)
    assert made[0].frames_seen == {2}
    for row in ROWS:
        low, high = metrics[row]["i3d_real_interval"]
        assert low <= metrics[row]["i3d_real"] <= high
    assert {row["row"]: row["i3d_real"] for row in outcome.table}["pruned"] == metrics["pruned"]["i3d_real"]
    assert outcome.metrics["recovered.i3d_teacher"] == metrics["recovered"]["i3d_teacher"]
    assert metrics["noise_floor"]["i3d"]["n"] == 4
    passport = Passport.from_json(metrics["passport"]["i3d"])
    assert (passport.frames, passport.fps, passport.size) == (2, 4.0, (16, 24))
    assert (passport.layer, passport.weights_sha256) == ("pooled", "ab" * 32)
    assert metrics["passport"]["fvd"]["frames"] == 4
    assert (passport.real.choice, metrics["passport"]["fvd"]["real"]["choice"]) == (
        "at most 1 of each video",
        "",
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"fps": 7.0}, "fps 8"), ({"motion_bucket_id": 40}, "bucket 127"), ({"noise_aug_strength": 0.1}, "0.02"),
     ({"steps": 4}, "1 steps"), ({"guidance": 3.0}, "guidance 1"), ({"height": 64}, "32x32")],
)  # fmt: skip
def test_values_sampled_otherwise_are_not_compared(root, tmp_path, changed, says):
    from tasks.protocol import passports
    from vdmini_core.models.base import SamplingSettings

    settings = SamplingSettings(frames=4, height=32, width=32, fps=8.0, steps=1)
    job = StageJob(root, parse_params({"prepare": {"fps": 8.0}}), tmp_path, tmp_path, QuietMonitor())
    extractors = {"embedded": load_extractor("embedded").passport()}
    a, b = (
        Passport.from_json(passports(job, clips(4).shape, each, extractors, None)["fvd"])
        for each in (settings, dataclasses.replace(settings, **changed))
    )
    assert require_comparable(a, a) == []
    with pytest.raises(DataError, match=rf"generated\.choice: .*{says}.* against "):
        require_comparable(a, b)


def test_values_of_other_precisions_are_not_compared(root, tmp_path):
    from tasks.protocol import passports
    from vdmini_core.models.base import SamplingSettings

    settings = SamplingSettings(frames=4, height=32, width=32, fps=8.0, steps=1)
    extractors, found = {"embedded": load_extractor("embedded").passport()}, []
    for precision in ("fp32", "bf16"):
        given = {"prepare": {"fps": 8.0}, "sampling": {"precision": precision}}
        job = StageJob(root, parse_params(given), tmp_path, tmp_path, QuietMonitor())
        found.append(Passport.from_json(passports(job, clips(4).shape, settings, extractors, None)["fvd"]))
    assert found[0].generated.choice.endswith("at a time"), "as before there was a choice"
    with pytest.raises(DataError, match=r"generated\.choice: .* against .*, bf16"):
        require_comparable(*found)


@pytest.mark.parametrize(
    ("fvd", "says"),
    [
        ({"extractor": "i3d"}, r"evaluate\.fvd\.weights is not set"),
        ({"extractor": "i3d", "weights": "gone.pt"}, "are not there(?s:.)*gone.pt"),
        ({"extractor": "i3d", "weights": "here.pt"}, r"sha256 is not set(?s:.)*fvd\.sha256=e3b0c44298fc"),
    ],
)
def test_a_protocol_without_weights_stops_before_sampling(root, tmp_path, monkeypatch, fvd, says):
    import tasks.evaluate

    (root / "here.pt").touch()
    monkeypatch.setattr(tasks.evaluate, "_real_clips", lambda job: pytest.fail("it went on"))
    with pytest.raises(DataError, match=says):
        evaluate(root, tmp_path / "out", **fvd)


def test_a_protocol_never_counts_a_clip_twice():
    extract = load_extractor("embedded")
    prepare = parse_params({"prepare": {"frames": 4}}).prepare
    sources = ["a", "a", "b", None, "a", None]

    def chosen(**asked):
        return make_protocol(extract, FvdParams(**asked), prepare, sources).chosen

    assert chosen() == tuple(range(6))
    assert chosen(clips_per_video=1) == (0, 2, 3, 5)
    assert chosen(clips_per_video=2, clips=3) == (0, 1, 2)
    with pytest.raises(DataError, match=r"expected: 5\n  found: 4 of 6 test clips, at most 1 of a video"):
        chosen(clips_per_video=1, clips=5)
    with pytest.raises(DataError, match="longer clips"):
        make_protocol(load_extractor("motion"), FvdParams(fps=2.0), prepare, sources)


def test_a_protocol_sees_frames_at_its_rate_and_size():
    rows = clips(3)
    extract = load_extractor("embedded")
    prepare = parse_params({"prepare": {"frames": 4, "fps": 8.0}}).prepare
    protocol = make_protocol(extract, FvdParams(fps=4.0, clips=2), prepare, [None] * 3)
    assert protocol.chosen == (0, 1)
    assert torch.equal(protocol.see(rows), rows[:, ::2])
    small = make_protocol(extract, FvdParams(height=16, width=16, frames=3), prepare, [None] * 3).see(rows)
    assert small.shape == (3, 3, 16, 16, 3) and small.dtype == torch.uint8
    assert small.float().mean().item() == pytest.approx(rows[:, :3].float().mean().item(), abs=1)


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
