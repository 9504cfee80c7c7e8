"""What comes from strangers: bounds and names that are looked at before a library reads the rest.

Nothing here makes a file trusted. Each function refuses one way to have code run, memory filled, or a file
read or written outside the folder that was given; SECURITY.md lists them with the tests that hold them.
"""

from __future__ import annotations

import html
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdmini_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES = 16 * 2**20  # of safetensors: names some 100,000 tensors; the library itself stops at 100 MB
JSON_BYTES = 64 * 2**20  # vocabularies have some 30 MB, configs some kB
# Keys of configs by which the libraries import code or read files that lie elsewhere.
CODE_KEYS = frozenset(
    {"auto_map", "custom_pipeline", "custom_pipelines", "transformers_weights", "quantization_config"}
)
# What a tokenizer would read wherever it lies, and objects for it; `vocab_file` and its like it finds itself.
TOKENIZER = "tokenizer_config.json"
TOKENIZER_KEYS = frozenset({"vocab", "merges", "init_inputs", "tokenizer_object"})
# Keys whose value, or a text within it, may be OWNER/NAME: code from the hub (attn_, experts_implementation).
KERNEL_KEY = re.compile(r".*_implementation(_internal)?")
LAYERS_KEY = re.compile(r".*layers(_per_block)?|depth|num_blocks")
MAX_LAYERS = 1000  # of one kind; the largest video models have some sixty
TABLE_KEY = re.compile(
    r"num_train_timesteps|.*max_seq_len|max_position_embeddings|sample_.*|image_size|extra_ids"
)
MAX_ROWS = 2**20  # of schedules and positions; schedulers have 1,000, text encoders some 130,000
ADAPTER = "adapter_config.json"  # names another model, which transformers would load in its place


def parse_json(text: str | bytes) -> Any:
    """`json.loads` for text of anyone's.

    Raises:
        ValueError: when it is not JSON, also where it is nested beyond what Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_file(path: Path) -> Any:
    """JSON of a file of anyone's.

    Raises:
        ValueError: when it is too large or not JSON.
        OSError: when it cannot be read.
    """
    return parse_json(read_bounded(path, JSON_BYTES))


def read_bounded(path: Path, most: int | None) -> bytes:
    """A regular file of at most so many bytes: a pipe would never end, a device never be empty.

    None is for what this package wrote itself: the account of a million videos has more than any config.

    Raises:
        ValueError: when it is neither.
        OSError: when it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise ValueError("this is no regular file")
        found = handle.read(-1 if most is None else most + 1)
    if most is not None and len(found) > most:
        raise ValueError(f"more than {most:,} bytes")
    return found


def is_plain_name(name: object) -> bool:
    """Whether it is the name of a file in a folder: no way up, down or elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\0")


def markdown_line(text: str) -> str:
    """A text that may hold names from outside, as one line of Markdown without HTML, links or pictures.

    Code marks stay: what is between them is shown as it is.
    """
    line = " ".join(text.split())
    return re.sub(r"[\\\[\]]", r"\\\g<0>", html.escape(line, quote=False))


def demand_header(path: Path) -> None:
    """Refuse a safetensors file whose header would fill the memory when it is read.

    Raises:
        ModelError: naming the size.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if length > HEADER_BYTES:
        raise ModelError(
            f"{path.name} cannot be read as safetensors: its header is too large",
            expected=f"at most {HEADER_BYTES:,} bytes",
            found=f"{length:,} bytes",
            fix="download it again; if it stays so, the file is not what it says",
        )


def demand_stored(path: Path) -> None:
    """Refuse a zip archive (torch's format since 1.6) whose entries unpack to more than the file holds.

    torch writes its entries as they are; a packed one of some kB may be some GB.

    Raises:
        ModelError: naming the entry.
    """
    with zipfile.ZipFile(path) as archive:
        packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ModelError(
            f"{path.name} holds packed entries, which torch does not write",
            expected="entries stored as they are",
            found=f"{packed[0].filename}: {packed[0].file_size:,} bytes from {packed[0].compress_size:,}",
            fix="download it again, or save its weights as safetensors where you trust it",
        )


def demand_held(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that say they are larger than the file, by strides of 0 or views of one storage.

    Twice the file is let through: tied weights are stored once.

    Raises:
        ModelError: naming the largest.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    if sum(sizes.values()) > 2 * path.stat().st_size:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ModelError(
            f"{path.name} holds tensors that are larger than the file",
            expected=f"{path.stat().st_size:,} bytes or less",
            found=f"{sum(sizes.values()):,} bytes, of which {largest} {sizes[largest]:,}",
            fix="download it again; if it stays so, the file is not what it says",
        )


def demand_plain_config(path: Path) -> None:
    """Refuse a JSON config that asks for code or files from elsewhere, and one that cannot be looked at.

    Raises:
        ModelError: naming the key, or the file: a text in place of an object is a repository's name to
            diffusers, which asks the hub for it even where it was told to take local files alone.
    """
    try:
        config = read_json_file(path)
    except (OSError, ValueError) as error:  # the libraries would read it without a bound
        raise ModelError(
            f"{path.parent.name}/{path.name} cannot be read",
            expected="a JSON object",
            found=str(error),
            fix="download it again",
        ) from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{path.parent.name}/{path.name} is no config",
            expected="a JSON object",
            found=f"{type(config).__name__}: {config}"[:120],
            fix="download it again",
        )
    demand_few_layers(config, f"{path.parent.name}/{path.name}")
    asks = CODE_KEYS | (TOKENIZER_KEYS if path.name == TOKENIZER else frozenset())
    todo = [config]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        if not isinstance(item, dict):
            continue
        for key, value in item.items():
            remote = KERNEL_KEY.fullmatch(key) and any("/" in text for text in _texts(value))
            if (key in asks and value) or remote:
                raise ModelError(
                    f"{path.parent.name}/{path.name} asks for code or files from elsewhere",
                    expected="sizes and options of a known class",
                    found=f"{key}: {value}"[:200],
                    fix="take the key out where you trust the rest; code from a model directory is never run",
                )
            todo.append(value)


def demand_few_layers(config: Any, name: str) -> None:
    """Refuse a config by which a class would build modules or tables until the memory is full.

    Raises:
        ModelError: naming the key.
    """
    for key, value in _pairs(config):
        layers, table = LAYERS_KEY.fullmatch(key), TABLE_KEY.fullmatch(key)
        most = MAX_LAYERS if layers else MAX_ROWS
        if (layers or table) and any(number > most for number in _numbers(value)):
            raise ModelError(
                f"{name} asks for more {'layers' if layers else 'rows of a table'} than any model has",
                expected=f"at most {most}",
                found=f"{key}: {value}"[:120],
                fix="download it again; if it stays so, the file is not what it says",
            )


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, of inner mappings too."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield from item.items()
            todo += item.values()
        elif isinstance(item, list):
            todo += item


def _numbers(value: Any) -> Iterator[int | float]:
    """Numbers of a value, of lists in lists too; mappings have keys of their own."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, int | float):
            yield item


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys of mappings too."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += [*item, *item.values()]


def demand_own_shards(index: Path) -> None:
    """Refuse an index of shards that names anything but safetensors beside it.

    Raises:
        ModelError: naming the file.
    """
    try:
        listed = read_json_file(index)["weight_map"]
        names = set(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index.name} is no index of weights", expected="`weight_map`: name -> file", found=repr(error)
        ) from None
    strange = [name for name in names if not (is_plain_name(name) and name.endswith(".safetensors"))]
    if strange:
        raise ModelError(
            f"{index.name} names files that are no shards",
            expected="names of .safetensors in the same folder",
            found=str(strange[0])[:200],
            fix="download the whole pipeline directory again",
        )


def demand_inside(root: Path, files: Iterable[Path]) -> None:
    """Refuse links that lead out of a model's directory: what they show would be copied and passed on.

    The hub's cache is let through, whose snapshots are links to `blobs/` beside them.

    Args:
        root: the directory.
        files: seen from it.

    Raises:
        ModelError: naming the first.
    """
    home = root.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for relative in files:
        place = (root / relative).resolve()
        if not (place.is_relative_to(home) or place.is_relative_to(blobs)):
            raise ModelError(
                f"{relative} is a link that leads out of the model's directory",
                expected=f"a file in {root}",
                found=f"a link to {place}",
                fix="put the file itself there in place of the link, where it belongs to the model",
            )
