"""DVC decides what is stale; this is how the flow and the command line ask it, run, and record.

`dvc repro` mirrors: is the stage current? can its outputs come back from the cache? else run it, then
save hashes to `dvc.lock` and outputs to the cache. The same steps through DVC's own objects, with the
stage run in this process, so that the flow pays for imports once and keeps its Prefect task around it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.stage.cache import RunCacheNotFoundError

from tasks.mending import mend
from vdmini_core.errors import VDMiniError
from vdmini_core.storage_errors import storage_error


class ProjectBusy(VDMiniError):
    """Another process of DVC works in this project right now."""


class Versions:
    """The DVC view of one project folder (the checkout's root or a workspace in it)."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        logging.getLogger("dvc").setLevel(logging.ERROR)
        with told_plainly("open the DVC repository"):
            self.repo = Repo(str(self.root))
            for line in mend(self.repo):
                sys.stderr.write(f"{line}\n")

    def is_current(self, stage: str) -> bool:
        """True where dependencies, parameters, command and outputs are as `dvc.lock` recorded them."""
        with self._at_home(f"check `{stage}`"), self.repo.lock:
            return not self._load(stage).changed()

    def restore(self, stage: str) -> bool:
        """Bring outputs made earlier from the very same inputs back from the cache; False if unknown."""
        with self._at_home(f"restore `{stage}`"), self.repo.lock:
            item = self._load(stage)
            try:
                self.repo.stage_cache.restore(item)
            except (RunCacheNotFoundError, FileNotFoundError):
                return False  # never made from these inputs, or an input is not there
            except TypeError:
                return False  # DVC stumbles over an empty folder in its run cache, as a kill leaves it
            item.save()
            item.commit()
            item.dump(update_pipeline=False)
            return True

    def record(self, stage: str) -> None:
        """Save the stage's hashes to `dvc.lock` and its outputs to the cache.

        The outputs stay the files they are, unless links are asked for (`dvc config cache.type`): DVC would
        remove each and copy it anew from the cache, and on a disk that fills up then they would be gone.
        """
        linked = "type" in self.repo.config["cache"]
        with self._at_home(f"record `{stage}`"):
            self.repo.commit(str(self.root / "dvc.yaml") + f":{stage}", force=True, relink=linked)

    @contextmanager
    def holding(self, stage: str) -> Iterator[None]:
        """Have a stage's files to ourselves, as DVC's commands do: `dvc repro` would remove the outputs.

        Raises:
            ProjectBusy: where another process of DVC works on them.
        """
        with told_plainly(f"work on `{stage}`"), self.repo.lock:
            item = self._load(stage)
            read, write = ([each.fs_path for each in paths] for paths in (item.deps, item.outs))
        hardlink = self.repo.config["core"].get("hardlink_lock", False)
        with ExitStack() as held:
            with told_plainly(f"work on `{stage}`"):
                held.enter_context(
                    rwlock(self.repo.tmp_dir, self.repo.fs, " ".join(sys.argv), read, write, hardlink)
                )
            yield

    @contextmanager
    def _at_home(self, doing: str) -> Iterator[None]:
        # DVC's run cache reads "dvc.yaml" against the current directory, wherever the repository is.
        with chdir(self.root), told_plainly(doing):
            yield

    def _load(self, stage: str) -> Any:
        self.repo._reset()  # files changed since the last look: DVC caches its graph
        return self.repo.stage.load_one(str(self.root / "dvc.yaml"), stage)


@contextmanager
def told_plainly(doing: str) -> Iterator[None]:
    """DVC's errors in our words; `doing` completes "DVC could not"."""
    try:
        yield
    except LockError as error:
        raise ProjectBusy(
            f"cannot {doing}: another DVC process holds this project",
            found=str(error).splitlines()[0],
            fix="wait until it ends, then run again",
        ) from None
    except (DvcException, OSError, UnicodeError) as error:
        if plain := storage_error(error):
            raise plain from None
        told = ": ".join(str(each) for each in (error, error.__cause__) if each)
        raise VDMiniError(
            f"DVC could not {doing}", found=told, fix="`dvc status` and `vdmini doctor` say more"
        ) from None


def init_repository(root: Path, shared_cache: Path | None = None) -> None:
    """Make `root` a DVC repository of its own, outside git where it is a workspace or git is absent.

    Args:
        root: folder with `dvc.yaml`.
        shared_cache: cache of the project a workspace belongs to, so that equal stages are run once.
    """
    for old in root.glob(".dvc.*.tmp"):  # of killed processes
        if not psutil.pid_exists(int(old.name.split(".")[2])):
            shutil.rmtree(old, ignore_errors=True)
    if (root / ".dvc").is_dir():
        return
    with_git = shared_cache is None and (root / ".git").exists()
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it logs to standard output, which is for `--json`
    with told_plainly("lay out the DVC repository"):
        if with_git:
            configure(Repo.init(str(root)), shared_cache)
            return
        # Beside its place: half a `.dvc`, left by a kill, would be taken for a whole one.
        temporary = root / f".dvc.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            configure(Repo.init(str(temporary), no_scm=True), shared_cache)
            (temporary / ".dvc").rename(root / ".dvc")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def configure(repo: Repo, shared_cache: Path | None) -> None:
    """Settings of a new repository: nothing is reported; the cache is another project's where named."""
    with repo.config.edit() as config:
        config["core"]["analytics"] = False
        if shared_cache is not None:
            config["cache"]["dir"] = str(shared_cache.resolve())
    repo.close()
