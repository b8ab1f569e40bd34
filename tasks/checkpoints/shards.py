"""Checkpoints in shards: every process writes its part of the tensors, and the checkpoint names the folder they are in.

`checkpoints/last.ckpt` is then a small file of everything but the tensors, with an entry `shards`; the tensors lie in
`checkpoints/stepNNNNNNNN.K.shards/`, one safetensors file a process. The folder is written under another name and
renamed when all processes are done, and only then is `last.ckpt` replaced: whenever a run is killed, `last.ckpt` names
a whole folder. Files are never written again, so that several checkpoints may name one folder; it goes with the last
of them.

No pickle is read: torch.distributed.checkpoint plans who writes and reads what, but its own index of a folder is a
pickle, so tensors are stored as safetensors, whose headers say what lies where.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from ...components.errors import UserError, few
from ...components.sums import ADVICE, CHEAP, sum_of_header, sums_of_file

SHARDS = "shards"
"""The entry of a checkpoint whose tensors are elsewhere: `folder`, `files` (name -> bytes), `sums` (name -> CRC-32 of
its header and of all of it; earlier versions wrote none) and `tensors` (place -> shape, dtype, whether it was cut)."""

_FOLDER = re.compile(r"step\d+\.\d+\.shards")
_SHARD = "shard-{:05d}-model-00001-of-00001.safetensors"  # as HuggingFaceStorageWriter names them
_FILE = re.compile(r"[\w.-]+\.safetensors")


def write_shards(
    checkpoint: dict[str, Any],
    path: Path,
    write_index: Callable[[dict[str, Any]], None],
    broadcast: Callable[[Any], Any],
) -> None:
    """Write a checkpoint; called by all processes together.

    Args:
        checkpoint: what Lightning collected, tensors that are cut over the processes as DTensors.
        path: the same on all processes.
        write_index: called on the first process with all but the tensors: writes `path`.
        broadcast: gives all processes what the first one has.

    Raises:
        UserError: a disk is full or not writable; on all processes, and what stood at `path` before is untouched.
    """
    rank = torch.distributed.get_rank()
    first = rank == 0
    index, tensors = _split(checkpoint)
    name = broadcast(_free_name(path.parent, int(checkpoint["global_step"])) if first else None)
    part = path.with_name(f".{name}.part")
    problem = ""
    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    except CheckpointException as error:
        problem = "; ".join(f"process {number}: {why[0]}" for number, why in sorted(error.failures.items())[:2])
    files, sums = _gather_files(part / _SHARD.format(rank + 1))
    if first and not problem:
        try:
            os.rename(part, path.with_name(name))
            described = {place: _describe(value) for place, value in tensors.items()}
            index[SHARDS] = {"folder": name, "files": files, "sums": sums, "tensors": described}
            write_index(index)
        except Exception as error:  # whatever it is: the others wait for the word
            problem = str(error) or type(error).__name__
    problem = broadcast(problem)
    if problem:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        untouched = "the previous checkpoint is untouched"
        raise UserError(problem if untouched in problem else f"{path}: {' '.join(problem.split())}; {untouched}")


def read_shards(index: dict[str, Any], path: Path, *, states: bool = True, verify: bool = False) -> dict[str, Any]:
    """A checkpoint with its tensors whole, as if it had been written in one file.

    Args:
        index: what the file at `path` holds.
        states: those of optimizers too; otherwise the entry is empty.
        verify: compare the sums of all files, not of the smallest ones and of headers alone.

    Raises:
        UserError: the folder, or a part of it, is missing or damaged.
    """
    tensors: dict[str, Tensor] = {
        place: torch.empty(shape, dtype=dtype)
        for place, (shape, dtype, _) in tensors_of(index, path).items()
        if states or place.startswith(weight_place(""))
    }
    load_shards(index, path, tensors, verify=verify)
    dropped = {SHARDS} if states else {SHARDS, "optimizer_states"}
    content = {key: value for key, value in index.items() if key not in dropped}
    return _put_back(content, tensors)


def load_shards(index: dict[str, Any], path: Path, into: dict[str, Tensor], *, verify: bool = False) -> None:
    """Fill tensors, by their place in the checkpoint; of a DTensor each process reads its own part alone. `verify`: as
    of `read_shards`.

    Raises:
        UserError: the folder, or a part of it, is missing or damaged.
    """
    folder = _there(index, path)
    require_shard_sums(index, path, whole=verify)
    reader = _Reader(str(folder))
    try:
        _require_all(index, path, folder, reader.read_metadata())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each process reads by itself
            load(dict(into), storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: its shards in {folder.name} cannot be read ({reason})") from None


def require_shard_sums(index: dict[str, Any], path: Path, *, whole: bool, rank: int = 0, world_size: int = 1) -> None:
    """Compare the sums of the files of a checkpoint in shards.

    Args:
        index: what the file at `path` holds.
        whole: all of all files; otherwise all of the smallest ones, up to `CHEAP` bytes, and the headers of the others.
        rank, world_size: look at each `world_size`-th file alone, for processes that look together.

    Raises:
        UserError: one is damaged, missing or of another size.
    """
    folder = _there(index, path)
    sums, files = index[SHARDS].get("sums"), index[SHARDS]["files"]
    if sums is None:
        return
    if not isinstance(sums, dict) or not all(_are_sums(sums.get(file)) for file in files):
        raise UserError(f"{path}: its list of shards is not one that voxzoo wrote")
    left = CHEAP
    for place, file in enumerate(sorted(files, key=lambda name: (files[name], name))):
        left -= files[file]
        if place % world_size != rank:
            continue
        try:
            if whole or left >= 0:
                wrong = sums_of_file(folder / file) != tuple(sums[file])
            else:
                wrong = sum_of_header(folder / file) != sums[file][0]
        except OSError as error:
            raise UserError(f"{folder / file}: {error.strerror}") from None
        if wrong:
            raise UserError(f"{folder / file}: damaged: {ADVICE}, or take another checkpoint of the run")


def _are_sums(found: Any) -> bool:
    return isinstance(found, list | tuple) and len(found) == 2 and all(type(one) is int for one in found)


class _Reader(HuggingFaceStorageReader):
    """Headers are read once."""

    _metadata: Any = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        if self._metadata is None:
            self._metadata = super().read_metadata(*args, **kwargs)
        return self._metadata


def tensors_of(index: dict[str, Any], path: Path) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    """Place in the checkpoint -> shape, dtype, and whether the processes had it in parts.

    Raises:
        UserError: an entry that `write_shards` does not write.
    """
    try:
        found = {}
        for place, (shape, name, cut) in index[SHARDS]["tensors"].items():
            dtype = getattr(torch, name)
            if not isinstance(dtype, torch.dtype):
                raise TypeError(name)
            found[str(place)] = torch.Size(shape), dtype, bool(cut)
        return found
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: its list of shards is not one that voxzoo wrote") from None


def remove_unused(folder: Path) -> None:
    """Delete the shards that no checkpoint in a folder names, and what a killed process left half written."""
    shards = [path for path in folder.glob("*.shards") if _FOLDER.fullmatch(path.name)]
    if shards:
        named = {_named_by(path) for path in folder.glob("*.ckpt")}
        if None in named:  # unreadable: better too many than one that is needed
            return
        for path in shards:
            if path.name not in named:
                shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step*.shards.part"):
        shutil.rmtree(path, ignore_errors=True)


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint's tensors are in shards."""
    return bool(_named_by(path))


def _named_by(path: Path) -> str | None:
    """The folder a checkpoint names, "" where it holds its tensors itself, None where it cannot be read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content.get(SHARDS, {}).get("folder", ""))
    except Exception:  # anything may be wrong with a file
        return None


def _gather_files(own: Path) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Bytes and sums of each process's file; a listing by one process may not see yet what another node wrote."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    entry = (own.name, own.stat().st_size, list(sums_of_file(own))) if own.exists() else None
    torch.distributed.all_gather_object(found, entry)
    there = [one for one in found if one]
    return {name: size for name, size, _ in there}, {name: sums for name, _, sums in there}


def _free_name(folder: Path, step: int) -> str:
    number = 0
    while (folder / f"step{step:08d}.{number}.shards").exists() or (
        folder / f".step{step:08d}.{number}.shards.part"
    ).exists():
        number += 1
    return f"step{step:08d}.{number}.shards"


def _describe(value: Tensor) -> list[Any]:
    return [list(value.shape), str(value.dtype).removeprefix("torch."), isinstance(value, DTensor)]


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A copy with None in place of each tensor, and the tensors by their place; single numbers stay."""
    taken: dict[str, Tensor] = {}

    def take(place: str, value: Any) -> Any:
        if isinstance(value, DTensor) and not value.ndim:
            return value.full_tensor()
        if not isinstance(value, Tensor) or not value.ndim or not value.numel():
            return value
        taken[place] = value
        return None

    return _mapped(checkpoint, take), taken


def _put_back(index: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    return _mapped(index, lambda place, value: tensors.get(place, value))


def _mapped(checkpoint: dict[str, Any], function: Callable[[str, Any], Any]) -> dict[str, Any]:
    """A copy with `function(place, value)` in place of each weight and each value of an optimizer's state."""
    copy = dict(checkpoint)
    copy["state_dict"] = {name: function(weight_place(name), value) for name, value in checkpoint["state_dict"].items()}
    copy["optimizer_states"] = [
        {
            **optimizer,
            "state": {
                parameter: {key: function(state_place(number, parameter, key), value) for key, value in state.items()}
                for parameter, state in optimizer["state"].items()
            },
        }
        for number, optimizer in enumerate(checkpoint.get("optimizer_states", ()))
    ]
    return copy


def weight_place(name: str) -> str:
    return f"state_dict/{name}"


def state_place(optimizer: int, parameter: int, key: str) -> str:
    return f"optimizer_states/{optimizer}/{parameter}/{key}"


def _there(index: dict[str, Any], path: Path) -> Path:
    """The folder of a checkpoint's shards, all its files there in their sizes."""
    try:
        name, files = str(index[SHARDS]["folder"]), {str(k): int(v) for k, v in index[SHARDS]["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        name, files = "", {}
    # Names from a file must not lead out of its folder.
    if not _FOLDER.fullmatch(name) or not files or not all(_FILE.fullmatch(file) for file in files):
        raise UserError(f"{path}: its list of shards is not one that voxzoo wrote")
    folder = path.with_name(name)
    if not folder.is_dir():
        raise UserError(f"{path}: its shards are missing, expected the folder {folder}; move both together")
    there = {file: (folder / file).stat().st_size if (folder / file).is_file() else None for file in files}
    wrong = [
        f"{file} is missing" if there[file] is None else f"{file} has {there[file]} bytes, not {size}"
        for file, size in files.items()
        if there[file] != size
    ]
    if wrong:
        raise UserError(f"{folder}: incomplete or damaged shards: {few(wrong, 3)}")
    return folder


def _require_all(index: dict[str, Any], path: Path, folder: Path, metadata: Any) -> None:
    """Every tensor is there, in its shape, without a gap."""
    found, wrong = metadata.state_dict_metadata, []
    for place, (shape, dtype, _) in tensors_of(index, path).items():
        there = found.get(place)
        if (
            there is None
            or there.size != shape
            or there.properties.dtype != dtype
            or sum(math.prod(chunk.sizes) for chunk in there.chunks) != shape.numel()
        ):
            wrong.append(place)
    if wrong:
        raise UserError(f"{folder}: incomplete or damaged shards: {few(wrong, 3)}")
