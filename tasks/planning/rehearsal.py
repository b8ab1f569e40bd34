"""A step of a run before it runs: the task on fake tensors, with the largest batches of its data.

Letters: B batch, T frames, S subwords, U units, N samples, W devices.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ...components.errors import UserError
from ...components.layers.blocks import RECOMPUTE
from ...components.roles import Tokenizer
from ...components.types import Batch, Padded
from ...configs.build import build
from ...configs.optimisation import factory
from ...configs.targets import allow_list
from ...datamodules.collator import PREPARED
from ...datamodules.selection import Items
from ..distributed.strategies import units
from ..runs.assembly import assemble, set_up
from ..task import Task
from ..voices import made_up_languages
from .figures import Data, Moment, Plan, Sizes
from .setting import Setting, base_memory, pieces
from .shapes import CODE_RATE, FakeTokenizer, streams_of, unit_rate
from .simulation import Footprint, OptimizerFootprint, make_fake, simulate, simulate_optimizer, tensors_of

_TEXT_RATE = 4.0  # of a second of speech

_SAMPLE_RATE = 16000

_PIECE = 4  # characters of a subword, where the vocabulary is not there yet

_MOST = 1024  # utterances: a larger batch is no use to anyone


class Rehearsal:
    """A task on fake tensors, and the batches it would see; footprints are made once for each question."""

    def __init__(self, config: DictConfig, like: Rehearsal | None = None) -> None:
        self.config = config
        self.setting = Setting(config)
        self.allowed = allow_list(config)
        self.frontend = build(config.frontend, allowed=self.allowed)
        self.tokenizer = tokenizer_of(config, self.allowed)
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
            optimizer = factory(self.config.optim, self.allowed)
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
        except UserError as error:
            manifests = str(config.data.get("_target_")).endswith(".SpeechTranslationData")
            return self._assume(length, "no manifest is given (data.train)" if manifests else str(error))
        unprepared = data.unprepared()
        if unprepared is not None:
            return self._assume(length, unprepared)
        needs -= unmade(data)
        data.longest_seconds = self.task.longest_seconds
        try:
            items, batches, oversized = data.plan(needs, self.setting.devices)
        except (UserError, OSError) as error:
            return self._assume(length, f"the training data cannot be read: {error}")
        units = data.read_units() if "units" in needs else {}

        def sizes(index: int) -> Sizes:
            item = items[index]
            spoken = data.target_seconds(item) if "target_speech" in needs else 0.0
            seconds = min((item.duration or 0.0) / data.slowest, taken)
            return self._sizes(seconds, spoken or seconds, item, units.get(item.id))

        def padded(batch: Sequence[int], of: Callable[[int], float]) -> float:
            return max(of(i) for i in batch) * len(batch)

        lengths, characters = _columns(items)
        seconds, letters = lengths.__getitem__, characters.__getitem__
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
            data.source(),
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
            units = [place // 2 % number for place in range(int(unit_rate(self.task) * spoken))]  # runs of two
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
        codes = None
        if needs & {"codes", "source_codes"}:
            counts = torch.tensor([int(CODE_RATE * row.spoken) for row in rows])
            codes = Padded(torch.zeros(len(rows), int(counts.max()), streams_of(self.task), dtype=torch.int64), counts)
        return Batch(
            ids=("",) * len(rows),
            task=(sorted(self.task.modes)[0],) * len(rows) if self.task.modes else (),
            tgt_lang=made_up_languages(self.task, len(rows)),
            speech=speech,
            transcript=ids("transcript"),
            source=ids("source"),
            target=ids("target"),
            units=ids("units"),
            source_units=ids("units") if "source_units" in needs else None,
            codes=codes if "codes" in needs else None,
            source_codes=codes if "source_codes" in needs else None,
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
        cut = pieces(setting)
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
        steady.update(base_memory(setting))
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


def _columns(items: Sequence[Any]) -> tuple[list[float], list[int]]:
    """Seconds of the source speech, 0 for text, and characters of the longer side, of each utterance."""
    if isinstance(items, Items):  # by columns: an utterance is made of a row each time it is touched
        return np.nan_to_num(items.durations()).tolist(), items.characters().tolist()
    return [item.duration or 0.0 for item in items], [max(len(item.src_text), len(item.tgt_text)) for item in items]


def learning_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that learn."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad)


def _share(parameter: Tensor, devices: int) -> int:
    """Bytes of a parameter on each device, cut along its first dimension."""
    if devices == 1 or not parameter.dim():
        return parameter.nbytes
    return parameter.nbytes // max(parameter.shape[0], 1) * math.ceil(parameter.shape[0] / devices)


def _ids(count: int, size: int) -> list[int]:
    """Ids that are no special tokens."""
    return [4 + place % max(size - 8, 1) for place in range(count)]


def unmade(data: Any) -> set[str]:
    """Fields whose files are not there yet: a stage that has not run makes them; they have the length of the speech."""
    paths = {"units": data.units_path, **getattr(data, "prepared_paths", {})}
    return {name for name in PREPARED if not paths.get(name) or not Path(paths[name]).is_file()}


class GuessedTokenizer(FakeTokenizer):
    """Counts tokens by letters, where the vocabulary is not trained yet."""

    def encode(self, text: str) -> list[int]:
        return _ids(math.ceil(len(text) / _PIECE), self.vocab_size)

    def piece_characters(self) -> Tensor:
        """(V, 4) int64: each piece has as many characters as `encode` assumes."""
        return torch.ones(self.vocab_size, _PIECE, dtype=torch.int64, device="cpu")


def tokenizer_of(config: DictConfig, allowed: tuple[str, ...]) -> Tokenizer | None:
    """The tokenizer where its file is there, or one that guesses."""
    if "tokenizer" not in config.task:
        return None
    model = config.tokenizer.get("model")
    if model and Path(str(model)).exists() and config.tokenizer.languages:
        return build(config.tokenizer, allowed=allowed)
    return GuessedTokenizer(int(config.tokenizer.vocab_size), config.tokenizer.languages or ())
