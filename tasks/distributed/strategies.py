"""Strategies over several processes beyond DDP, and how a task is cut into shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor import DTensor, distribute_tensor, zeros
from torch.optim import Optimizer

from ...components.errors import UserError
from ...components.layers.blocks import STACKS, blocks, named_blocks
from ...components.layers.transformer import DecoderLayer
from ...configs.targets import class_of
from ..checkpoints.files import in_memory, misfit, read_checkpoint
from ..checkpoints.shards import (
    SHARDS,
    load_shards,
    require_shard_sums,
    state_place,
    tensors_of,
    weight_place,
    write_shards,
)
from .precision import gradient_scaler

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
        checkpoint = _read_together(path, whole=False)
        own = self.model.state_dict()
        _require_fit(own, checkpoint, path)
        if SHARDS in checkpoint:
            self._load_shards(checkpoint, path, own)
            return checkpoint
        _load_raw_module_state(checkpoint.pop("state_dict"), self.model, strict=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, _named_state(self.model, optimizer, state), options=options)
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


class FSDP(FSDPStrategy):
    """Fully sharded data parallelism over all processes in its first form (FSDP1: Zhao et al. 2023, arXiv 2304.11277).

    The same units as `FSDP2`, each as one flat parameter that is cut over the processes. PyTorch advises `FSDP2` in its
    place, which gives the same result, keeps shapes, and can write checkpoints in shards; this one is for comparisons
    and for what relies on it. Checkpoints are one file, as other strategies write it.

    Args:
        reshard_after_forward: free a layer's gathered weights between its forward and backward pass (FULL_SHARD, else
            SHARD_GRAD_OP).
        process_group_backend: nccl or gloo; None: what fits the device.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            sharding_strategy="FULL_SHARD" if reshard_after_forward else "SHARD_GRAD_OP",
        )
        self.reshard_after_forward = reshard_after_forward
        self._shapes: dict[str, torch.Tensor] = {}

    @property
    def precision_plugin(self) -> Any:
        return self._precision_plugin or Precision()

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        # As under the other strategies: parameters stay in float32 and autocast rounds what is computed. Lightning's
        # plugin for FSDP1 would also sum gradients and keep buffers in half precision.
        if isinstance(precision_plugin, FSDPPrecision):
            name = precision_plugin.precision
            device = "cpu" if isinstance(self.accelerator, CPUAccelerator) else "cuda"
            scaler: Any = gradient_scaler(ShardedGradScaler) if name == "16-mixed" else None
            precision_plugin = MixedPrecision(name, device, scaler) if name.endswith("mixed") else Precision()  # pyright: ignore[reportArgumentType]
        self._precision_plugin = precision_plugin

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        self._shapes = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
        for parameter in model.parameters():
            setattr(parameter, WHOLE_DIM, parameter.dim())
        own_units = set(units(model))
        return FullyShardedDataParallel(
            model,
            sharding_strategy=self.sharding_strategy,
            auto_wrap_policy=CustomPolicy(lambda module: module in own_units),
            device_id=self.root_device,
            use_orig_params=True,
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights whole, and the layers without their wrappers, which take no calls meanwhile."""
        assert isinstance(self.model, FullyShardedDataParallel)
        wrapped = [
            (parent, name, child)
            for parent in self.model.modules()
            for name, child in parent.named_children()
            if isinstance(child, FullyShardedDataParallel)
        ]
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False):
            for parent, name, child in wrapped:
                parent._modules[name] = child.module
            try:
                yield
            finally:
                for parent, name, child in wrapped:
                    parent._modules[name] = child

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        with self._whole_states(first_only=True):
            return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        with self._whole_states(first_only=True):
            state = FullyShardedDataParallel.optim_state_dict(self.model, plain)
        if self.global_rank == 0:  # parameters by number, as in other checkpoints
            state = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)
        return state

    @contextmanager
    def _whole_states(self, first_only: bool) -> Iterator[None]:
        """States are whole, on the first process or on all."""
        # On a CPU "offloading" would copy nothing, and what it returns would lie in memory that is then freed.
        how = {"offload_to_cpu": self.root_device.type != "cpu", "rank0_only": first_only}
        with warnings.catch_warnings():  # at each save, that the way which FSDP1 has is to be replaced
            warnings.filterwarnings("ignore", category=FutureWarning, message="FSDP.state_dict_type")
            with FullyShardedDataParallel.state_dict_type(
                self.model,  # pyright: ignore[reportArgumentType]
                StateDictType.FULL_STATE_DICT,
                FullStateDictConfig(**how),
                FullOptimStateDictConfig(**how),
            ):
                yield

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Weights and optimizer states that any strategy wrote, cut up for this one."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        checkpoint = in_memory(_read_together(path))
        _require_fit(self._shapes, checkpoint, path)
        with self._whole_states(first_only=False):
            self.model.load_state_dict(checkpoint.pop("state_dict"))
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                named = _named_state(self.model, optimizer, state)
                optimizer.load_state_dict(
                    FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, named)
                )
        return checkpoint


def _read_together(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """`read_checkpoint` before a training goes on: the sums of all of it are compared. Each process looks at some of
    its files, and all hear what one of them found.

    Raises:
        UserError: as `read_checkpoint`; on all processes.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    problem = ""
    checkpoint: dict[str, Any] = {}
    try:
        checkpoint = read_checkpoint(path, whole=whole, verify=rank == 0)
        if SHARDS in checkpoint:
            require_shard_sums(checkpoint, path, whole=True, rank=rank, world_size=world_size)
    except UserError as error:
        problem = str(error)
    found: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(found, problem)
    if any(found):
        raise UserError(next(filter(None, found)))
    return checkpoint


def cuts_weights(config: DictConfig) -> bool:
    """Whether the strategy of a config cuts weights up over processes."""
    return _is_of(config, ModelParallelStrategy, FSDPStrategy)


def faults_of_strategy(config: DictConfig) -> list[tuple[str, str]]:
    """(key, message) of a strategy that cuts weights up in a way that the gradient norm would not know of."""
    name = OmegaConf.select(config, "trainer.strategy")
    if isinstance(name, DictConfig) and "_target_" not in name:
        return [
            (
                "trainer.strategy",
                f"{', '.join(map(str, name))}: settings of no strategy; choose trainer=fsdp2 with them",
            )
        ]
    known = StrategyRegistry.available_strategies()
    if isinstance(name, str) and name not in {*known, "auto"}:
        return [("trainer.strategy", f"there is no {name!r}; take ddp, or trainer=fsdp2")]
    foreign = isinstance(name, str) and name.startswith(("fsdp", "deepspeed", "model_parallel"))
    if foreign or (cuts_weights(config) and not _is_of(config, FSDP, FSDP2)):
        shown = name if isinstance(name, str) else name.get("_target_")
        return [("trainer.strategy", f"{shown} would clip by the norm of a shard; take trainer=fsdp2 (or fsdp)")]
    return []


def _is_of(config: DictConfig, *classes: type) -> bool:
    found = class_of(OmegaConf.select(config, "trainer.strategy"), config)
    return found is not None and issubclass(found, classes)


def loads_by_shards(config: DictConfig) -> bool:
    """Whether the strategy of a config fills a task that is cut up already when it goes on."""
    return _is_of(config, FSDP2)


WHOLE_DIM = "voxzoo_dim"
"""Attribute of a parameter that FSDP1 keeps as a piece of a flat one: how many dimensions it has."""


def is_flat(strategy: Any) -> bool:
    """Whether each process holds pieces of the parameters as plain tensors."""
    return isinstance(strategy, FSDP)


def _require_fit(own: Mapping[str, torch.Tensor], checkpoint: dict[str, Any], path: Path) -> None:
    problem = misfit(own, _weights(checkpoint, path))
    if problem:
        raise UserError(f"{path}: does not fit this config; {problem}")


def _named_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state by the names of parameters.

    A saved state counts parameters in the order of the optimizer's groups, which is not that of the model.
    """
    names = {parameter: clean_tensor_name(name) for name, parameter in model.named_parameters()}
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    name_of = dict(zip(numbers, own, strict=True))
    return {
        "state": {name_of[number]: value for number, value in state["state"].items()},
        "param_groups": [{**g, "params": [name_of[n] for n in g["params"]]} for g in state["param_groups"]],
    }


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


def units(task: nn.Module) -> Iterator[nn.Module]:
    """The layers of all parts; what is in none of them is one unit with the task itself."""
    found = list(named_blocks(task, ("layers",)))
    parts: Any = getattr(task, "parts", dict)
    for part in parts().values():
        if next(named_blocks(part, STACKS), None) is None:  # of one's own, by other names
            found += blocks(part)
    yield from dict.fromkeys(found)


def shard(task: LightningModule, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """Cut a task into shards over the first dimension of a mesh, in place; parameter names stay."""
    for layer in units(task):
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
    strategy = task.trainer.strategy if task._trainer is not None else None
    if isinstance(strategy, FSDP):
        with strategy.whole():
            yield
        return
    shards = [module for module in task.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            if module is not task and isinstance(strategy, FSDP2):
                module.set_reshard_after_forward(strategy.reshard_after_forward, recurse=False)
            _forget_order(module)


def _forget_order(module: FSDPModule) -> None:
    """The next backward pass gathers layers ahead in the order in which they were called, also in what came before it.
    Where each process called them another number of times, they would gather different ones, and wait forever."""
    group: Any = module._get_fsdp_state()._fsdp_param_group
    if group is not None:
        group.comm_ctx.post_forward_order.clear()
        group._post_forward_indices.clear()
