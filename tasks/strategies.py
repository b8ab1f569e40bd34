"""Strategies over several processes beyond DDP, and how a task is cut into shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from ..components.layers.transformer import DecoderLayer
from ..components.roles import Part
from .checkpoints import read_checkpoint

# What Lightning and the commands call on a task in place of `forward`: weights outside the layers are gathered for it.
_ENTRIES = ("training_step", "validation_step", "predict", "resynthesise")


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes (FSDP2: Zhao et al. 2023, arXiv 2304.11277, per parameter).

    Parameters, gradients and optimizer states are cut over the processes. Each layer of a part is a unit that is
    gathered when it is used; everything else (norms, heads, embeddings that may be tied to output layers) is one unit.
    Checkpoints are one file, as other strategies write it: a run may go on under any of them.

    Args:
        reshard_after_forward: free a layer's gathered weights between its forward and backward pass.
        process_group_backend: nccl or gloo; None: what fits the device.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Weights and optimizer states of a file that any strategy wrote, cut up for this one."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        checkpoint = read_checkpoint(path)
        _load_raw_module_state(checkpoint.pop("state_dict"), self.model, strict=True)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # A saved state counts parameters in the order of the optimizer's groups, which is not that of the model.
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            name_of = dict(zip(numbers, own, strict=True))
            named = {
                "state": {name_of[number]: value for number, value in state["state"].items()},
                "param_groups": [{**g, "params": [name_of[n] for n in g["params"]]} for g in state["param_groups"]],
            }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


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
