"""Checkpoints and pipeline directories of strangers: refused in our words, nothing run, nothing copied.

`tests/chaos/mutations.py` takes each guard out and sees the test of its name fail.
"""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_toys import INDEX, ONE, Malice, pipeline_folder, safetensors

from tasks.teacher import copy_pipeline
from vdmini_core.artifacts import read_json
from vdmini_core.bundled import bundled_teacher_path
from vdmini_core.convert.checkpoint import read_checkpoint
from vdmini_core.errors import DataError, ModelError, VDMiniError
from vdmini_core.foreign import JSON_BYTES, read_json_file
from vdmini_core.metrics.weights_source import load_state_dict
from vdmini_core.models.denoiser import load_denoiser
from vdmini_core.models.inspect import inspect_model
from vdmini_core.models.pipeline_dir import check_directory, read_config

ROOT = Path(__file__).resolve().parents[2]
READERS: tuple[Callable[[Path], Any], ...] = (read_checkpoint, load_state_dict)
KEY = "time_embed.0.weight"


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a payload that runs leaves its file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("form", ["zip", "bare", "named safetensors"])
def test_pickled_code_is_not_run(form: str, read: Callable[[Path], Any], canary: Path) -> None:
    path = Path("weights.safetensors" if form == "named safetensors" else "weights.ckpt")
    if form == "bare":
        path.write_bytes(pickle.dumps({KEY: Malice()}, protocol=2))
    else:
        torch.save({KEY: torch.ones(1), "callbacks": Malice()}, path)
    with pytest.raises(VDMiniError, match="cannot be read"):
        read(path)
    assert not canary.exists()
    path = path.rename("alive")  # torch goes by the name
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())
    assert canary.exists()  # the payload is alive


@pytest.mark.parametrize("read", READERS)
def test_packed_entries_are_not_unpacked(read: Callable[[Path], Any]) -> None:
    torch.save({KEY: torch.zeros(2**20)}, "plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert Path("w.pt").stat().st_size < 2**14
    with pytest.raises(ModelError, match="packed entries"):
        read(Path("w.pt"))


@pytest.mark.parametrize("read", READERS)
def test_tensors_larger_than_their_file_are_refused(read: Callable[[Path], Any]) -> None:
    torch.save({KEY: torch.ones(1).expand(2**40)}, "w.pt")
    with pytest.raises(ModelError, match="larger than the file"):
        read(Path("w.pt"))


@pytest.mark.parametrize("read", [*READERS, check_directory])
def test_a_header_that_fills_the_memory_is_refused(read: Callable[[Path], Any]) -> None:
    """17 MiB of blanks: the library reads such a header, up to 100 MB."""
    folder = pipeline_folder(Path("model"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    safetensors(path, json.dumps(ONE).encode() + b" " * (17 * 2**20), bytes(4))
    with pytest.raises(ModelError, match="its header is too large"):
        read(folder if read is check_directory else path)


BOMBS: dict[str, tuple[Any, bytes, int | None]] = {
    "length of 2^60": (ONE, bytes(4), 2**60),
    "shape of 2^80": ({"a": ONE["a"] | {"shape": [2**40, 2**40]}}, bytes(4), None),
    "overlap": ({"a": ONE["a"], "b": ONE["a"]}, bytes(4), None),
    "beyond the end": ({"a": ONE["a"] | {"data_offsets": [2**50, 2**50 + 4]}}, bytes(4), None),
    "depth": (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", b"", None),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_header_bombs_are_refused(bomb: str, read: Callable[[Path], Any]) -> None:
    header, body, length = BOMBS[bomb]
    with pytest.raises(VDMiniError, match="cannot be read"):
        read(safetensors(Path("w.safetensors"), header, body, length))


def index_with(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "model_index.json").write_text(json.dumps(INDEX | changes)) and None


def written(name: str, data: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(data)) and None


def padded(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text + " " * (JSON_BYTES + 1)) and None


def spoilt(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("{") and None


def beside(name: str, folder: Path) -> None:
    (folder / name).touch()


# They read no weights.
TABLES = ("Config.from_pretrained", "config_class.from_pretrained", "Tokenizer.from_pretrained")
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"
DIRECTORIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipeline class": (index_with(_class_name=["evil", "Pipeline"]), "class that is not supported"),
    "part's class": (index_with(unet=["os", "system"]), "foreign class"),
    "part's module": (index_with(scheduler=["evil", "Scheduler"]), "foreign class"),
    "another part": (index_with(safety_checker=["evil", "Checker"]), "a part that .* does not have"),
    "auto_map": (written("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}), "code or files"),
    "nested": (
        written("image_encoder/config.json", {"vision": [{"auto_map": {"AutoModel": "e--r.M"}}]}),
        "code or files",
    ),
    **{
        f"kernels by {key}": (written("image_encoder/config.json", {key: "evil/k:f"}), "code or files")
        for key in (
            *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
            "experts_implementation",
        )
    },
    "kernels of a part": (
        written("image_encoder/config.json", {"attn_implementation": {"": "evil/k:f"}}),
        "code or files",
    ),
    **{
        key: (written("image_encoder/config.json", {"deep": {key: "evil/k"}}), "code or files")
        for key in ("custom_pipeline", "custom_pipelines", "transformers_weights")
    },
    "words of a tokenizer": (
        written("feature_extractor/tokenizer_config.json", {"vocab": "/etc/passwd"}),
        "code or files",
    ),
    "quantised": (
        written("unet/config.json", {"quantization_config": {"quant_method": "x"}}),
        "code or files",
    ),
    "layers within lists": (
        written("unet/config.json", {"transformer_layers_per_block": [[[10**9]]]}),
        "more layers than",
    ),
    "layers of a part's part": (
        written("image_encoder/config.json", {"vision_config": {"num_hidden_layers": 10**9}}),
        "more layers than",
    ),
    "rows of a schedule": (
        written("scheduler/scheduler_config.json", {"num_train_timesteps": 10**8}),
        "more rows of a table than",
    ),
    "more than is looked through": (padded("unet/config.json", '"evil/model"'), "cannot be read"),
    "what no parser takes": (spoilt("unet/config.json"), "cannot be read"),
    "a repository for a config": (written("unet/config.json", "evil/model"), "is no config"),
    "code of a part": (lambda folder: (folder / "unet" / "diffusers.py").touch(), "holds code"),
    "layers": (written("unet/config.json", {"layers_per_block": 10**9}), "more layers than any model"),
    "layers of a block": (written("unet/config.json", {"layers_per_block": [2, 20_000]}), "more layers than"),
    "part of parts": (index_with(unet=[["a"], {}]), "foreign class"),
    "tokenizer": (
        written("feature_extractor/preprocessor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}}),
        "code or files",
    ),
    "adapter": (written("image_encoder/adapter_config.json", {"base_model_name_or_path": "e/x"}), "adapter"),
    "shard above": (written(SHARDS, {"weight_map": {"a": "../../w.safetensors"}}), "names files that are no"),
    "shard at root": (written(SHARDS, {"weight_map": {"a": "/w.safetensors"}}), "names files that are no"),
    "shard a pickle": (written(SHARDS, {"weight_map": {"a": "w.bin"}}), "names files that are no"),
    "shards of shards": (written(SHARDS, {"weight_map": [{}]}), "no index of weights"),
    "pickle beside": (lambda folder: (folder / "vae" / "x.bin").touch(), "pickled weights beside"),
    **{
        f"pickle {suffix}": (partial(beside, f"vae/x{suffix}"), "pickled weights beside")
        for suffix in (".ckpt", ".pt", ".pth", ".pkl", ".pickle")
    },
}


@pytest.mark.parametrize("attack", DIRECTORIES)
def test_a_pipeline_that_names_code_or_files_elsewhere_is_refused(attack: str, canary: Path) -> None:
    folder = pipeline_folder(Path("model"))
    for module in (folder / "evil.py", folder / "unet" / "evil.py", Path("evil.py")):
        module.write_text("import os; os.system('touch canary')")
    check_directory(folder)  # else it is the toy that is refused
    change, why = DIRECTORIES[attack]
    change(folder)
    with pytest.raises(ModelError, match=why):
        copy_pipeline(folder, Path("out"))
    assert not canary.exists() and not Path("out").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "unet/z_config.json", SHARDS])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_config_that_never_ends_is_refused(kind: str, name: str) -> None:
    folder = pipeline_folder(Path("model"))
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    for read in (read_json_file, read_json):
        with pytest.raises((ValueError, VDMiniError), match="no regular file"):
            read(folder / name)
    with pytest.raises(ModelError):
        if name != "unet/z_config.json":  # not one that `inspect` reads
            inspect_model(folder)
        check_directory(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet/config.json", {"num_attention_heads": 0}),
        ("unet/config.json", {"block_out_channels": "abcd"}),
        ("unet/config.json", {"block_out_channels": [32, 64], "layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": 20_000}),
        ("unet/config.json", {"sample_size": [8], "num_frames": "x"}),
        ("vae/config.json", {"block_out_channels": []}),
        ("vdmini.json", {"num_frames": 10**9}),
        ("vdmini.json", {"num_frames": 0}),
        ("vdmini.json", {"fps": math.nan}),
        ("vdmini.json", {"width": math.inf}),
        ("vdmini.json", {"height": True}),
    ],
    ids=lambda part: part if isinstance(part, str) else json.dumps(part),
)
def test_hostile_sizes_are_refused_in_words(name: str, changes: dict[str, Any]) -> None:
    shutil.copytree(bundled_teacher_path("mini"), "model")
    path = Path("model") / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError):
        inspect_model(Path("model"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"_class_name": "Evil"}, "class that is not supported"),
        ({"_class_name": "WanTransformer3DModel", "auto_map": {"AutoModel": "evil.M"}}, "code or files"),
    ],
)
def test_a_denoiser_that_names_code_is_refused(config: dict[str, Any], why: str) -> None:
    (folder := Path("unet")).mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors(folder / "diffusion_pytorch_model.safetensors", ONE, bytes(4))
    with pytest.raises(ModelError, match=why):
        load_denoiser(folder)


@pytest.mark.parametrize("link", ["unet/config.json", "vae"])
def test_links_out_of_a_pipeline_are_not_followed(link: str) -> None:
    """What they show would go into the teacher, the registry, and out of the house."""
    folder = pipeline_folder(Path("model"))
    (folder / link).rename("secret")
    (folder / link).symlink_to(Path("secret").resolve())
    with pytest.raises(ModelError, match="link that leads out"):
        copy_pipeline(folder, Path("out"))
    assert not Path("out").exists()


def test_the_hub_caches_own_links_are_followed_and_code_stays_behind() -> None:
    (snapshots := Path("models--a--b/snapshots")).mkdir(parents=True)
    folder = pipeline_folder(snapshots / ("0" * 40))
    (folder / "unet" / "evil.py").touch()
    (blobs := Path("models--a--b/blobs")).mkdir()
    (folder / "unet" / "config.json").rename(blobs / "1")
    (folder / "unet" / "config.json").symlink_to("../../../blobs/1")
    copy_pipeline(folder, Path("out"))
    made = {path.name for path in Path("out").rglob("*")}
    assert (Path("out") / "unet" / "config.json").read_text() == "{}" and "evil.py" not in made


@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b'{"a": ' + b"9" * 10**4 + b"}", b'{"a": "' + b" " * 65 * 2**20 + b'"}']
)
def test_a_config_that_no_reader_holds_is_refused(content: bytes) -> None:
    Path("config.json").write_bytes(content)
    with pytest.raises(ModelError, match="not JSON"):
        read_config(Path("config.json"))


def test_a_bundled_teacher_is_no_path() -> None:
    Path("model_index.json").write_text("{}")
    for name in ("..", "../../tests", "/", "."):
        with pytest.raises(ModelError, match="no such teacher"):
            bundled_teacher_path(name)


WORDS = re.compile(
    r"torch\.load|from_pretrained|eval\(|exec\(|os\.system|pyfunc\.load|shell|allow_pickle|trust_remote"
    r"|\b(pickle|dill|joblib|marshal|shelve)\b"
)


def product() -> Iterator[tuple[Path, ast.AST]]:
    """Those sources that hold a word of interest, parsed."""
    for package in ("vdmini_core", "tasks", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            if WORDS.search(re.sub(r"\.eval\(\)", "", text)):
                yield path, ast.parse(text)


def test_the_code_never_asks_a_library_to_run_what_it_reads() -> None:
    """No unpickling, no evaluating, no loading of an MLflow model's own code, safetensors alone."""
    wrong = []
    for path, tree in product():
        place = path.relative_to(ROOT).as_posix()
        called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                wrong += [f"{place}: {n}" for n in names & {"pickle", "dill", "joblib", "marshal", "shelve"}]
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load" and node not in called:
                wrong.append(f"{place}: torch.load handed on")
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                wrong += [f"{place}: torch.load by its name"] * ("load" in {a.name for a in node.names})
            if not isinstance(node, ast.Call):
                continue
            call, told = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            yes = {name for name, v in told.items() if isinstance(v, ast.Constant) and v.value is True}
            tables = call.endswith(TABLES)
            bad = (
                (call == "torch.load" and "weights_only" not in yes)
                or (call.endswith(".from_pretrained") and not tables and "use_safetensors" not in yes)
                or call in ("eval", "exec", "os.system", "mlflow.pyfunc.load_model")
                or told.keys() & {"trust_remote_code", "allow_pickle", "shell"}
            )
            wrong += [f"{place}: {call}"] if bad else []
    assert not wrong


def test_data_errors_are_kept_apart_from_refusals() -> None:
    """What is merely no checkpoint is said to be that, and nothing is claimed of code in it."""
    Path("w.pt").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_state_dict(Path("w.pt"))
