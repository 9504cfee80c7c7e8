"""The page: self-contained, escaped, complete, and honest about what is missing or got worse."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_fixture as fixture

from tasks.monitor import QuietMonitor
from tasks.report import run
from tasks.stage import StageJob
from vdmini_core.params import Params
from vdmini_core.report import page as page_module
from vdmini_core.report.facts import NOT_MEASURED, ROWS, comparison, headline
from vdmini_core.report.page import inline_svg, render_report
from vdmini_core.report.tables import SHARES, write_tables
from vdmini_core.report.verdicts import verdicts

HOSTILE = 'evil/<script>alert("1")</script>.mp4'
FETCHING = ("src", "href", "xlink:href", "poster", "srcset", "action", "data", "formaction")


class _Page(HTMLParser):
    """Collects tags, what attributes would fetch, ids and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.videos: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "video":
            self.videos.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.build(tmp_path_factory.mktemp("project"), clips=3, hostile=HOSTILE)


@pytest.fixture(scope="module")
def html(built: Path) -> str:
    return render_report(built, built.parent / "page", "VDMini & <b>friends</b>", 2).read_text(
        encoding="utf-8"
    )


def test_the_page_needs_nothing_beside_itself(html: str) -> None:
    page = _Page(html)
    assert all(value.startswith(("data:", "#")) for value in page.fetched)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "link" not in page.tags and "iframe" not in page.tags
    assert page.tags.count("script") == 1
    assert "default-src 'none'" in html


def test_names_from_outside_are_escaped(html: str) -> None:
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "VDMini &amp; &lt;b&gt;friends&lt;/b&gt;" in html


def test_prompts_stand_under_the_clips_escaped(tmp_path: Path) -> None:
    built = fixture.build(tmp_path, clips=2)
    path = built / "evaluate" / "metrics.json"
    metrics = json.loads(path.read_text())
    told = {"starts_from": ["prompts"], "prompts": ["A “red” disc <script>alert(1)</script> & more", "Two"]}
    path.write_text(json.dumps(metrics | told))
    html = render_report(built, tmp_path / "page", "Text", 2).read_text(encoding="utf-8")
    assert (
        "<q>A “red” disc &lt;script&gt;alert(1)&lt;/script&gt; &amp; more</q>" in html
        and "<q>Two</q>" in html
    )
    assert "The same prompt and the same noise" in html and "<script>alert" not in html
    assert not any("first frame" in verdict.text for verdict in verdicts(metrics | told, {}))
    assert any("first frame" in verdict.text for verdict in verdicts(metrics, {}))


def test_ids_are_used_once_per_drawing_and_labels_exist(html: str) -> None:
    page = _Page(html)
    own = [name for name in page.ids if not name.startswith(("sensitivity-", "plan-", "losses-", "speedup-"))]
    assert len(own) == len(set(own))
    assert html.count('role="img" aria-label="') == 4
    assert "<caption>" in html and "prefers-reduced-motion" in html


def test_videos_play_side_by_side(html: str) -> None:
    videos = _Page(html).videos
    assert len(videos) == 2 * 4
    assert [video["aria-label"] for video in videos[:4]] == [
        f"{row}, clip-00" for row in ("Real", "Teacher", "Pruned", "Recovered")
    ]
    for video in videos:
        assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
        assert str(video["src"]).startswith("data:video/mp4;base64,")
        assert (video["width"], video["data-frames"]) == ("64", "8")


def test_every_row_every_unusable_file_and_every_stage_is_shown(html: str) -> None:
    text = " ".join(_Page(html).text)
    for label in ROWS.values():
        assert label in text
    for row in fixture.sources():
        assert row["path"] in text and str(row.get("reason", "")) in text
    for stage in ("prepare", "teacher", "profile", "plan", "prune", "distill", "evaluate"):
        assert f"<b>{stage}</b>" in html
    assert "ef" * 32 in text and "0.42.1" in text
    assert "Peak memory of a call" in text and "48.3 M" in text


def test_the_same_artifacts_give_the_same_page(built: Path, html: str) -> None:
    again = render_report(built, built.parent / "again", "VDMini & <b>friends</b>", 2)
    assert again.read_text(encoding="utf-8") == html


@pytest.mark.parametrize(
    "gone",
    [
        "evaluate/timing.json",
        "evaluate/metrics.json",
        "evaluate/videos",
        "profile/sensitivity.json",
        "plan/plan.json",
        "distill/losses.jsonl",
        "prepare/sources.json",
        "prepare/clips-train.safetensors",
        "prepare/manifest.json",
    ],
)
def test_a_missing_part_leaves_the_rest(gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if gone.startswith(("evaluate", "prepare")):  # drawing takes longest and reads none of these
        monkeypatch.setattr(page_module, "_charts", lambda *_: {})
    artifacts = fixture.build(tmp_path, clips=1)
    path = artifacts / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = render_report(artifacts, tmp_path / "page", "VDMini", 6).read_text(encoding="utf-8")
    assert "</html>" in text
    if gone == "evaluate/timing.json":
        assert text.count(NOT_MEASURED) >= 9


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    text = render_report(tmp_path, tmp_path / "page", "VDMini", 6).read_text(encoding="utf-8")
    assert "No plan has been made yet" in text


def test_a_broken_video_and_cut_lines_do_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_charts", lambda *_: {})
    artifacts = fixture.build(tmp_path, clips=1)
    (artifacts / "evaluate/videos/pruned/clip-00.mp4").write_bytes(b"no video")
    with (artifacts / "distill/losses.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"step": 200, "tot')
    page = render_report(artifacts, tmp_path / "page", "VDMini", 6)
    assert len(_Page(page.read_text(encoding="utf-8")).videos) == 4


def _tones(metrics: dict[str, Any]) -> dict[str, str]:
    return {verdict.text: verdict.tone for verdict in verdicts(metrics, fixture.timing())}


def test_verdicts_tell_how_much_of_the_gap_was_closed() -> None:
    tones = _tones(fixture.metrics())
    assert any("closes 86 % of the gap" in text and tone == "good" for text, tone in tones.items())
    assert any("falls 5.8-fold (214 → 37)" in text for text in tones)
    assert any("intervals apart" in text and tone == "mixed" for text, tone in tones.items())


def test_a_speed_that_was_timed_once_is_told_with_care() -> None:
    told = fixture.timing()
    for repeats, tone in ((1, "mixed"), (5, "good")):
        told["details"] = {"unet": {"recovered": {"repeats": repeats}}}
        (found,) = (v for v in verdicts(fixture.metrics(), told) if "as fast as" in v.text)
        assert found.tone == tone and ("Timed once" in found.text) == (repeats == 1)


def test_verdicts_say_when_it_got_worse() -> None:
    metrics = fixture.metrics()
    metrics["recovered"] |= {"fvd_real": 300.0, "fvd_teacher": 260.0, "mse_teacher": 0.05}
    tones = _tones(metrics)
    bad = [text for text, tone in tones.items() if tone == "bad"]
    assert any("further from real clips" in text for text in bad)
    assert any("not nearer to the teacher" in text for text in bad)
    assert any("Repeating the first frame would do as well" in text for text in bad)


def test_a_cut_decoder_is_judged_by_what_it_paints() -> None:
    def told(recovered: float) -> list[tuple[str, str]]:
        found = {"teacher": 41.3, "pruned": 7.6, "recovered": recovered}
        recovery = {f"vae_decoder.{when}.psnr": value for when, value in found.items()}
        return [(v.tone, v.text) for v in verdicts({}, {}, recovery) if "VAE decoder" in v.text]

    assert [tone for tone, _ in told(40.5) + told(39.0) + told(31.0)] == ["good", "mixed", "bad"]
    assert "31.0 dB (7.6 before recovery, 41.3 whole)" in told(31.0)[0][1]
    assert not [v for v in verdicts({}, {}, {"steps": 3}) if "VAE decoder" in v.text]


def test_recovery_that_adds_damage_is_not_told_as_undoing_it() -> None:
    metrics = fixture.metrics()
    metrics["recovered"] |= {"content_teacher": 2.0, "motion_teacher": 1.0}
    metrics["pruned"] |= {"content_teacher": 1.0, "motion_teacher": 4.0}
    text = next(text for text in _tones(metrics) if "damage to content" in text)
    assert "added 100 % to the damage to content and undid 75 % of the damage to motion" in text


def test_numbers_are_not_invented() -> None:
    assert {v.tone for v in verdicts({}, {})} == {"open"}
    assert all(figure.detail == NOT_MEASURED for figure in headline({}, {}, {}))
    groups = dict(comparison(fixture.metrics(), {}))
    assert [cell.text for cell in groups["Latency, ms"][0].cells] == [NOT_MEASURED] * 3 + ["–"] * 2
    assert groups["Whole clip"][0].cells[2].interval == "74.7 – 91.3"


def test_inline_svg_follows_the_page_and_keeps_its_ids_apart() -> None:
    svg = (
        '<?xml version="1.0"?><!-- <script> --><svg width="9pt" viewBox="0 0 9 9" xmlns="http://x"><style>*{a:b}</style>'
        '<g id="one" style="fill: #1c2530"/><use xlink:href="#one" clip-path="url(#two)"/></svg>'
    )
    inlined = inline_svg(svg, "p", 'a "b" <c>')
    assert inlined.startswith('<svg viewBox="0 0 9 9" role="img" aria-label="a &#34;b&#34; &lt;c&gt;">')
    assert 'id="p-one" style="fill: var(--chart-ink)"' in inlined
    assert 'xlink:href="#p-one" clip-path="url(#p-two)"' in inlined


def test_the_stage_writes_one_page_and_the_tables(built: Path, tmp_path: Path) -> None:
    monitor = QuietMonitor()
    out = tmp_path / "out"
    out.mkdir()
    outcome = run(StageJob(built.parent, Params(), out, tmp_path, monitor))
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "tables"]
    assert "artifacts/report/index.html" in monitor.notes[0]
    json.dumps(outcome.timing)


def test_tables_hold_what_two_commits_are_compared_by(built: Path, tmp_path: Path) -> None:
    written = write_tables(built, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    source = json.loads((built / "evaluate" / "metrics.json").read_text())
    assert metrics["recovered"]["fvd_teacher"] == source["recovered"]["fvd_teacher"]
    assert set(metrics) <= {*SHARES, "teacher", "pruned", "recovered"}
    assert all(isinstance(value, float) for row in ("pruned", "recovered") for value in metrics[row].values())
    tables = {path.stem: list(csv.DictReader(path.open())) for path in written if path.suffix == ".csv"}
    losses = [json.loads(line) for line in (built / "distill" / "losses.jsonl").read_text().splitlines()]
    assert [float(row["total"]) for row in tables["recovery"]] == [row["total"] for row in losses]
    units = json.loads((built / "profile" / "sensitivity.json").read_text())["units"]
    assert [row["unit"] for row in tables["sensitivity"]] == [unit["name"] for unit in units]
    assert {row["fate"] for row in tables["sensitivity"]} == {"kept", "removed"}


def test_tables_of_an_empty_folder_have_a_head_alone(tmp_path: Path) -> None:
    write_tables(tmp_path / "nothing", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {}
    assert (tmp_path / "out" / "frontier.csv").read_text().count("\n") == 1
