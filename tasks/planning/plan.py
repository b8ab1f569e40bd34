"""What a run will take before it runs: memory per device, the batch budget that fits, steps and FLOPs.

Nothing here is a formula of an architecture. Parameters, gradients and optimizer states are counted on the task as it
is built; activations and FLOPs are those of one step on fake tensors (`simulation`), with the largest batches of the
real manifest where it is there. What FSDP2 cuts up and gathers follows `strategies.shard`. 1 GB is 10^9 bytes.

Letters: B batch, T frames, S subwords, U units, N samples, W devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.layers.blocks import RECOMPUTE
from .figures import GB, Plan
from .rehearsal import Rehearsal, learning_bytes
from .setting import pieces

_DEVICES = (2, 4, 8, 16, 32, 64, 128)
_LARGE = 500_000_000  # parameters


def plan_run(config: DictConfig, memory: float | None = None) -> Plan | None:
    """Plan the training of a checked config; None for a task without gradient steps.

    Args:
        memory: GB of each device; None: no verdict.

    Raises:
        UserError: data that cannot be used, everything frozen, settings that contradict each other.
    """
    if memory is not None and memory <= 0:
        raise UserError(f"--memory {memory:g}: expected more than 0 GB per device")
    rehearsal = Rehearsal(config)
    if not rehearsal.steps:
        return None
    plan = rehearsal.plan()
    if memory is not None:
        _judge(plan, rehearsal, int(memory * GB))
    return plan


def _judge(plan: Plan, rehearsal: Rehearsal, memory: int) -> None:
    """Whether it fits, the largest batch that does, and if not, what would."""
    plan.memory = memory
    plan.fits = plan.peak <= memory
    count = rehearsal.most(memory)
    plan.budget = rehearsal.budget(count) if count else None
    if not plan.fits:
        plan.advice = list(_advise(plan, rehearsal, memory))


def _advise(plan: Plan, rehearsal: Rehearsal, memory: int) -> Iterator[dict[str, Any]]:
    """Changes that make it fit, each with what it then needs; nothing that was not computed."""

    def told(change: str, found: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if found is not None and found["budget"] is not None:
            change += f" {found['budget']['key']}={found['budget']['value']}"
        if found is not None:
            yield {"change": change.strip(), **found}

    known = rehearsal.task.faults(rehearsal.config)

    def allowed(changes: dict[str, Any]) -> bool:
        """Whether the task would train with these, as far as it would without."""
        return not set(rehearsal.task.faults(_with(rehearsal.config, changes))) - set(known)

    if plan.budget is not None:
        count = plan.budget["utterances"]
        yield from told("", {"needs": rehearsal.need([rehearsal.longest] * count), "budget": plan.budget})
    setting = rehearsal.setting
    kept = [("", rehearsal)]  # what a sharded run may begin from
    for changes in filter(allowed, _switches(rehearsal)):
        change = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
        other = _changed(rehearsal, changes)
        found = other.fitting(memory)
        yield from told(change, found)
        kept.append((f" {change}", other))
        if found is not None and found["budget"] is None:
            break  # what more could be changed is not needed
    if setting.kind == "cuda" and allowed(
        {"trainer.strategy": {"_target_": "voxzoo.tasks.distributed.strategies.FSDP2"}}
    ):
        yield from _sharded(kept, memory)
    sizes = {role: learning_bytes(part) for role, part in rehearsal.task.parts().items()}
    roles = sorted((role for role, size in sizes.items() if size), key=lambda role: -sizes[role])
    for number in range(1, len(roles)):  # parts to freeze, the largest first
        changes = {f"freeze.{role}": True for role in roles[:number]}
        if not allowed(changes):
            break
        other = _changed(rehearsal, changes)
        found = other.fitting(memory)
        if found is not None:
            yield from told(" ".join(f"freeze.{role}=true" for role in roles[:number]), found)
            break


def _sharded(kept: list[tuple[str, Rehearsal]], memory: int) -> Iterator[dict[str, Any]]:
    """The fewest devices over which the planned batches fit, with as few other changes as possible."""
    for change, rehearsal in kept:
        for devices in (n for n in _DEVICES if n > pieces(rehearsal.setting)):
            setting = rehearsal.setting.over("fsdp2", devices)
            if rehearsal.least(setting) > memory:
                continue
            needs = max(rehearsal.need(rows, setting) for rows in rehearsal.batches)
            if needs <= memory:
                yield {"change": f"trainer=fsdp2 trainer.devices={devices}{change}", "needs": needs, "budget": None}
                return


def _changed(rehearsal: Rehearsal, changes: dict[str, Any]) -> Rehearsal:
    return Rehearsal(_with(rehearsal.config, changes), rehearsal)


def _with(config: DictConfig, changes: dict[str, Any]) -> DictConfig:
    config = deepcopy(config)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True, merge=False)
    return config


def _switches(rehearsal: Rehearsal) -> Iterator[dict[str, Any]]:
    """Settings of the config that save memory, alone and together."""
    config, setting = rehearsal.config, rehearsal.setting
    half = {"trainer.precision": "bf16-true"} if setting.kind == "cuda" and setting.dtype is None else {}
    again = {RECOMPUTE: True} if not config.get(RECOMPUTE) else {}
    large = sum(p.numel() for p in rehearsal.task.parameters()) > _LARGE  # each question takes seconds
    if half and setting.autocast is None and not large:
        yield {"trainer.precision": "bf16-mixed"}
    if again and not (half and large):
        yield again
    if half and not (again and large):
        yield half
    if half and again:
        yield {**half, **again}
