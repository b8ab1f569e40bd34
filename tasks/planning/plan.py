"""What a run will take before it runs: memory per device, the batch budget that fits, steps and FLOPs.

Nothing here is a formula of an architecture. Parameters, gradients and optimizer states are counted on the task as it
is built; activations and FLOPs are those of one step on fake tensors (`simulation`), with the largest batches of the
real manifest where it is there. What FSDP2 cuts up and gathers follows `strategies.shard`. 1 GB is 10^9 bytes.

Letters: B batch, T frames, S subwords, U units, N samples, W devices.
"""

from __future__ import annotations

import math
import os
import resource
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ...components.errors import UserError
from ...components.layers.blocks import RECOMPUTE
from ...components.memory import memory_limit
from ...components.roles import Tokenizer
from ...components.types import Batch, Padded
from ...configs.bounds import count_devices, device_problem
from ...configs.build import build
from ...configs.targets import allow_list
from ..distributed.precision import precision_name
from ..distributed.strategies import units
from ..runs.assembly import assemble, set_up
from ..task import Task
from ..voices import made_up_languages
from .shapes import FakeTokenizer
from .simulation import Footprint, Kind, OptimizerFootprint, make_fake, simulate, simulate_optimizer, tensors_of

GB = 10**9
_TEXT_RATE, _UNIT_RATE, _SAMPLE_RATE = 4.0, 50, 16000  # a second of speech: subwords, units, samples
_PIECE = 4  # characters of a subword, where the vocabulary is not there yet
_CONTEXT = {1: 0.6, 2: 1.0}  # GB that CUDA (and NCCL, on several devices) keeps on each GPU
_DEVICES = (2, 4, 8, 16, 32, 64, 128)
_LARGE = 500_000_000  # parameters
_MOST = 1024  # utterances: a larger batch is no use to anyone


@dataclass(frozen=True)
class Sizes:
    """One utterance as a batch holds it.

    Attributes:
        seconds: of source audio as the batch plan counts it.
        spoken: seconds of target audio.
        transcript, source, target: token ids.
        units: unit ids, one per frame.
    """

    seconds: float
    spoken: float
    transcript: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    units: tuple[int, ...]


@dataclass
class Moment:
    """Bytes on each device at one time of a step, by what they are."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass
class Data:
    """What the training data says.

    Attributes:
        note: where the numbers come from, or why there are none.
        utterances, hours, target_tokens, steps: of an epoch; None where there is no manifest yet.
        guessed_tokens: whether tokens are guessed from letters, for there is no vocabulary yet.
        oversized: utterances that exceed the budget of a batch alone; each is a batch of its own.
    """

    note: str
    utterances: int | None = None
    hours: float | None = None
    target_tokens: int | None = None
    guessed_tokens: bool = False
    steps: int | None = None
    oversized: int = 0


@dataclass
class Plan:
    """One task on one kind of device.

    Attributes:
        strategy: one device, ddp, fsdp or fsdp2.
        device: cpu or cuda.
        devices: W, over all machines.
        precision: of the trainer.
        parameters, trainable: counts.
        frozen: part -> parameters that do not learn.
        optimizer: its class.
        states_per_parameter: bytes of optimizer states over bytes of trainable parameters.
        moments: name -> bytes by kind, at the times of a step that may be the fullest.
        batch: the largest batch: utterances, seconds of the longest, padded seconds and target tokens.
        longest: seconds of the longest utterance.
        casts: bytes of the activations that are copies of weights in lower precision.
        flops: of a step, over all devices and accumulated batches.
        data: see `Data`.
        memory: bytes of a device that were asked about, or None.
        fits: whether it fits; None where nothing was asked.
        budget: the largest batch budget that fits: key, value, utterances; None where even one does not fit.
        advice: what would make it fit, each computed.
    """

    strategy: str
    device: Kind
    devices: int
    precision: str
    parameters: int
    trainable: int
    frozen: dict[str, int]
    optimizer: str
    states_per_parameter: float
    moments: dict[str, Moment]
    batch: dict[str, float]
    longest: float
    casts: int
    flops: int
    data: Data
    memory: int | None = None
    fits: bool | None = None
    budget: dict[str, Any] | None = None
    advice: list[dict[str, Any]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(moment.total for moment in self.moments.values())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "moments": {n: m.parts for n, m in self.moments.items()}, "peak": self.peak}


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


class Setting:
    """Devices, strategy and precision of a config."""

    def __init__(self, config: DictConfig) -> None:
        trainer = config.trainer
        gpu = str(trainer.get("accelerator", "auto")) in ("gpu", "cuda") or (
            str(trainer.get("accelerator", "auto")) == "auto" and torch.cuda.is_available()
        )
        self.kind: Kind = "cuda" if gpu else "cpu"
        devices = trainer.get("devices", 1)
        if problem := device_problem(devices, "gpu" if gpu else "cpu"):
            raise UserError(f"trainer.devices: {problem}")
        self.devices = count_devices(devices, torch.cuda.device_count() if gpu else 1) * int(
            trainer.get("num_nodes") or 1
        )
        self.strategy = _strategy(trainer.get("strategy", "auto"), self.devices)
        self.options = trainer.get("strategy") if OmegaConf.is_config(trainer.get("strategy")) else {}
        self.precision = precision_name(trainer.get("precision"))
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        whole = {
            "bf16-true": torch.bfloat16,
            "16-true": torch.float16,
            "64-true": torch.float64,
        }
        self.autocast = mixed.get(self.precision)
        self.dtype = whole.get(self.precision)
        self.accumulate = int(trainer.get("accumulate_grad_batches") or 1)

    @property
    def sharded(self) -> bool:
        return self.strategy in ("fsdp", "fsdp2")

    def over(self, strategy: str, devices: int) -> Setting:
        """The same on other devices."""
        other = copy(self)
        other.strategy, other.devices, other.options = strategy, devices, {}
        return other


def _strategy(node: Any, devices: int) -> str:
    name = str(node.get("_target_", "")).rpartition(".")[2] if OmegaConf.is_config(node) else str(node)
    low = name.lower()
    if low.startswith(("fsdp2", "modelparallel")):
        return "fsdp2"
    if low.startswith("fsdp"):
        return "fsdp"
    return "ddp" if low.startswith("ddp") or devices > 1 else "one device"


class Rehearsal:
    """A task on fake tensors, and the batches it would see; footprints are made once for each question."""

    def __init__(self, config: DictConfig, like: Rehearsal | None = None) -> None:
        self.config = config
        self.setting = Setting(config)
        self.allowed = allow_list(config)
        self.frontend = build(config.frontend, allowed=self.allowed)
        self.tokenizer = _tokenizer(config, self.allowed)
        self.task: Task = assemble(config, self.allowed, weights="fake", tokenizer=self.tokenizer)
        self.steps = not hasattr(self.task, "run_once")
        if not self.steps:
            return
        set_up(self.task, config, blocks={RECOMPUTE: config.get(RECOMPUTE)}).train()
        self.fake = make_fake(self.task, self.setting.dtype)
        self.optimizer = self._optimizer(like)
        t2u = self.task.parts().get("t2u")
        if t2u is not None and self.tokenizer is not None:  # its table was on the meta device
            t2u.set_characters(self.tokenizer.piece_characters(), self.tokenizer.pieces())  # pyright: ignore
        self._footprints: dict[Any, tuple[Footprint, int]] = {}
        self.longest: Sizes  # what a budget is planned for
        self.batches: list[list[Sizes]]  # that may be the largest
        if like is None:
            self.data = self._read_data()
        else:
            self.longest, self.batches, self.data = like.longest, like.batches, like.data

    def _optimizer(self, like: Rehearsal | None) -> OptimizerFootprint:
        """Of this task, or what it is of another by the bytes that learn."""
        if like is None:
            optimizer = build(self.config.optim, allowed=self.allowed)
            return simulate_optimizer(optimizer, self.task, self.setting.kind)
        rate = learning_bytes(self.task) / learning_bytes(like.task)
        return OptimizerFootprint(int(like.optimizer.states * rate), int(like.optimizer.step * rate))

    # Data

    def _read_data(self) -> Data:
        config, needs = self.config, frozenset(self.task.needs)
        taken = self.task.longest_seconds or math.inf
        length = min(float(config.data.get("max_seconds") or 30), taken)
        try:
            data = build(config.data, allowed=self.allowed, tokenizer=self.tokenizer, frontend=None)
        except UserError:
            return self._assume(length, "no manifest is given (data.train)")
        if data.corpus is not None and not data.corpus.is_prepared:
            return self._assume(length, "the built-in corpus is not made yet (`voxzoo train` makes it)")
        if data.units_path is None or not Path(data.units_path).is_file():
            needs -= {"units"}  # a stage that has not run makes them; they have the length of the speech
        data.longest_seconds = self.task.longest_seconds
        try:
            items, batches, oversized = data.plan(needs, self.setting.devices)
        except (UserError, OSError) as error:
            return self._assume(length, f"the training data cannot be read: {error}")
        slowest = min(data.speed_perturb, default=1.0)
        units = data._read_units() if "units" in needs else {}

        def sizes(index: int) -> Sizes:
            item = items[index]
            spoken = data._measure(item.tgt_audio) if "target_speech" in needs and item.tgt_audio else 0.0
            seconds = min((item.duration or 0.0) / slowest, taken)
            return self._sizes(seconds, spoken or seconds, item, units.get(item.id))

        def padded(batch: Sequence[int], of: Callable[[int], float]) -> float:
            return max(of(i) for i in batch) * len(batch)

        # By columns: an utterance is made of a row each time it is touched.
        seconds = np.nan_to_num(items.durations()).tolist().__getitem__
        letters = items.characters().tolist().__getitem__
        most = [
            max(batches, key=lambda batch: (padded(batch, seconds), padded(batch, letters))),
            max(batches, key=lambda batch: (padded(batch, letters), padded(batch, seconds))),
        ]
        self.batches = [[sizes(i) for i in batch] for batch in (most if most[0] is not most[1] else most[:1])]
        self.longest = sizes(max(range(len(items)), key=lambda i: (seconds(i), letters(i))))
        tokens = None
        if "target" in needs and self.tokenizer is not None:
            tokens = sum(len(self.tokenizer.encode(item.tgt_text)) + 1 for item in items)
        return Data(
            f"{data.corpus.folder if data.corpus is not None else data._paths['train']}",
            utterances=len(items),
            hours=math.fsum(seconds(i) for i in range(len(items))) / 3600,
            target_tokens=tokens,
            guessed_tokens=isinstance(self.tokenizer, GuessedTokenizer),
            steps=max(len(batches) // self.setting.devices // self.setting.accumulate, 1),
            oversized=len(oversized),
        )

    def _assume(self, length: float, why: str) -> Data:
        """Batches of utterances of the greatest length, as many as the budget lets through."""
        self.longest = self._sizes(length, length)
        data = self.config.data
        count = int(data.get("batch_size") or _MOST)
        if data.get("batch_seconds"):
            count = min(count, int(data.batch_seconds / length))
        if data.get("batch_tokens"):
            count = min(count, int(data.batch_tokens / len(self.longest.target)))
        self.batches = [[self.longest] * max(count, 1)]
        over = "" if count else ", each of which exceeds the budget of a batch alone"
        return Data(f"{why}: utterances of {length:g} s are assumed{over}")

    def _sizes(self, seconds: float, spoken: float, item: Any = None, units: Any = None) -> Sizes:
        tokenizer = self.tokenizer
        words: Any = ((), (), ())
        if tokenizer is not None and item is not None:
            to = item.tgt_lang if tokenizer.knows(item.tgt_lang) else ""
            since = item.src_lang if tokenizer.knows(item.src_lang) else ""
            pieces = tokenizer.encode(item.src_text)
            words = (
                pieces,
                tokenizer.source(item.src_text, since) if since else [*pieces, 0, 0],
                tokenizer.target(item.tgt_text, to, since, item.task) if to else [*tokenizer.encode(item.tgt_text), 0],
            )
        elif tokenizer is not None:
            pieces = _ids(math.ceil(_TEXT_RATE * seconds), tokenizer.vocab_size)
            words = (pieces, [*pieces, 0, 0], [*pieces, 0, 0, 0])
        if units is None:
            number = int(self.config.unit_extractor.get("num_units") or 2) if "unit_extractor" in self.config else 2
            units = [place // 2 % number for place in range(int(_UNIT_RATE * spoken))]  # runs of two
        transcript, source, target = (tuple(ids) for ids in words)
        return Sizes(seconds, spoken, transcript, source, target, tuple(int(unit) for unit in units))

    def batch(self, rows: Sequence[Sizes], dtype: torch.dtype | None = None) -> Batch:
        """Fake speech, real ids and lengths; what the task does not read is left out."""
        needs = self.task.needs

        def empty(*shape: int) -> Tensor:
            with self.fake:
                return torch.empty(*shape, dtype=dtype or torch.float32, device="cpu")

        def ids(name: str) -> Padded | None:
            if name not in needs:
                return None
            return Padded.from_list([torch.tensor(getattr(row, name), dtype=torch.int64) for row in rows])

        def audio(lengths: Sequence[int], *width: int) -> Padded:
            return Padded(empty(len(rows), max(lengths), *width), torch.tensor(lengths))

        speech = None
        if "speech" in needs:
            rate, width = getattr(self.frontend, "sample_rate", _SAMPLE_RATE), self.frontend.output_dim
            samples = [int(rate * row.seconds) for row in rows]
            frames = [self.frontend.output_length(n) for n in samples]
            speech = audio(frames, width) if width > 1 else audio(samples)
        return Batch(
            ids=("",) * len(rows),
            task=(sorted(self.task.modes)[0],) * len(rows) if self.task.modes else (),
            tgt_lang=made_up_languages(self.task, len(rows)),
            speech=speech,
            transcript=ids("transcript"),
            source=ids("source"),
            target=ids("target"),
            units=ids("units"),
            target_speech=audio([int(_SAMPLE_RATE * r.spoken) for r in rows]) if "target_speech" in needs else None,
            speaker=torch.zeros(len(rows), dtype=torch.int64) if "speaker" in needs else None,
            seconds=torch.tensor([row.seconds for row in rows]),
        )

    # Footprints

    def footprint(self, rows: Sequence[Sizes]) -> tuple[Footprint, int]:
        """What a step on these utterances takes, and the bytes of the batch itself."""
        key = tuple(map(id, rows))  # all of them are kept as long as this is
        if key not in self._footprints:
            setting = self.setting
            batch = self.batch(rows, setting.dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of autocast without a GPU
                found = simulate(
                    self.task,
                    self.fake,
                    batch,
                    setting.kind,
                    autocast=setting.autocast,
                    accumulate=setting.accumulate > 1,
                )
            self._footprints[key] = found, sum(x.nbytes for x in tensors_of(batch))
        return self._footprints[key]

    def moments(self, found: Footprint, batch: int, setting: Setting | None = None) -> dict[str, Moment]:
        """Bytes on each device when the backward pass is fullest, and when the optimizer steps.

        Args:
            setting: other devices.
        """
        setting = setting or self.setting
        learn = [p for p in self.task.parameters() if p.requires_grad]
        whole = sum(p.nbytes for p in learn)
        cut = _cut(setting)
        gradients = sum(_share(p, cut) for p in learn)
        rate = gradients / max(whole, 1)
        steady = {
            "parameters": sum(_share(p, cut) for p in self.task.parameters()),
            "buffers": sum(b.nbytes for b in self.task.buffers()),
            "gradients": gradients,
            "optimizer states": int(self.optimizer.states * rate),
            "batch": batch,
        }
        if setting.strategy == "ddp" and not setting.options.get("gradient_as_bucket_view", False):
            steady["gradient buckets"] = gradients
        if cut > 1:
            steady["gathered weights"] = self._gathered(setting)
        steady.update(_base(setting))
        return {
            "backward pass": Moment({**steady, "activations": found.peak - whole if cut == 1 else found.activations}),
            "optimizer step": Moment(
                {**steady, "gathered weights": 0, "optimizer step": int(self.optimizer.step * rate)}
            ),
        }

    def _gathered(self, setting: Setting) -> int:
        """Whole weights of the units of `strategies.shard`. The rest unit and its gradients are there all the time; of
        the layers the one at work, the next one, and the gradients of the last one while they are scattered."""
        layers = [list(layer.parameters()) for layer in units(self.task)]
        inside = {id(p) for layer in layers for p in layer}
        rest = [p for p in self.task.parameters() if id(p) not in inside]
        sizes = [sum(p.nbytes for p in layer) for layer in layers]
        gradients = [sum(p.nbytes for p in layer if p.requires_grad) for layer in layers]
        at_once = sum(sizes) if setting.options.get("reshard_after_forward") is False else 2 * max(sizes, default=0)
        return (
            sum(p.nbytes for p in rest)
            + sum(p.nbytes for p in rest if p.requires_grad)
            + at_once
            + max(gradients, default=0)
        )

    # The plan

    def plan(self) -> Plan:
        setting, task = self.setting, self.task
        found = [(rows, *self.footprint(rows)) for rows in self.batches]
        rows, footprint, size = max(found, key=lambda one: one[1].peak)
        learn = learning_bytes(task)
        owned = {id(p) for part in task.parts().values() for p in part.parameters()}
        modules = task.parts()
        frozen = {
            role: sum(p.numel() for p in part.parameters() if not p.requires_grad) for role, part in modules.items()
        }
        heads = sum(p.numel() for p in task.parameters() if id(p) not in owned and not p.requires_grad)
        frozen = {role: count for role, count in {**frozen, "(heads)": heads}.items() if count}
        return Plan(
            strategy=setting.strategy,
            device=setting.kind,
            devices=setting.devices,
            precision=setting.precision,
            parameters=sum(p.numel() for p in task.parameters()),
            trainable=sum(p.numel() for p in task.parameters() if p.requires_grad),
            frozen=frozen,
            optimizer=str(self.config.optim._target_).rpartition(".")[2],
            states_per_parameter=self.optimizer.states / max(learn, 1),
            moments=self.moments(footprint, size),
            batch={
                "utterances": len(rows),
                "seconds": max(row.seconds for row in rows),
                "padded_seconds": max(row.seconds for row in rows) * len(rows),
                "target_tokens": max(len(row.target) for row in rows) * len(rows),
            },
            longest=self.longest.seconds,
            casts=footprint.casts,
            flops=footprint.flops * setting.devices * setting.accumulate,
            data=self.data,
        )

    def need(self, rows: Sequence[Sizes], setting: Setting | None = None) -> int:
        """Bytes on each device with these utterances in a batch."""
        return max(m.total for m in self.moments(*self.footprint(rows), setting).values())

    def most(self, memory: int, setting: Setting | None = None) -> int:
        """How many of the longest utterances fit into a batch, up to all that a device has; 0 where one does not.

        Memory grows nearly evenly with their number, from what is there without any: a line through two numbers says
        which, and a step of so many checks it.
        """
        if self.least(setting) > memory:
            return 0

        def need(count: int) -> int:
            return self.need([self.longest] * count, setting)

        planned = len(self.batches[0])
        most = _MOST if self.data.utterances is None else max(self.data.utterances // self.setting.devices, planned)
        known = {0: self.least(setting), planned: need(planned)}
        low, high = 0, planned
        for _ in range(4):
            slope = max((known[high] - known[low]) / (high - low), 1.0)
            fitting = low + int((memory - known[low]) / slope)
            found = max(min(fitting, most), 1)
            if found in known:
                break
            if self.setting.kind == "cpu" and found > 2 * planned:
                # Attention is simulated block by block there: hundreds of utterances would take a minute.
                return min(int(0.98 * fitting), most)
            known[found] = need(found)
            low, high = sorted(sorted(known, key=lambda count: abs(known[count] - memory))[:2])
        return max((count for count in known if count and known[count] <= memory), default=0)

    def least(self, setting: Setting | None = None) -> int:
        """Bytes on each device without any batch."""
        before = learning_bytes(self.task)
        empty = self.moments(Footprint(peak=before), 0, setting)
        return max(m.total for m in empty.values())

    def fitting(self, memory: int, setting: Setting | None = None) -> dict[str, Any] | None:
        """What it needs with the batches as they are planned or, where these do not fit, with the largest that does."""
        if self.least(setting) > memory:
            return None
        needs = max(self.need(rows, setting) for rows in self.batches)
        if needs <= memory:
            return {"needs": needs, "budget": None}
        count = self.most(memory, setting)
        if not count:
            return None
        return {"needs": self.need([self.longest] * count, setting), "budget": self.budget(count)}

    def budget(self, count: int) -> dict[str, Any]:
        """A number of the longest utterances in the terms of the config."""
        data, longest = self.config.data, self.longest
        key, value = "batch_size", count
        if data.get("batch_seconds") and longest.seconds:
            key, value = "batch_seconds", int(count * longest.seconds + 1e-6)
        elif data.get("batch_tokens"):
            key, value = "batch_tokens", count * len(longest.target)
        found = {"key": f"data.{key}", "value": value, "utterances": count, "seconds": longest.seconds}
        if key != "batch_size" and data.get("batch_size") and count > data.batch_size:
            found["batch_size"] = count
        return found


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
        for devices in (n for n in _DEVICES if n > _cut(rehearsal.setting)):
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


def _cut(setting: Setting) -> int:
    return setting.devices if setting.sharded else 1


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


def learning_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that learn."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad)


def _share(parameter: Tensor, devices: int) -> int:
    """Bytes of a parameter on each device, cut along its first dimension."""
    if devices == 1 or not parameter.dim():
        return parameter.nbytes
    return parameter.nbytes // max(parameter.shape[0], 1) * math.ceil(parameter.shape[0] / devices)


def _base(setting: Setting) -> dict[str, int]:
    """What a process takes before it has a model."""
    if setting.kind == "cuda":
        return {"CUDA context": int(_CONTEXT[min(setting.devices, 2)] * GB)}
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def memory_here(kind: Kind) -> int | None:
    """Bytes of the GPU that is here, or that this process may have on this machine."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return memory_limit()


def _ids(count: int, size: int) -> list[int]:
    """Ids that are no special tokens."""
    return [4 + place % max(size - 8, 1) for place in range(count)]


class GuessedTokenizer(FakeTokenizer):
    """Counts tokens by letters, where the vocabulary is not trained yet."""

    def encode(self, text: str) -> list[int]:
        return _ids(math.ceil(len(text) / _PIECE), self.vocab_size)

    def piece_characters(self) -> Tensor:
        """(V, 4) int64: each piece has as many characters as `encode` assumes."""
        return torch.ones(self.vocab_size, _PIECE, dtype=torch.int64, device="cpu")


def _tokenizer(config: DictConfig, allowed: tuple[str, ...]) -> Tokenizer | None:
    """The tokenizer where its file is there, or one that guesses."""
    if "tokenizer" not in config.task:
        return None
    model = config.tokenizer.get("model")
    if model and Path(str(model)).exists() and config.tokenizer.languages:
        return build(config.tokenizer, allowed=allowed)
    return GuessedTokenizer(int(config.tokenizer.vocab_size), config.tokenizer.languages or ())
