"""Stage outputs: whole or not at all, each with a manifest that says what made it.

Law 2 of the house: an output directory is written to a temporary sibling and renamed when complete.
What varies from run to run (times, run ids, hosts) goes to `run.json` and `timing.json`, which stay
outside every hash.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import vdmini_core
from vdmini_core.errors import VDMiniError
from vdmini_core.foreign import parse_json, read_bounded

MANIFEST = "manifest.json"
VOLATILE = frozenset({"run.json", "timing.json"})
KEY_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "decord", "av")


def cache_folder() -> Path:
    """`VDMINI_CACHE`, else `vdmini` in the user's cache folder."""
    given = os.environ.get("VDMINI_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "vdmini"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tree_digests(root: Path) -> dict[str, str]:
    """Relative POSIX path -> sha256 of every file below `root`, volatile files and the manifest apart."""
    return {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in VOLATILE and path.name != MANIFEST
    }


def digest_of(data: Any) -> str:
    """Hex sha256 of JSON-able data, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tree_digest(root: Path) -> str:
    """One sha256 for a whole directory."""
    return digest_of(tree_digests(root))


def write_json(path: Path, data: Any) -> None:
    """Write stable, readable JSON (sorted keys, no NaN) whole or not at all."""
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        VDMiniError: when the file is missing or not JSON.
    """
    try:
        return parse_json(read_bounded(path, None))
    except FileNotFoundError:
        raise VDMiniError(
            f"{path} is missing",
            expected="the output of an earlier stage",
            fix="run `vdmini run`, which makes what is missing",
        ) from None
    except ValueError as error:
        raise VDMiniError(
            f"{path} is not JSON", found=str(error), fix="delete it and run its stage again"
        ) from None


@functools.cache
def code_version() -> dict[str, str]:
    """Package version and a digest of the sources of the core and, where installed, the stages."""
    digest = hashlib.sha256()
    core = Path(vdmini_core.__file__).parent
    for package in (core, core.parent / "tasks"):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(core.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return {"version": vdmini_core.__version__, "digest": digest.hexdigest()}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in KEY_LIBRARIES}


def write_manifest(
    out: Path,
    *,
    stage: str,
    inputs: Mapping[str, str],
    params: Mapping[str, Any],
    seed: int,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `manifest.json` for the finished contents of `out` and return it."""
    manifest = {
        "stage": stage,
        "inputs": dict(inputs),
        "params": dict(params),
        "seed": seed,
        "code": code_version(),
        "libraries": library_versions(),
        "metrics": dict(metrics),
        "outputs": tree_digests(out),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


@contextmanager
def staged_output(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; on success it takes `final`'s place in one rename.

    On an error nothing at `final` changes and the temporary directory is removed. Left-overs of a
    killed run are cleared by the next one.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(final)
    temporary = final.parent / f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        _swap(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, final: Path) -> None:
    retired = final.parent / f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.old"
    if final.exists():
        final.rename(retired)
    temporary.rename(final)
    shutil.rmtree(retired, ignore_errors=True)


def clear_leftovers(final: Path) -> None:
    """Remove temporary siblings of `final` whose process is gone."""
    for pattern in (f".{final.name}.*.tmp", f".{final.name}.*.old"):
        for path in final.parent.glob(pattern):
            owner = path.name.removeprefix(f".{final.name}.").split("-", 1)[0]
            if not (owner.isdigit() and int(owner) != os.getpid() and _may_own(int(owner), path)):
                shutil.rmtree(path, ignore_errors=True)


def _may_own(number: int, folder: Path) -> bool:
    """Whether the process of that number was there when something was last put into the folder.

    In a container the same few numbers come again after every start.
    """
    try:
        started = psutil.Process(number).create_time()
        return started < folder.stat().st_mtime + 2.0  # that start is derived from a clock that is set
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def is_safetensors(path: Path) -> bool:
    """Whether a file says so itself: the length of a header, then the header, JSON. A name may lie.

    Its first bytes alone may be those of any other kind of file: they are a number.
    """
    with path.open("rb") as handle:
        length, first = int.from_bytes(handle.read(8), "little"), handle.read(1)
    return first == b"{" and length < path.stat().st_size


def unreadable(error: Exception) -> str:
    """What a reader of tensors found in a file it refused, one line.

    torch's first line tells to run what is in the file; the object it met stands further down.
    """
    text = str(error).strip()
    if met := re.search(r"GLOBAL (\S+)", text):
        return f"an object of `{met[1]}`"
    # An unpickler goes astray in bytes that are no pickle: what it then raises says nothing of the file.
    astray = (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        struct.error,
    )
    if text.startswith("Weights only load failed") or isinstance(error, astray):
        return "no checkpoint of torch, or one of other objects than tensors"
    return text.split("\n")[0] or type(error).__name__
