"""One story: a nano project of its own, brought to its end through many deaths.

A driver is started, dies at a drawn moment with all its processes, and is started again until the story is
told. What is planned and what is done lies in the story's folder, so that the harness may die as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tasks.recovery_checkpoints import COMPLETE
from tasks.recovery_mirror import CHECKPOINTS
from tasks.recovery_watch import STARTS
from tasks.stage import REPRODUCIBLE, STAGES
from tests.chaos.hook.chaos_tree import MARK, kill_tree, tree
from tests.flows.conftest import VDMINI, environment, make_project
from tests.services.s3_store import settings
from vdmini_core.artifacts import write_json

HOOK = Path(__file__).parent / "hook"
CHECKOUT = Path(__file__).resolve().parents[2]
DRIVERS = ("flow", "dvc")
HUNG_S = 1800.0  # of one attempt, on a machine that others use as well
LOOK_S = 0.02
PARTING_S = 30.0  # processes of a run that has ended may take so long to end, too
BUCKET = "chaos"
# How often a kind of event is drawn; others 1.
WEIGHTS = {"rename": 3, "mlflow": 3, "s3": 8, "open": 2, "commit": 2}
COMMANDS = {
    "flow": [str(VDMINI), "run"],
    "dvc": [str(Path(sys.executable).with_name("dvc")), "repro"],
}


@dataclass
class Target:
    """A moment to die at.

    Attributes:
        stage: where; `start` is before the first one, `end` after the last one.
        kind: `time`: a share of the stage's time in the reference; `point`: an exact event.
        share: of the stage's time; also of the next one's where a point was not met.
        point: event, place, nth and when (`before`, `after`).
        loses: in a recovery whose checkpoints go to S3: its own disk goes with it.
    """

    stage: str
    kind: str
    share: float
    point: dict[str, Any] = field(default_factory=dict)
    loses: bool = False


@dataclass
class Attempt:
    """What became of one start of a driver: `killed`, `finished`, `failed` or `hung`.

    `stage` is the one that was at work, `met` the kind of moment it died at, `killed` how many processes had
    to be killed from outside: also those that were still there after an end of its own. `began_at` is the
    step that a recovery began at, where somebody waits for it.
    """

    fate: str
    stage: str
    met: str = ""
    moment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    killed: int = 0
    said: str = ""
    spans: dict[str, float] = field(default_factory=dict)
    began_at: int | None = None


def stages_of(driver: str) -> tuple[str, ...]:
    """What a driver brings up to date."""
    return tuple(STAGES) if driver == "flow" else REPRODUCIBLE


class Story:
    """A project folder, the driver that tells it, and where its processes may write."""

    def __init__(
        self, folder: Path, driver: str, server: str | None = None, store: str | None = None
    ) -> None:
        """`server`: of Prefect; `store`: of S3, where checkpoints go as well."""
        self.folder, self.driver, self.server, self.store = folder, driver, server, store
        self.root = folder / "project"
        # The same in every process of the harness: what a killed harness left running is found again.
        self.mark = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]

    def lay_out(self) -> None:
        """The project, and a short temporary folder: Ray's sockets have room for some hundred letters."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.root / ".dvc" / "config").is_file():
            shutil.rmtree(self.root, ignore_errors=True)
            make_project(self.root)
        note = self.folder / "temporary"
        if not note.is_file():
            note.write_text(tempfile.mkdtemp(prefix="vc-"))
        self.temporary.mkdir(exist_ok=True)

    @property
    def temporary(self) -> Path:
        """Of all processes of the story."""
        return Path((self.folder / "temporary").read_text())

    @property
    def stored(self) -> Path:
        """Where its checkpoints lie, as the store's server keeps them."""
        return self.folder.parent.parent / "s3" / BUCKET / self.mark

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.stored, ignore_errors=True)
        if (self.folder / "temporary").is_file():
            shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, hook: bool = True, **extra: str) -> dict[str, str]:
        """Of a process of the story: the harness's mark, and the hook's folder before all others."""
        paths = [str(HOOK)] * hook + [str(CHECKOUT)]
        given = {
            MARK: self.mark,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # Ray's own 15 starves them beside anything else on two cores
            "TMPDIR": str(self.temporary),
            "RAY_TMPDIR": str(self.temporary),
            "VDMINI_CACHE": str(self.folder.parent.parent / "cache"),
            "PREFECT_HOME": str(self.folder / "prefect"),
            **self._keys(),
            **({"PREFECT_API_URL": self.server} if self.server else {}),
            **extra,
        }
        return environment(**given)

    def _keys(self) -> dict[str, str]:
        if self.store is None:
            return {}
        address = f"s3://{BUCKET}/{self.mark}"
        return settings(self.store, self.folder.parent.parent / "cache") | {CHECKPOINTS: address}

    def lose_the_machine(self) -> int | None:
        """Remove all checkpoints on the disk, so that the recovery can go on from those of the store alone.

        Returns:
            The step of the newest whole one there, which the next start has to begin at; None without one.
        """
        shutil.rmtree(self.root / ".vdmini" / "work" / "distill", ignore_errors=True)
        whole = sorted(path.parent.name for path in self.stored.glob(f"*/*/{COMPLETE}"))
        if not whole:
            return None
        step = int(whole[-1].rpartition("-")[2])
        self.awaiting.write_text(str(step))
        return step

    @property
    def awaiting(self) -> Path:
        """Holds the step that the recovery has to begin at, as long as nobody has seen it begin."""
        return self.folder / "awaiting"

    def began_at(self) -> int | None:
        """The step that the present recovery began at; None as long as it has not."""
        for path in (self.root / ".vdmini" / "work" / "distill").glob(f"*/{STARTS}"):
            lines = path.read_text().splitlines()
            if lines and lines[0].endswith("}"):
                return int(json.loads(lines[0])["step"])
        return None

    def command(self, *words: str, timeout: float = HUNG_S) -> subprocess.CompletedProcess[str]:
        """Run something in the project to its end."""
        return subprocess.run(
            list(words),
            cwd=self.root,
            env=self.environment(hook=False),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def attempt(
        self, targets: list[Target], spans: dict[str, float], command: Sequence[str] | None = None
    ) -> Attempt:
        """Start the driver; it dies at the first of `targets` that comes, which is taken from the list.

        Args:
            targets: in the order of the stages; those that can no longer come are dropped.
            spans: seconds of every stage in the reference.
            command: in place of the driver's own.
        """
        kill_tree(self.mark)
        notes = self.folder / "notes"
        notes.mkdir(exist_ok=True)
        (notes / "hit.jsonl").unlink(missing_ok=True)
        extra = {"VDMINI_CHAOS_NOTES": str(notes), "VDMINI_CHAOS_ROOT": str(self.root)}
        exact = next((target for target in targets[:1] if target.kind == "point"), None)
        if exact is not None:
            extra["VDMINI_CHAOS_POINT"] = json.dumps(exact.point | {"stage": exact.stage})
        # A kill in the midst of plain time needs no hook at all.
        counting = not targets
        log = self.folder / "said.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                list(command or COMMANDS[self.driver]),
                cwd=self.root,
                env=self.environment(hook=counting or exact is not None, **extra),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        with log.open(errors="replace") as handle:
            try:
                done = _Watch(self, process, handle, targets, spans).until_its_end()
            finally:
                kill_tree(self.mark)
                process.wait()
                self.wait_for_their_end()
        done.said = log.read_text(errors="replace")[-3000:]
        return done

    def left(self) -> set[int]:
        """Processes that are still there."""
        return tree(self.mark)

    def wait_for_their_end(self) -> None:
        # SIGKILL is only sent: on a busy machine a process with much memory takes its time to be gone.
        deadline = time.monotonic() + PARTING_S
        while self.left() and time.monotonic() < deadline:
            time.sleep(LOOK_S)


class _Watch:
    """Follows what a driver says, and kills it when the moment has come."""

    def __init__(
        self,
        story: Story,
        process: subprocess.Popen[bytes],
        handle: IO[str],
        targets: list[Target],
        spans: dict[str, float],
    ) -> None:
        self.story, self.process, self.handle = story, process, handle
        self.targets, self.spans = targets, spans
        self.order = ["start", *stages_of(story.driver), "end"]
        self.started = time.monotonic()
        self.stage, self.since = "start", self.started
        self.seen: dict[str, float] = {}
        self.rest = ""
        self.moment: float | None = None
        self.began_at: int | None = None
        self._enter("start")

    def until_its_end(self) -> Attempt:
        """Look, kill, say what became of it."""
        while True:
            ended = self.process.poll()
            self._read()
            if self.began_at is None and self.story.awaiting.is_file():
                self.began_at = self.story.began_at()
            now = time.monotonic()
            if ended is not None:
                return self._ended(ended)
            if self.moment is not None and now >= self.moment:
                share, target = self.moment - self.since, self.targets.pop(0)
                killed = kill_tree(self.story.mark)
                moment = {"seconds": round(share, 3), "drawn": asdict(target)}
                return self._attempt("killed", "time", moment, killed)
            if now - self.started > HUNG_S:
                return self._attempt("hung")
            time.sleep(LOOK_S)

    def _ended(self, code: int) -> Attempt:
        hit = self.story.folder / "notes" / "hit.jsonl"
        if hit.is_file():
            target, told = self.targets.pop(0), json.loads(hit.read_text().splitlines()[0])
            self.stage = told["stage"]
            return self._attempt("killed", "point", {**told, "drawn": asdict(target)})
        self._close()
        deadline = time.monotonic() + PARTING_S
        while (left := self.story.left()) and time.monotonic() < deadline:
            time.sleep(10 * LOOK_S)
        return self._attempt("finished" if code == 0 else "failed", moment={"exit": code}, killed=len(left))

    def _attempt(
        self, fate: str, met: str = "", moment: dict[str, Any] | None = None, killed: int = 0
    ) -> Attempt:
        seconds = round(time.monotonic() - self.started, 2)
        facts = {"spans": self.seen, "began_at": self.began_at}
        return Attempt(fate, self.stage, met, moment or {}, seconds, killed, **facts)

    def _read(self) -> None:
        *lines, self.rest = (self.rest + self.handle.read()).split("\n")
        for line in lines:
            stage, up_to_date = self._told(line)
            if stage is not None:
                self._enter(stage)
            if up_to_date and self.moment is not None and self.targets[0].stage == self.stage:
                self.targets.pop(0)
                self.moment = None

    def _told(self, line: str) -> tuple[str | None, bool]:
        """Which stage starts by this line, if any, and whether the stage at work has nothing to do."""
        if self.story.driver == "dvc":
            found = re.match(r"(?:Running stage|Stage) '(\w+)'(:| didn't)", line)
            return (found[1], found[2] != ":") if found else (None, False)
        if line.strip() in ("up to date", "restored"):
            return None, True
        if line.strip() == "ran" and self.stage == self.order[-2]:
            return "end", False
        word = line.split(" ")[0]
        return (word, False) if word in STAGES and STAGES[word].says in line else (None, False)

    def _close(self) -> None:
        now = time.monotonic()
        self.seen[self.stage] = now - self.since
        self.since = now

    def _enter(self, stage: str) -> None:
        if stage != self.stage:
            self._close()
        self.stage = stage
        place = self.order.index(stage)
        if self.moment is not None:
            return  # the last stage was quicker than its moment: it comes in this one
        while self.targets and self.order.index(self.targets[0].stage) < place:
            if self.targets[0].kind == "point":
                break  # not met where it was awaited: somewhere in this stage, then
            self.targets.pop(0)
        if not self.targets:
            return
        target = self.targets[0]
        due = target.stage == stage and target.kind == "time"
        if due or self.order.index(target.stage) < place:
            self.moment = time.monotonic() + target.share * self.spans.get(stage, 5.0)


def draw_targets(
    dice: random.Random, driver: str, seen: Callable[[str], list[dict[str, Any]]] | None
) -> list[Target]:
    """The deaths of one story: one or two in every stage, one more in `distill`, some before and after all.

    Args:
        dice: decides.
        driver: of the story.
        seen: the events of a stage in the reference; None: no exact points.
    """
    drawn: list[Target] = []
    for stage in ("start", *stages_of(driver), "end"):
        number = dice.choice((1, 2)) if stage in STAGES else dice.choice((0, 0, 1))
        number += stage == "distill"  # the longest one, and the one with a store
        for _ in range(number):
            events = seen(stage) if seen is not None and dice.random() < 0.6 else []
            loses = stage == "distill" and dice.random() < 0.5
            if not events:
                drawn.append(Target(stage, "time", dice.uniform(0, 0.9), loses=loses))
                continue
            # Every kind of event and of place has its turn, however many files there are.
            kinds = sorted({event["event"] for event in events})
            kind = dice.choices(kinds, [WEIGHTS.get(kind, 1) for kind in kinds])[0]
            places = [event["place"] for event in events if event["event"] == kind]
            place = dice.choice(sorted(set(places)))
            point = {"event": kind, "place": place, "nth": dice.randint(1, places.count(place))}
            point["when"] = dice.choice(("before", "after"))
            drawn.append(Target(stage, "point", dice.uniform(0, 0.9), point, loses))
    return drawn


def save_targets(path: Path, targets: list[Target]) -> None:
    """What is still to come."""
    write_json(path, [asdict(target) for target in targets])
