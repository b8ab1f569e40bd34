"""Strategies over several processes beyond DDP, and how a task is cut into shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    OptimStateKeyType,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor, zeros
from torch.optim import Optimizer

from ..components.errors import UserError
from ..components.layers.transformer import DecoderLayer
from ..components.roles import Part
from .checkpoints import misfit, read_checkpoint
from .shards import SHARDS, load_shards, state_place, tensors_of, weight_place, write_shards

# What Lightning and the commands call on a task in place of `forward`: weights outside the layers are gathered for it.
_ENTRIES = ("training_step", "validation_step", "predict", "resynthesise")


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes (FSDP2: Zhao et al. 2023, arXiv 2304.11277, per parameter).

    Parameters, gradients and optimizer states are cut over the processes. Each layer of a part is a unit that is
    gathered when it is used; everything else (norms, heads, embeddings that may be tied to output layers) is one unit.
    Checkpoints are one file, as other strategies write it, or in shards: a run may go on under any strategy and number
    of processes from both, and every command reads both.

    Args:
        reshard_after_forward: free a layer's gathered weights between its forward and backward pass.
        sharded_checkpoints: each process writes its part itself, into a folder beside the checkpoint that all processes
            see (see `shards`): faster, and no process ever holds the whole. `voxzoo consolidate` makes one file of it.
        process_group_backend: nccl or gloo; None: what fits the device.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        sharded_checkpoints: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(save_distributed_checkpoint=sharded_checkpoints, process_group_backend=process_group_backend)
        self.reshard_after_forward = reshard_after_forward
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        if not self.sharded_checkpoints:
            return state
        assert self.model is not None  # parameters by number, as in one file
        return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if not self.sharded_checkpoints:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        write_shards(checkpoint, path, lambda index: self.checkpoint_io.save_checkpoint(index, path), self.broadcast)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Weights and optimizer states that any strategy wrote, cut up for this one."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        checkpoint = read_checkpoint(path, whole=False)
        own = self.model.state_dict()
        problem = misfit(own, _weights(checkpoint, path))
        if problem:
            raise UserError(f"{path}: does not fit this config; {problem}")
        if SHARDS in checkpoint:
            self._load_shards(checkpoint, path, own)
            return checkpoint
        _load_raw_module_state(checkpoint.pop("state_dict"), self.model, strict=True)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # A saved state counts parameters in the order of the optimizer's groups, which is not that of the model.
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            ours = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            name_of = dict(zip(numbers, ours, strict=True))
            named = {
                "state": {name_of[number]: value for number, value in state["state"].items()},
                "param_groups": [{**g, "params": [name_of[n] for n in g["params"]]} for g in state["param_groups"]],
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint

    def _load_shards(self, checkpoint: dict[str, Any], path: Path, own: dict[str, Any]) -> None:
        """Each process reads what is its own part now, however many processes wrote it."""
        tensors = tensors_of(checkpoint, path)
        into = {weight_place(name): value for name, value in own.items() if weight_place(name) in tensors}
        for name, value in checkpoint["state_dict"].items():
            if value is not None:
                _fill(own[name], value)
        states: list[dict[str, Any]] = []
        for place, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {number: dict(saved["state"].get(number, {})) for number in numbers}
            for parameter, number in zip(parameters, numbers, strict=True):
                for key in state[number]:
                    name = state_place(place, number, key)
                    if name in tensors:
                        into[name] = state[number][key] = _empty_like(parameter, *tensors[name])
            states.append({**saved, "state": {number: values for number, values in state.items() if values}})
        load_shards(checkpoint, path, into)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _weights(checkpoint: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, those in shards without content."""
    weights = dict(checkpoint["state_dict"])
    if SHARDS in checkpoint:
        tensors = tensors_of(checkpoint, path)
        for name in weights:
            if weight_place(name) in tensors:
                shape, dtype, _ = tensors[weight_place(name)]
                weights[name] = torch.empty(shape, dtype=dtype, device="meta")
    return weights


def _fill(own: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor into one that may be cut."""
    if isinstance(own, DTensor):  # of a published model, see `references`
        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(value)


def _empty_like(parameter: torch.Tensor, shape: torch.Size, dtype: torch.dtype, cut: bool) -> torch.Tensor:
    """Room for a value of a parameter's state: cut as the parameter is, where it was cut when it was saved."""
    if cut and isinstance(parameter, DTensor):
        return zeros(shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements)
    return torch.zeros(shape, dtype=dtype, device=parameter.device)


def shard(task: LightningModule, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """Cut a task into shards over the first dimension of a mesh, in place; parameter names stay."""
    for part in task.modules():
        if not isinstance(part, Part):
            continue
        for name, stack in part.named_modules():
            if not isinstance(stack, nn.ModuleList) or name.rpartition(".")[2] != "layers":
                continue
            for layer in stack:
                fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
                if isinstance(layer, DecoderLayer):  # cached decoding calls a layer by these
                    register_fsdp_forward_method(layer, "step")
                    register_fsdp_forward_method(layer, "remember")
    fully_shard(task, mesh=mesh, reshard_after_forward=False)  # the backward pass begins with its weights
    for name in _ENTRIES:
        if hasattr(task, name):
            register_fsdp_forward_method(task, name)


@contextmanager
def gathered(task: LightningModule) -> Iterator[None]:
    """All weights whole on every process, for as long as it lasts; does nothing to a task that is not sharded.

    Enter and leave it on all processes together. In between nothing waits for the others: decoding, which ends after
    another number of steps on each process, cannot deadlock. The whole model must fit.
    """
    shards = [module for module in task.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            if module is not task and isinstance(task.trainer.strategy, FSDP2):
                module.set_reshard_after_forward(task.trainer.strategy.reshard_after_forward, recurse=False)
