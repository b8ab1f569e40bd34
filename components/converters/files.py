"""Files of a published model: weights in one file or in shards, JSON beside them. Nothing in them is executed."""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..lines import parse_json
from ..nearby import nearest_path
from ..online import is_online
from ..sums import CHEAP, require_sum, stored_sums, sum_of_tensor

SHARD_BYTES = 5_000_000_000
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SUMS = "crc32"  # of the tensors, in the index of shards: key -> sum
_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"


def published_folder(source: str | Path) -> Path:
    """The folder that a SOURCE means: a local one, or that of a hub name (`facebook/w2v-bert-2.0`).

    A hub name is looked up in the cache of `huggingface_hub`. Where it was asked for (`online`), what is not there is
    fetched: JSON, tokenizer and safetensors files, and `pytorch_model*.bin` where there are no safetensors.

    Args:
        source: a folder or hub name.

    Raises:
        UserError: no such folder, or the name cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name = str(source)
    if path.exists():
        raise UserError(f"{source}: expected a folder with a config.json, as `save_pretrained` writes it; it is a file")
    near = nearest_path(path)
    owner, _, rest = name.partition("/")
    if near or name.startswith((".", "/", "~")) or not rest or "/" in rest or Path(owner).is_dir():
        raise UserError(f"{source}: no such folder" + (f"; did you mean {near}?" if near else ""))
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{source}: no such folder; to fetch it as a hub name install huggingface_hub (pip install voxzoo[hub])"
        ) from None
    wanted = ["*.json", "*.model", "*.txt"]
    try:
        patterns = [*wanted, "model*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not is_online()))
        if is_online() and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin"]))
        return folder
    except Exception as error:
        if not is_online():
            raise UserError(
                f"{source}: no such folder, and not in the cache of huggingface_hub; it is not fetched unless you say "
                "--online"
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: no such folder, and the hub gave none ({type(error).__name__}: {reason})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing, or is no JSON object.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected a folder in the layout that `save_pretrained` writes") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; it holds a {type(content).__name__}")
    return content


class Weights(Mapping[str, Tensor]):
    """Tensors of a folder by published key, each read from disk when it is asked for.

    `model.safetensors`, its shards, or `pytorch_model.bin` and its (read with `weights_only=True`: tensors and nothing
    else). Where the index of shards has sums, as those of `write_weights` have, tensors are compared with them.

    Args:
        folder: where they are.
        single: name of the file, where there is one.
        verify: compare the sums of all tensors that are read, not of the smallest ones alone, `CHEAP` bytes in all.

    Raises:
        UserError: no weights, a shard that is missing, a truncated file, or a pickle that holds more than tensors;
            when a tensor is read, one that is not what was written.
    """

    def __init__(self, folder: Path, single: str = _SINGLE, *, verify: bool = False) -> None:
        self.folder = folder
        self._where: dict[str, Path] = {}
        self._sums: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        self._plain: dict[str, Tensor] = {}
        if (folder / _INDEX).exists():
            self._where = _shards(folder / _INDEX)
            for path in sorted(set(self._where.values())):
                held = set(self._file(path).keys())
                absent = [key for key, where in self._where.items() if where == path and key not in held]
                if absent:
                    raise UserError(f"{path}: holds no {', '.join(absent[:3])}, though {_INDEX} says so")
            self._sums = self._to_compare(verify)
        elif (folder / single).exists():
            path = folder / single
            self._where = dict.fromkeys(self._file(path).keys(), path)
        elif (folder / _PICKLE).exists() or (folder / _PICKLE_INDEX).exists():
            whole = (folder / _PICKLE).exists()
            for path in [folder / _PICKLE] if whole else sorted(set(_shards(folder / _PICKLE_INDEX).values())):
                content = read_pickle(path)
                self._plain.update({key: value for key, value in content.items() if isinstance(value, Tensor)})
        else:
            raise UserError(f"{folder}: no weights; expected {single}{f' or {_INDEX}' if single == _SINGLE else ''}")

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: truncated, or no safetensors file ({error}); fetch it again") from None
        return self._open[path]

    def _to_compare(self, verify: bool) -> dict[str, str]:
        """The sums of all tensors, or of the smallest ones."""
        about = read_json(self.folder / _INDEX).get("metadata")
        sums = stored_sums(about.get(_SUMS) if isinstance(about, dict) else None, self.folder / _INDEX)
        sums = {key: value for key, value in sums.items() if key in self._where}
        if verify or not sums:
            return sums
        left, found = CHEAP, {}
        for size, key in sorted((self._bytes(key), key) for key in sums):
            left -= size
            if left < 0:
                break
            found[key] = sums[key]
        return found

    def _bytes(self, key: str) -> int:
        """Of a tensor, at most."""
        return 8 * math.prod(self._file(self._where[key]).get_slice(key).get_shape())

    def __getitem__(self, key: str) -> Tensor:
        if key in self._plain:
            return self._plain[key]
        value = self._file(self._where[key]).get_tensor(key)
        if key in self._sums:
            require_sum(value, self._sums[key], key, self._where[key])
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain or self._where)

    def __len__(self) -> int:
        return len(self._plain or self._where)


def _shards(index: Path) -> dict[str, Path]:
    """Published key -> the file beside an index that holds it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise UserError(f"{index}: expected a `weight_map`")
    where = {}
    for key, name in found.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {key} is in {name!r}; expected the name of a file beside it")
        where[key] = index.with_name(name)
        if not where[key].exists():
            raise UserError(f"{where[key]}: missing; {index} says that it holds weights")
    return where


SETTINGS_CLASSES = (
    *("argparse.Namespace", "omegaconf.", "fairseq.", "fairseq2.", "typing.Any", "collections.defaultdict"),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)
"""Classes of the settings that original checkpoints have beside their tensors (`read_pickle`)."""


class _Nothing:
    """Stands for an object of settings in a pickle: takes what the pickle gives it and does nothing with it."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_pickle(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The dictionary of a `torch.save` file, of tensors and plain values; nothing in it is executed.

    Args:
        settings: classes whose objects may be in it too (`argparse.Namespace`; with a dot at the end, all of a
            package). They are neither imported nor built: an empty object stands in their place.

    Raises:
        UserError: it holds more than tensors and plain values, or is damaged.
    """
    try:
        there = _named_in(path) if settings else []
        names = [name for name in there if any(name == s or (s[-1] == "." and name.startswith(s)) for s in settings)]
        # A dictionary with a default is filled like any other, so it is itself.
        harmless = [(defaultdict if name == "collections.defaultdict" else _Nothing, name) for name in names]
        with torch.serialization.safe_globals(harmless):  # pyright: ignore[reportArgumentType]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise UserError(
                f"{path}: refused, the pickle holds more than tensors and may run code; ask for a safetensors file"
            ) from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: damaged, or not written by torch.save ({reason[:120]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected tensors by name; it holds a {type(content).__name__}")
    return content


def _named_in(path: Path) -> Collection[str]:
    """Classes and functions that a `torch.save` file names (of a zip file: those that torch does not take by itself).
    Opcodes are looked at, nothing is built."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    # Before torch 1.6: the pickles of a magic number, a version, the system, the content and the keys of the storages,
    # one after the other.
    names = set()
    with path.open("rb") as file:
        for _ in range(5):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    return names


def write_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    single: str = _SINGLE,
) -> None:
    """Write safetensors: one file, or shards of at most `shard_bytes` with an index.

    Tensors may share memory, or be mapped: what has to be copied is copied for one shard at a time.

    Args:
        dtype: of the floating-point tensors in the files; None: as they are.
        single: name of the file, where one is enough.
    """
    shards: list[list[str]] = [[]]
    size = total = 0
    for key, value in tensors.items():
        nbytes = value.numel() * _dtype_in_file(value, dtype).itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += nbytes
        total += nbytes
    # transformers asks for the framework that wrote a file.
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(_ready(shards[0], tensors, dtype), str(folder / single), metadata=metadata)
        return
    index: dict[str, str] = {}
    sums: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        sums.update(_save(_ready(keys, tensors, dtype), folder / name, metadata))
        index.update(dict.fromkeys(keys, name))
    # One file alone is, byte by byte, what transformers writes; an index may say more.
    content = {"metadata": {"total_size": total, _SUMS: sums}, "weight_map": index}
    (folder / _INDEX).write_text(json.dumps(content, indent=1, sort_keys=True))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> dict[str, str]:
    """Write a file, and return the sums of what is in it."""
    save_file(tensors, str(path), metadata=metadata)
    return {key: sum_of_tensor(value) for key, value in tensors.items()}


def _dtype_in_file(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and value.is_floating_point() else value.dtype


def _ready(keys: Sequence[str], tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors as `save_file` takes them: on the CPU, contiguous, each alone in its storage."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key in keys:
        value = tensors[key].detach()
        value = value.to("cpu", _dtype_in_file(value, dtype)).contiguous()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in taken:
            value = value.clone()
        taken.add(value.untyped_storage().data_ptr())
        found[key] = value
    return found
