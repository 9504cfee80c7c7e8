"""What a story leaves behind: every byte, every file, every version, every lock."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.mending import COPYING_S
from tasks.recovery_checkpoints import COMPLETE
from tasks.recovery_mirror import KEPT
from tasks.stage import REPRODUCIBLE, STAGES
from tests.chaos.story import Story
from tests.flows.test_compress import hashes
from vdmini_core.artifacts import MANIFEST, read_json, tree_digests
from vdmini_core.errors import VDMiniError

# Kinds of problems: columns of the result table.
KINDS = ("lost", "corrupted", "hung", "refused", "stray", "half-registered", "locked")
# Not compared by name: numbers and digests of runs; looked through by kind instead.
_OWN_NAMES = ("mlruns", ".dvc/cache", ".dvc/tmp", ".vdmini/timing", ".vdmini/executions")
_TEMPORARY = re.compile(r"\.tmp$|\.old$|^tmp|\.part$|~$|\.unlinked$")


def torn(root: Path) -> list[str]:
    """Stages whose outputs are there, but not as their manifest says."""
    found = []
    for stage in STAGES:
        folder = root / "artifacts" / stage
        if folder.is_dir():
            try:
                whole = tree_digests(folder) == read_json(folder / MANIFEST)["outputs"]
            except VDMiniError:
                whole = False
            if not whole:
                found.append(stage)
    return found


def problems_of(story: Story, reference: Path, model: str = "vdmini-nano") -> list[dict[str, str]]:
    """Look at a finished story from all sides; the driver's last word included.

    Args:
        story: that was told to its end.
        reference: project of a run that nothing happened to.
        model: registered by the story.
    """
    _age(story.root)
    try:
        found = [{"kind": kind, "what": what} for kind, what in _told_by_the_flow(story)]
    except subprocess.TimeoutExpired as error:
        return [{"kind": "hung", "what": str(error)}]
    story.wait_for_their_end()  # files of a process that is just ending go with it
    root, left = story.root, story.left()
    checks = [_outputs(root, reference), _strays(story, reference), _registry(root, model), _cache(root)]
    if story.store is not None:
        checks.append(_checkpoints(story.stored))
    found += [{"kind": kind, "what": what} for check in checks for kind, what in check]
    if left:
        found.append({"kind": "hung", "what": f"{len(left)} processes are still there"})
    return found


def _age(root: Path) -> None:
    """Let time pass: what somebody might still be at is left alone by one run, and swept by later ones."""
    long_ago = time.time() - 2 * COPYING_S
    for folder in _OWN_NAMES:
        for path in (root / folder).rglob("*"):
            if _TEMPORARY.search(path.name) and path.is_file():
                os.utime(path, (long_ago, long_ago))


def _told_by_the_flow(story: Story) -> Iterator[tuple[str, str]]:
    """`vdmini run` finds everything up to date, and `dvc status` nothing to do."""
    done = story.command(str(Path(sys.executable).with_name("vdmini")), "run", "--json")
    if done.returncode != 0:
        yield "refused", f"vdmini run: {done.stderr[-500:]}"
        return
    rows = json.loads(done.stdout)["stages"]
    own = REPRODUCIBLE if story.driver == "dvc" else tuple(STAGES)
    again = [row["stage"] for row in rows if row["stage"] in own and row["fate"] != "up to date"]
    if again:
        yield "lost", f"made again although finished: {', '.join(again)}"
    status = story.command(str(Path(sys.executable).with_name("dvc")), "status", "--json")
    if status.returncode != 0 or json.loads(status.stdout) != {}:
        yield "lost", f"dvc status: {(status.stdout + status.stderr)[-300:]}"


def _outputs(root: Path, reference: Path) -> Iterator[tuple[str, str]]:
    try:
        mine, right = hashes(root), hashes(reference)
    except VDMiniError as error:
        yield "lost", str(error)
        return
    for name in sorted(right.keys() | mine.keys()):
        if mine.get(name) != right.get(name):
            yield "lost" if name not in mine else "corrupted", name
    for stage in torn(root):
        yield "corrupted", f"artifacts/{stage} is not as its manifest says"


def names(root: Path) -> set[str]:
    """Every file and empty folder of a project but those that are named anew in every run."""
    found = set()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if (path.is_file() or not any(path.iterdir())) and not name.startswith(_OWN_NAMES):
            found.add(name)
    return found


def _strays(story: Story, reference: Path) -> Iterator[tuple[str, str]]:
    for name in sorted(names(story.root) - names(reference)):
        yield "stray", name
    for folder in _OWN_NAMES:
        for path in sorted((story.root / folder).rglob("*")):
            if _TEMPORARY.search(path.name) and path.name != "tmp":
                yield "stray", path.relative_to(story.root).as_posix()
    note = reference.parent / "temporary"
    usual = {path.name for path in Path(note.read_text()).iterdir()} if note.is_file() else set()
    for path in sorted(story.temporary.iterdir()):
        if (
            not path.name.startswith(("ray", "torchinductor")) and path.name not in usual
        ):  # its logs, and caches of libraries, stay after every end
            yield "stray", f"$TMPDIR/{re.sub(r'[0-9a-z_]{8}$', '*', path.name)}"


def _cache(root: Path) -> Iterator[tuple[str, str]]:
    """Every file of DVC's cache has the bytes of its name."""
    for path in (root / ".dvc" / "cache" / "files" / "md5").glob("??/*"):
        if _TEMPORARY.search(path.name):
            continue  # half a copy under a name of its own, which no key leads to: a stray
        name = (path.parent.name + path.name).removesuffix(".dir")
        if hashlib.md5(path.read_bytes()).hexdigest() != name:
            yield "corrupted", path.relative_to(root).as_posix()
    locks = root / ".dvc" / "tmp" / "rwlock"
    if locks.is_file() and any(json.loads(locks.read_text() or "null").values()):
        yield "locked", ".dvc/tmp/rwlock"


def _checkpoints(kept: Path) -> Iterator[tuple[str, str]]:
    """In the store lie the newest ones, each of them whole, of one recovery."""
    found = sorted(kept.glob("*/*"))
    if not found:
        yield "lost", "no checkpoint in S3"
    if len(found) > KEPT or len({folder.parent for folder in found}) > 1:
        yield "stray", f"S3 has {[folder.relative_to(kept).as_posix() for folder in found]}"
    for folder in found:
        if not (folder / COMPLETE).is_file():
            yield "stray", f"{folder.relative_to(kept)} is torn in S3"


def _registry(root: Path, model: str) -> Iterator[tuple[str, str]]:
    """One whole version, its aliases where they belong, no open run, nobody in the queue."""
    base = sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True)
    base.row_factory = sqlite3.Row

    def rows(question: str, *given: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in base.execute(question, given)]

    versions = rows("SELECT * FROM model_versions WHERE name = ?", model)
    if len(versions) != 1:
        yield "half-registered", f"{len(versions)} versions"
    for version in versions:
        if version["status"] != "READY":
            yield "half-registered", f"version {version['version']} is {version['status']}"
        tags = {row["key"] for row in rows("SELECT * FROM model_version_tags WHERE name = ?", model)}
        if missing := {"vdmini.student", "vdmini.evidence", "vdmini.checks", "vdmini.decision"} - tags:
            yield "half-registered", f"tags {sorted(missing)} are missing"
    named = rows("SELECT alias, version FROM registered_model_aliases WHERE name = ?", model)
    aliases = {row["alias"]: str(row["version"]) for row in named}
    promoted = read_json(root / "artifacts" / "promote" / "decision.json")["outcome"] == "promote"
    if aliases != {"candidate": "1", **({"champion": "1"} if promoted else {})}:
        yield "half-registered", f"aliases {aliases}"
    for row in rows("SELECT key FROM registered_model_tags WHERE key LIKE 'vdmini.turn.%'"):
        yield "locked", row["key"]
    for row in rows("SELECT name, status FROM runs WHERE status = 'RUNNING'"):
        yield "half-registered", f"run {row['name']} is still open"
    linked = {row["source"].removeprefix("models:/") for row in rows("SELECT source FROM model_versions")}
    for row in rows("SELECT model_id, status FROM logged_models WHERE lifecycle_stage = 'active'"):
        if row["status"] != 2 and row["status"] != "READY":
            yield "half-registered", f"a logged model is {row['status']}"
        elif row["model_id"] not in linked:
            yield "stray", "a logged model of no version"
    base.close()
