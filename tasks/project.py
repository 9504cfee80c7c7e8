"""Projects and workspaces: where `params.yaml` comes from and how it is changed in the open.

A parameter is changed by editing `params.yaml` (shown, undone with git) or by giving the run a named
workspace with a `params.yaml` of its own. Nothing overrides parameters behind DVC's back.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

import vdmini_core
from vdmini_core.artifacts import code_version
from vdmini_core.errors import ParamsError, VDMiniError
from vdmini_core.params import Params, known_keys, nearest_key, parse_params
from vdmini_core.yaml_text import parse_yaml, read_yaml_file

CODE_MARK = "vdmini-code.json"
# Paths outside the artifacts, which a workspace shares with the project it starts from ...
SHARED_PATHS = (
    "prepare.videos",
    "teacher.path",
    "teacher.start",
    "evaluate.fvd.weights",
    "evaluate.vbench.suite",
    "evaluate.vbench.images",
)
# ... but not what another tool found out about one project's own models.
OWN_PATHS = ("evaluate.vbench.results",)
_LAID_OUT = (
    "params.yaml",
    ".dvcignore",
    "profiles",
    "timing",
    "videos/README.md",
    "teachers/README.md",
    "teachers/start/README.md",
    "vbench/README.md",
)


def template_folder() -> Path:
    """Where the project files are: the checkout's root, or the copy inside an installed wheel.

    Raises:
        VDMiniError: for a broken installation.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent, package / "project_template"):
        if (folder / "dvc.yaml").is_file() and (folder / "profiles").is_dir():
            return folder
    raise VDMiniError("the package's project files are missing", fix="install vdmini again")


def lay_out(folder: Path, like: Path | None = None) -> None:
    """Write `dvc.yaml`, `params.yaml` and profiles into a new project or workspace folder.

    In the checkout the stages depend on the source folders; elsewhere on `vdmini-code.json`, which
    `refresh_code_mark` keeps in step with the installed package. A folder that an earlier call did not
    finish (there is no `.dvc` in it yet) is laid out again.

    Args:
        folder: where to.
        like: a project whose parameters the new one starts from; the defaults where None.

    Raises:
        VDMiniError: when the folder already holds a project.
    """
    if (folder / ".dvc").exists():
        raise VDMiniError(
            f"{folder} already holds a project", expected="a new or empty folder", fix="choose another name"
        )
    source = template_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LAID_OUT:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    text = (source / "dvc.yaml").read_text(encoding="utf-8")
    (folder / "dvc.yaml").write_text(_with_code_mark(text), encoding="utf-8")
    (folder / "params.yaml").write_text(dump_yaml(defaults_yaml(source)), encoding="utf-8")
    refresh_code_mark(folder)
    if like is not None:
        start_from(folder, like)


def start_from(folder: Path, like: Path) -> None:
    """Take over another project's parameters; its folders are named as seen from here."""
    document = defaults_yaml(folder)
    _overlay(document, json.loads(json.dumps(read_yaml(like / "params.yaml"), default=str)))
    flat, defaults = _flat(document), _flat(defaults_yaml(folder))
    for key in SHARED_PATHS:
        # Weights may be an address or a name on the hub instead.
        if (
            flat[key] is not None
            and "://" not in flat[key]
            and (key != "evaluate.fvd.weights" or (like / flat[key]).exists())
        ):
            _assign(document, key, _relative(like / Path(flat[key]).expanduser(), folder))
    for key in OWN_PATHS:
        _assign(document, key, defaults[key])
    lists = [_relative(like / Path(path).expanduser(), folder) for path in flat["prepare.additions"]]
    _assign(document, "prepare.additions", lists)
    parse_params(json.loads(json.dumps(document)), f"{like.name}/params.yaml")
    (folder / "params.yaml").write_text(dump_yaml(document), encoding="utf-8")


def _with_code_mark(dvc_yaml: str) -> str:
    # Several source folders of one stage become one mark.
    lines: list[str] = []
    for line in dvc_yaml.splitlines():
        if re.match(r"\s+- (vdmini_core|tasks)/", line):
            line = re.sub(r"- .*", f"- {CODE_MARK}", line)
            if lines and lines[-1] == line:
                continue
        lines.append(line)
    return "\n".join(lines) + "\n"


def refresh_code_mark(root: Path) -> None:
    """Write the installed package's version and digest where the project depends on them."""
    dvc_yaml = root / "dvc.yaml"
    if not dvc_yaml.is_file() or CODE_MARK not in dvc_yaml.read_text(encoding="utf-8"):
        return
    text = json.dumps(code_version(), indent=2, sort_keys=True) + "\n"
    mark = root / CODE_MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8") != text:
        mark.write_text(text, encoding="utf-8")


def workspace_folder(root: Path, name: str) -> Path:
    """Folder of a named workspace.

    Raises:
        VDMiniError: for a name that is no plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise VDMiniError(
            f"workspace name {name!r} cannot be used",
            expected="letters, digits, '.', '_' and '-', at most 64",
        )
    return root / "workspaces" / name


def read_yaml(path: Path, yaml: YAML | None = None) -> Any:
    """A YAML file's content, `{}` for an empty one.

    Raises:
        ParamsError: when it is not YAML.
    """
    data = read_yaml_file(path, yaml)
    return {} if data is None else data


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def dump_yaml(data: Any) -> str:
    """Round-trip YAML text; comments survive."""
    buffer = io.StringIO()
    _yaml().dump(data, buffer)
    return buffer.getvalue()


def defaults_yaml(folder: Path) -> Any:
    """The default `params.yaml` with its comments: values from the typed defaults, layout from the file."""
    document = _yaml().load((folder / "params.yaml").read_text(encoding="utf-8"))
    _overlay(document, Params().model_dump(mode="json", by_alias=True))
    return document


def _overlay(document: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            _overlay(document[key], value)
        elif document.get(key) != value:
            document[key] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """`section.key=value` -> dotted key and YAML value.

    Raises:
        ParamsError: for text without `=`, an unknown key (naming the nearest), or a value that is not YAML.
    """
    key, separator, raw = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ParamsError(f"`--set {text}` cannot be read", expected="--set section.key=value")
    if key not in known_keys():
        near = nearest_key(key)
        raise ParamsError(
            f"unknown key `{key}`" + (f": did you mean `{near}`?" if near else ""),
            expected="a key of params.yaml",
        )
    return key, parse_yaml(raw, f"the value of `{key}`") if raw.strip() else None


def profile_values(root: Path, name: str) -> dict[str, Any]:
    """Overrides of a profile, from the project's `profiles/` or the package's.

    Raises:
        ParamsError: for an unknown profile (the known ones are listed).
    """
    folders = [root / "profiles", template_folder() / "profiles"]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if re.fullmatch(r"[A-Za-z0-9._-]+", name) and path.is_file():
            values = read_yaml(path)
            if isinstance(values, dict):
                return values
            raise ParamsError(f"profile {name} holds no parameters", expected="a mapping of sections")
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    raise ParamsError(f"there is no profile `{name}`", expected=", ".join(known), found=name)


def change_params(
    root: Path,
    *,
    profile: str | None = None,
    videos: Path | str | None = None,
    assignments: tuple[str, ...] = (),
) -> list[str]:
    """Edit `params.yaml` in the open: profile first, then videos, then single values.

    Returns:
        One line per changed key, `key: old -> new`.

    Raises:
        ParamsError: before anything is written, when the result would not be valid.
    """
    path = root / "params.yaml"
    document, changes, _ = _changed(root, profile, videos, assignments)
    for old in root.glob(".params.*.tmp"):  # of a killed process
        if not psutil.pid_exists(int(old.name.split(".")[2])):
            old.unlink(missing_ok=True)
    if changes:
        temporary = path.with_name(f".params.{os.getpid()}.tmp")
        temporary.write_text(dump_yaml(document), encoding="utf-8")
        temporary.replace(path)
    return changes


def preview_params(
    root: Path,
    *,
    profile: str | None = None,
    videos: Path | str | None = None,
    assignments: tuple[str, ...] = (),
) -> Params:
    """What `change_params` would give, with nothing written.

    Raises:
        ParamsError: when it would not be valid.
    """
    return _changed(root, profile, videos, assignments)[2]


def _changed(
    root: Path, profile: str | None, videos: Path | str | None, assignments: tuple[str, ...]
) -> tuple[Any, list[str], Params]:
    path = root / "params.yaml"
    plain = read_yaml(path) if path.is_file() else None
    document = read_yaml(path, _yaml()) if path.is_file() else None
    if not isinstance(plain, dict) or not isinstance(document, dict):
        raise ParamsError("there is no params.yaml here", fix="`vdmini init DIR` lays out a project")
    _overlay(
        document, plain
    )  # the reader that keeps comments keeps tags, too, and what they mean is in `plain`
    for name, section in document.items():
        if section is None:
            document[name] = {}
    before = _flat(document)
    if profile is not None:
        _overlay(document, Params().model_dump(mode="json", by_alias=True))
        _overlay_known(document, profile_values(root, profile), f"profile {profile}")
    if videos is not None:
        _assign(document, "prepare.source", "folder")
        place = str(videos) if "://" in str(videos) else _relative(Path(videos), root)
        _assign(document, "prepare.videos", place)
    for text in assignments:
        key, value = parse_assignment(text)
        if key in SHARED_PATHS + OWN_PATHS and isinstance(value, str) and Path(value).expanduser().exists():
            value = _relative(Path(value).expanduser(), root)  # as typed: against where the user stands
        _assign(document, key, value)
    params = parse_params(json.loads(json.dumps(document, default=str)), "params.yaml with these changes")
    after = _flat(document)
    changes = [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in after if before.get(k) != after.get(k)]
    return document, changes, params


def _overlay_known(document: Any, values: dict[str, Any], origin: str) -> None:
    parse_params(values | {}, origin)
    _overlay(document, values)


def _assign(document: Any, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[last] = value


def _relative(path: Path, root: Path) -> str:
    # Relative where both lie in one tree, so that a moved checkout keeps working.
    return os.path.relpath(path.resolve(), root.resolve())


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        below = isinstance(value, dict) and value  # an empty mapping is a value: `--set register.tags={}`
        flat |= _flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def package_version() -> str:
    """The installed version."""
    return vdmini_core.__version__
