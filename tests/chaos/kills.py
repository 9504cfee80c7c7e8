"""`python -m tests.chaos.kills`: nano stories under both drivers, killed again and again, and what is left.

A story is a project of its own; its driver dies at drawn moments, a few in every stage, and is started again
until it ends. Then every byte, file, version and lock is compared with a run that nothing happened to. Every
kill is written down at once: a harness that was stopped goes on where it was (`--state`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tasks.stage import STAGES
from tests.chaos.looking import KINDS, problems_of, torn
from tests.chaos.story import BUCKET, DRIVERS, Story, Target, draw_targets, save_targets
from tests.services.s3_store import s3_store
from tests.services.serving import free_port, server
from vdmini_core.artifacts import code_version, read_json, write_json

ABOUT = (
    "SIGKILL to every process of a nano run at once, under both drivers: at random times within a stage, and "
    "at exact points (before or after a rename, a file opened for writing, a commit of SQLite, a request to "
    "MLflow or S3). Two stories of three keep their checkpoints in S3 too, and half of those that die in "
    "their recovery lose its checkpoints on disk: it has to go on from S3. The run is started again until it "
    "ends; then every output is compared with those of a run that nothing happened to, and leftovers, "
    "versions, runs, locks and torn checkpoints are looked for."
)
TIRED = 12  # attempts more than deaths planned, before a story counts as hung


class Chaos:
    """All stories of one seed, and their records in one folder."""

    def __init__(self, state: Path, seed: int, kills: int, drivers: tuple[str, ...] = DRIVERS) -> None:
        self.state, self.seed, self.kills, self.drivers = state, seed, kills, drivers
        self.lock = threading.Lock()
        self.server: str | None = None
        self.store: str | None = None

    def open(self) -> None:
        """Refuse records of other code or of another seed: their bytes are no measure here."""
        self.state.mkdir(parents=True, exist_ok=True)
        mine = {"seed": self.seed, "code": code_version()["digest"]}
        path = self.state / "state.json"
        if path.is_file() and (there := read_json(path)) != mine:
            sys.exit(f"{self.state} is of {there}, this is {mine}: remove it, or name another --state")
        write_json(path, mine)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Lines of `kills.jsonl` or `stories.jsonl`; one that a kill cut off is left out."""
        path = self.state / f"{name}.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def record(self, name: str, told: dict[str, Any]) -> None:
        """Write one down now."""
        line = json.dumps({**told, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n"
        with self.lock, (self.state / f"{name}.jsonl").open("a") as handle:
            handle.write(line)

    def say(self, text: str) -> None:
        """One line for who looks on."""
        sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")

    def reference(self, driver: str) -> Path:
        """A run that nothing happens to: its bytes, its times, its events."""
        story = Story(self.state / "references" / driver, driver, self.server, self.store)
        spans = story.folder / "spans.json"
        if not spans.is_file():
            story.remove()
            story.lay_out()
            self.say(f"reference of {driver}")
            done = story.attempt([], {})
            if done.fate != "finished":
                sys.exit(f"the reference of {driver} {done.fate}: {done.said}")
            if driver == "dvc":
                story.command(str(Path(sys.executable).with_name("vdmini")), "run").check_returncode()
            write_json(spans, done.spans)
        return story.root

    def spans(self, driver: str) -> dict[str, float]:
        """Seconds of every stage in the reference."""
        spans: dict[str, float] = read_json(self.state / "references" / driver / "spans.json")
        return spans

    def seen(self, driver: str, stage: str, stored: bool) -> list[dict[str, Any]]:
        """Events of a stage in the reference; `stored`: those of S3 too."""
        path = self.state / "references" / driver / "notes" / "seen.jsonl"
        events = [e for line in path.read_text().splitlines() if (e := json.loads(line))["stage"] == stage]
        return [e for e in events if stored or e["event"] != "s3"]

    def story(self, number: int, deadline: float) -> bool:
        """Tell one story as far as there is time; True when it is told."""
        driver = self.drivers[number % len(self.drivers)]
        # Every fourth one starts a Prefect server of its own, which dies with it.
        server = self.server if number % 4 < 2 else None
        store = self.store if number % 3 else None
        story = Story(self.state / "stories" / f"{number:04d}", driver, server, store)
        story.lay_out()
        plan = story.folder / "targets.json"
        if not plan.is_file():
            dice = random.Random(f"{self.seed}-{number}")
            seen = partial(self.seen, driver, stored=store is not None)
            save_targets(plan, draw_targets(dice, driver, seen))
        targets = [Target(**target) for target in read_json(plan)]
        tired = len(targets) + TIRED
        while time.monotonic() < deadline:
            done = story.attempt(targets, self.spans(driver))
            save_targets(plan, targets)
            told = {"story": number, "driver": driver, "stage": done.stage, "kind": done.met}
            self._see_begin(story, number, done.began_at)
            if done.fate == "killed":
                found = {"torn": torn(story.root), "processes": done.killed}
                told |= {"moment": done.moment, "seconds": done.seconds, "found": found}
                if store is not None and done.stage == "distill" and done.moment["drawn"]["loses"]:
                    told |= {"disk": "lost", "in S3": story.lose_the_machine()}
                self.record("kills", told)
                self.say(f"{number:04d} {driver} killed in {done.stage} ({done.met}), {done.seconds:.0f} s")
                tired -= 1
            if done.fate == "finished":
                found = problems_of(story, self.reference(driver)) + self._not_from_store(number)
                if done.killed:
                    found.append({"kind": "hung", "what": f"{done.killed} processes outlived the run"})
                self._finish(story, number, found)
                return True
            if done.fate == "failed" and driver == "dvc" and self._mended(story, number):
                continue
            if done.fate in ("failed", "hung") or tired < 0:
                kind = "refused" if done.fate == "failed" else "hung"
                self._finish(story, number, [{"kind": kind, "what": f"{done.stage}: {done.said}"}])
                return True
        return False

    def _see_begin(self, story: Story, number: int, step: int | None) -> None:
        """Write down that a recovery without a disk began, and at which step."""
        if step is not None:
            wanted = int(story.awaiting.read_text())
            story.awaiting.unlink()
            self.record("resumed", {"story": number, "step": step, "in S3": wanted})

    def _not_from_store(self, number: int) -> list[dict[str, str]]:
        """Recoveries of a story that trained again what lay in S3."""
        mine = [record for record in self.records("resumed") if record["story"] == number]
        return [
            {"kind": "lost", "what": f"began at step {each['step']} though S3 had step {each['in S3']}"}
            for each in mine
            if each["step"] < each["in S3"]
        ]

    def _mended(self, story: Story, number: int) -> bool:
        """Whether `vdmini doctor` put right what a killed DVC left: `dvc repro` reads it before we can."""
        done = story.command(str(Path(sys.executable).with_name("vdmini")), "doctor", "--json")
        if done.returncode != 0 or "by a kill" not in done.stdout:
            return False
        self.record("mended", {"story": number, "driver": story.driver})
        self.say(f"{number:04d} {story.driver} mended by `vdmini doctor`")
        return True

    def _finish(self, story: Story, number: int, problems: list[dict[str, str]]) -> None:
        self.record("stories", {"story": number, "driver": story.driver, "problems": problems})
        said = ", ".join(f"{p['kind']}: {p['what'][-200:]}" for p in problems) or "equal"
        self.say(f"{number:04d} {story.driver} told: {said}")
        if not problems:
            story.remove()

    def run(self, deadline: float, parallel: int) -> None:
        """Stories until there are enough kills, all of them told to their end."""
        for driver in self.drivers:
            self.reference(driver)
        numbers = self._numbers(deadline)
        with ThreadPoolExecutor(parallel) as pool:
            for _ in range(parallel):
                pool.submit(self._teller, numbers, deadline).add_done_callback(lambda done: done.result())

    def _numbers(self, deadline: float) -> Iterator[int]:
        number = 0
        while time.monotonic() < deadline:
            told = {record["story"] for record in self.records("stories")}
            begun = (self.state / "stories" / f"{number:04d}").is_dir()
            if number not in told and (begun or len(self.records("kills")) < self.kills):
                yield number
            elif number not in told:
                return
            number += 1

    def _teller(self, numbers: Iterator[int], deadline: float) -> None:
        while True:
            with self.lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                self.story(number, deadline)
            except BaseException as error:
                self.say(f"{number:04d}: the harness itself failed: {error!r}")
                raise

    def table(self) -> dict[str, Any]:
        """Kills of every stage and driver, and what was lost, as a section of docs/reliability.md."""
        kills, stories = self.records("kills"), self.records("stories")
        count = Counter((kill["driver"], kill["stage"], kill["kind"]) for kill in kills)
        rows = []
        for stage in ("start", *STAGES, "end"):
            row: dict[str, Any] = {"stage": stage}
            for driver in self.drivers:
                for kind in ("time", "point"):
                    row[f"{driver}, {kind}"] = count[driver, stage, kind]
            rows.append(row)
        found = Counter(problem["kind"] for story in stories for problem in story["problems"])
        open_stories = {kill["story"] for kill in kills} - {story["story"] for story in stories}
        totals = {"kills": len(kills), "stories": len(stories), "unfinished stories": len(open_stories)}
        points = Counter(kill["moment"]["event"] for kill in kills if kill["kind"] == "point")
        totals["at exact points"] = dict(points.most_common())
        totals["with the disk of a recovery lost"] = sum("disk" in kill for kill in kills)
        totals["gone on from S3"] = sum(record["in S3"] > 0 for record in self.records("resumed"))
        totals["mended by `vdmini doctor`"] = len(self.records("mended"))
        problems = [
            {"story": story["story"], "driver": story["driver"], **problem}
            for story in stories
            for problem in story["problems"]
        ]
        return {
            "section": "Killed anywhere",
            "order": 1,
            "about": ABOUT,
            "seed": self.seed,
            "code": code_version()["digest"][:12],
            "command": f"python -m tests.chaos.kills --kills {self.kills} --seed {self.seed}",
            "rows": rows,
            "totals": {**totals, **{kind: found[kind] for kind in KINDS}},
            "problems": problems,
        }


@contextmanager
def prefect_server(state: Path) -> Iterator[str]:
    """One server for most stories: a run starts its own otherwise, which takes ten seconds each time."""
    home, port = state / "prefect", free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--no-services"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR"}
    url = f"http://127.0.0.1:{port}/api"
    with server(command, f"{url}/health", home, PREFECT_HOME=str(home), **quiet):
        yield url


def main() -> None:
    """Kill, look, and say what was found; exit 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="stop beginning stories after so many")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--state", type=Path, default=Path(".vdmini/chaos/kills"))
    parser.add_argument("--hours", type=float, default=2.0, help="no longer than this; run again to go on")
    parser.add_argument("--parallel", type=int, default=2, help="stories at a time")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    chaos = Chaos(given.state.resolve(), given.seed, given.kills)
    chaos.open()
    deadline = time.monotonic() + 3600 * given.hours
    with (chaos.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (chaos.state / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
        with prefect_server(chaos.state) as chaos.server, s3_store(chaos.state / "s3") as chaos.store:
            chaos.run(deadline, given.parallel)
    table = chaos.table()
    print(json.dumps(table, indent=2))
    if given.out:
        write_json(given.out, table)
    sys.exit(1 if table["problems"] or table["totals"]["kills"] < given.kills else 0)


if __name__ == "__main__":
    main()
