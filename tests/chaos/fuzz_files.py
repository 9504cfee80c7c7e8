"""Fed anything: fuzzed files through `prepare` and `vdmini fvd`, and an account of what became of each.

`python -m tests.chaos.fuzz_files --files 1000 --seed 7 --state .vdmini/chaos --out FILE.json`; stopped, it
goes on with the next folder. Every folder holds whole videos among the spoilt ones. A row of the table is one
thing that was done to files; `crashed`, `hung`, `forgotten` and `wrong` have to be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.corpus import Specimen, closed, plant
from tests.chaos.media import Media, clip, make_media
from tests.chaos.privileges import bound_by_permissions, why_not_bound
from vdmini_core.artifacts import code_version
from vdmini_core.data.discovery import VIDEO_SUFFIXES
from vdmini_core.data.video import write_mp4

FILES, BATCH = 20, 10  # specimens of a folder; folders a process takes one after the other
FOLDER_S = 1800.0  # a folder that takes longer hangs: a file may cost 60 s in `prepare` and 120 s in `fvd`
PARENT_MIB, DECODER_MIB = 1536, 4096  # resident memory that must not be passed
COLUMNS = ("count", "accepted", "rejected", "crashed", "hung", "forgotten", "wrong")
CLOSED = "closed"  # the folder of files without permission
Row = dict[str, Any]


@dataclass(frozen=True)
class Fuzz:
    """One corpus on its way: its seed, how many files, where it keeps its state."""

    seed: int
    files: int
    state: Path

    @property
    def folder(self) -> Path:
        """State of this corpus and this code alone: what other code did with a file says nothing here."""
        return self.state / f"fuzz-files-{self.seed}-{self.files}-{code_version()['digest'][:8]}"

    def sizes(self) -> dict[str, int]:
        """Specimens by the name of their folder."""
        whole, rest = divmod(self.files, FILES)
        sizes = [FILES] * whole + ([rest] if rest else [])
        return {f"{index:04}": size for index, size in enumerate(sizes)}

    def run(self, media: Media) -> None:
        """Everything that has no result yet."""
        self._real()
        every = [*self.sizes(), *([] if why_not_bound() else [CLOSED])]
        names = [name for name in every if not self._result(name).is_file()]
        for begin in range(0, len(names), BATCH):
            self._batch(names[begin : begin + BATCH], media)

    def results(self) -> dict[str, dict[str, Any]]:
        """What is known of each folder."""
        names = [*self.sizes(), CLOSED]
        return {
            name: json.loads(self._result(name).read_text()) for name in names if self._result(name).is_file()
        }

    def _result(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _real(self) -> Path:
        real = self.folder / "real"
        if not real.is_dir():
            partial = self.folder / f"real.{os.getpid()}"
            partial.mkdir(parents=True)
            for number in range(4):
                write_mp4(partial / f"{number}.mp4", clip(2**40 + 4 * self.seed + number), 8)
            partial.rename(real)
        return real

    def _batch(self, names: list[str], media: Media) -> None:
        waiting = []
        for name in names:
            place = self.folder / f"{name}.files"
            _remove(place)
            place.mkdir(parents=True)
            folder, outside = place / "videos", place / "outside"
            if name == CLOSED:
                planted = closed(folder, outside, media, random.Random(f"{self.seed}/closed"))
            else:
                planted = plant(folder, outside, media, self.seed, int(name), self.sizes()[name])
            paths = {"folder": folder, "scratch": place, "real": self._real()}
            job = place / "job.json"
            job.write_text(json.dumps({key: str(path.resolve()) for key, path in paths.items()}))
            waiting.append((name, place, planted))
        while waiting:
            done, ended = self._process(waiting)
            for name, place, planted in waiting[:done]:
                self._keep(name, place, planted, json.loads((place / "job.result.json").read_text()))
            if ended:
                name, place, planted = waiting[done]
                self._keep(name, place, planted, {step: {"outcome": ended} for step in ("prepare", "fvd")})
            waiting = waiting[done + bool(ended) :]

    def _process(self, waiting: list[tuple[str, Path, list[Specimen]]]) -> tuple[int, str]:
        """Folders done by one process in their order, and how the next one ended it, if one did."""
        places = [place for _, place, _ in waiting]
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.chaos.fuzz_worker",
                    *(str(place / "job.json") for place in places),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=bound_by_permissions,
            )
        done, since = 0, time.monotonic()
        try:
            while process.poll() is None:
                if (places[done] / "job.result.json").is_file():
                    done, since = done + 1, time.monotonic()
                    if done == len(places):
                        process.wait(60)
                        return done, ""
                elif time.monotonic() - since > FOLDER_S:
                    return done, "hung"
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        done = sum((place / "job.result.json").is_file() for place in places)
        return done, "crashed" if done < len(places) else ""

    def _keep(self, name: str, place: Path, planted: list[Specimen], found: dict[str, Any]) -> None:
        there = _on_disk(place / "videos")
        kept = {"planted": [asdict(item) for item in planted], "there": there, **found}
        temporary = self._result(name).with_suffix(".tmp")
        temporary.write_text(json.dumps(kept))
        temporary.replace(self._result(name))
        _remove(place)


def _on_disk(folder: Path) -> list[str]:
    """Everything but folders below a folder, as the system sees it, by the names that `discovery` gives."""
    found = subprocess.run(
        ["find", str(folder), "-mindepth", "1", "!", "-type", "d", "-printf", "%P\\0"],
        capture_output=True,
        check=True,
    )
    return sorted(name.decode("utf-8", "backslashreplace") for name in found.stdout.split(b"\0") if name)


def _remove(folder: Path) -> None:
    """Also where paths are longer than the system's limit, or shut."""
    if folder.is_dir():
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def fate_in_prepare(name: str, found: dict[str, Any]) -> tuple[str, str]:
    """What became of a file in `prepare`, and the reason."""
    if found["outcome"] != "done":
        return ("rejected" if found["outcome"] == "refused" else found["outcome"]), found.get("said", "")
    for known in (name, *_parents(name)):  # a folder that cannot be read stands for all that is in it
        if known in found["files"]:
            status, reason = found["files"][known]
            if status == "used":
                return "accepted", ""
            return ("rejected", reason) if reason else ("forgotten", "no reason")
    return "forgotten", "not in sources.json"


def fate_in_fvd(name: str, found: dict[str, Any]) -> tuple[str, str]:
    """What became of a file in `vdmini fvd`: what is neither used nor left out is no video by its name."""
    if found["outcome"] != "done":
        return ("rejected" if found["outcome"] == "refused" else found["outcome"]), found.get("said", "")
    for known in (name, *_parents(name)):
        if known in found["skipped"]:
            reason = found["skipped"][known]
            return ("rejected", reason) if reason else ("forgotten", "no reason")
    return ("accepted", "") if _is_video(name) else ("rejected", "not a video by its name")


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _is_video(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("._")


def _lost(there: list[str], result: dict[str, Any]) -> list[str]:
    """Files on disk that the account of `prepare` does not know, or that `fvd` neither used nor left out."""
    prepare, fvd = result["prepare"], result["fvd"]
    lost = [f"prepare: {name}" for name in there if fate_in_prepare(name, prepare)[0] == "forgotten"]
    if fvd["outcome"] == "done":
        used = sum(fate_in_fvd(name, fvd)[0] == "accepted" for name in there)
        if used != fvd["used"]:
            lost.append(f"fvd: {used} files are not left out, {fvd['used']} clips were used")
    return lost


def table(results: dict[str, dict[str, Any]]) -> tuple[list[Row], dict[str, Any]]:
    """Rows by command and kind, and the totals with what is worth a look."""
    counts: dict[str, Counter[str]] = {}
    noticed: list[str] = []
    slow = 0
    peaks: Counter[str] = Counter()
    for folder, result in results.items():
        fates = (("prepare", fate_in_prepare), ("fvd", fate_in_fvd))
        for item in result["planted"]:
            for step, fate_of in fates:
                fate, why = fate_of(item["name"], result[step])
                row = counts.setdefault(f"{step}: {item['kind']}", Counter())
                row.update(count=1)
                row.update({fate: 1})
                slow += "took longer" in why
                # The same bytes twice are one video to `prepare`; `fvd` takes a folder as it is.
                expected = {"use": "accepted", "refuse": "rejected"}.get(item["expect"], fate)
                if fate in ("crashed", "hung", "forgotten") or fate != expected:
                    noticed.append(f"{folder} {step} {item['name']!r} ({item['kind']}): {fate} {_last(why)}")
                    row.update(wrong=int(fate in ("accepted", "rejected")))
        for lost in _lost(result["there"], result):
            noticed.append(f"{folder} {lost}")
            counts.setdefault(f"{lost.split(':')[0]}: whole", Counter()).update(forgotten=1)
        for who, mib in result.get("rss_mib", {}).items():
            peaks[who] = max(peaks[who], mib)
    rows = [{"kind": kind, **{column: row[column] for column in COLUMNS}} for kind, row in counts.items()]
    totals: dict[str, Any] = {column: sum(row[column] for row in rows) for column in COLUMNS}
    files = sum(len(result["planted"]) for result in results.values())
    totals |= {"files": files, "files_on_disk": sum(len(r["there"]) for r in results.values())}
    totals |= {"stopped_for_time": slow, "peak_mib": dict(peaks), "noticed": noticed}
    return rows, totals


def _last(why: str) -> str:
    """The line of a traceback that says what it is; a reason is one line as it is."""
    return why.strip().split("\n")[-1][:300]


def document(fuzz: Fuzz, media: Media) -> dict[str, Any]:
    """The whole result as it is committed."""
    rows, totals = table(fuzz.results())
    absent = dict(media.absent)
    if why := why_not_bound():
        absent["files without permission"] = why
    return {
        "section": "Fed any files",
        "order": 3,
        "about": "Drawn from a seed, through `prepare` and `vdmini fvd`: each is taken or refused in words.",
        "command": "make chaos",
        "seed": fuzz.seed,
        "code": code_version()["digest"][:12],
        "rows": rows,
        "totals": totals,
        "absent": absent,
    }


def faults(totals: dict[str, Any]) -> list[str]:
    """Why a result is not what was promised."""
    found = [f"{totals[name]} {name}" for name in ("crashed", "hung", "forgotten", "wrong") if totals[name]]
    for who, bound in (("self", PARENT_MIB), ("decoders", DECODER_MIB)):
        if totals["peak_mib"].get(who, 0) > bound:
            found.append(f"{totals['peak_mib'][who]} MiB resident ({who}), above {bound}")
    return found


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", type=Path, default=Path(".vdmini/chaos"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    fuzz = Fuzz(options.seed, options.files, options.state.resolve())
    fuzz.folder.mkdir(parents=True, exist_ok=True)
    media = make_media(fuzz.folder / "media", options.seed)
    shutil.rmtree(fuzz.folder / "media")
    fuzz.run(media)
    found = document(fuzz, media)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2, ensure_ascii=True) + "\n")
    for line in (*found["totals"]["noticed"], *faults(found["totals"])):
        print(line)
    return bool(faults(found["totals"]))


if __name__ == "__main__":
    sys.exit(main())
