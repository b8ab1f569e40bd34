"""What every task must satisfy, as a tool: `check_task`.

Letters: B batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..components.contract.outcome import Check, NotAsked, Outcome, collect, require
from ..components.errors import UserError, few
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from ..configs.build import build
from ..configs.check import require_valid
from ..configs.compose import compose, origins
from ..configs.targets import allow_list, class_of
from ..datamodules.codes import line_of
from .runs.run import load_run
from .task import Task
from .training.train import build_for_training, prepare_data
from .units import Column, extract_units, fit_units, read_units

_TOLERANCE = 1e-4  # of sums in float32, whose order depends on the batch
_SHORT = SearchOptions(beam_size=1, max_length=8)
_PARTS = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "tokenizer", "data")
_UNITS = ("unit_extractor", "t2u", "vocoder")
_SPEECH_LM = ("speech_lm", "stream_lm", "codec")
_SIDES: dict[str, Column] = {"units": "tgt_audio", "source_units": "audio"}
_ROWS = 4


def check_task(task: Task, batches: Sequence[Batch]) -> list[Outcome]:
    """Check a task against what training, validation and serving ask of it.

    Args:
        task: with small parts, on the CPU; built by a config, or what is about checkpoints is not asked. Its weights,
            gradients and mode are left as they are.
        batches: of at least two rows each, as its data give them; `tiny_task` makes both.

    Raises:
        ContractError: a line for each broken check.
    """
    outcomes = examine_task(task, batches)
    require(type(task).__name__, outcomes)
    return outcomes


def examine_task(task: Task, batches: Sequence[Batch]) -> list[Outcome]:
    """As `check_task`; what is broken is said in the outcomes and not raised."""
    training, state = task.training, {name: value.clone() for name, value in task.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        try:
            return collect(_Contract(task, batches).checks())
        finally:
            task.load_state_dict(state)
            task.train(training)
            task.zero_grad()


def check_choice(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> tuple[type, list[Outcome]]:
    """Check the task that `task=CHOICE` among the overrides names, as `tiny_task` builds it.

    Returns:
        Its class, and what was found.

    Raises:
        UserError: as `tiny_task`.
    """
    task, batches = tiny_task(overrides, config_dirs)
    return type(task), examine_task(task, batches)


def tiny_task(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> tuple[Task, list[Batch]]:
    """A task of a config with the tiny parts, and two batches of the tiny corpus, which is made in the cache where it
    is not there.

    Args:
        overrides: as for `voxzoo train`; they win over the tiny parts.
        config_dirs: further folders of YAML groups.

    Raises:
        UserError: a faulty config, or a task without gradient steps.
    """
    named = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
    with tempfile.TemporaryDirectory() as folder:
        words = [f"root={folder}", *(f"{role}=tiny" for role in _PARTS if role not in named), *overrides]
        folders = [str(each) for each in config_dirs]
        config = compose(words, config_dirs=folders)
        found: Any = class_of(config.task, config)
        if found is not None and {"t2u", "vocoder", "unit_extractor"} & {*getattr(found, "roles", ())}:
            more = [f"{role}=tiny" for role in _UNITS if role not in named]
            if "discriminator" in found.roles:
                more = [*(word for word in more if not word.startswith("vocoder=")), "discriminator=tiny"]
                more += [] if "vocoder" in named else ["vocoder=tiny_istft"]
            if "speech_lm" in found.roles:
                # Speech goes in as it is; an encoder has nothing to do.
                more += [f"{role}=tiny" for role in _SPEECH_LM if role not in named]
                words = ["frontend=raw" if word == "frontend=tiny" else word for word in words]
            words = [*words[: len(_PARTS) + 1], *more, *words[1:]]
            config = compose(words, config_dirs=folders)
        elif found is not None and "codec" in getattr(found, "roles", ()):
            more = [word for word in ("codec=tiny", "discriminator=tiny_ms_stft") if word.split("=")[0] not in named]
            words = [*words, *more]
            config = compose(words, config_dirs=folders)
        require_valid(config, origins(words, config_dirs=folders))
        if hasattr(class_of(config.task, config), "run_once"):
            raise UserError(f"{config.task._target_} takes no gradient steps: there is no contract for it")
        data = prepare_data(config)
        fitted: Mapping[str, Tensor] = {}
        if found is not None and "units" in found.needs:
            extractor = build(config.unit_extractor, allowed=allow_list(config))
            rows = list(data.rows("train"))
            fit_units(extractor, rows)
            for name, column in _SIDES.items():
                if name in found.needs:
                    extract_units(extractor, rows, column, Path(folder) / f"{name}.jsonl")
                    config.data[name] = str(Path(folder) / f"{name}.jsonl")
            if "codes" in found.needs:
                _prepare_codes(config, rows, Path(folder))
            data, fitted = prepare_data(config), extractor.state_dict()
        torch.manual_seed(int(config.seed))
        task = build_for_training(config, Path(config.run_dir))
        if fitted and "unit_extractor" in task.parts():
            task.parts()["unit_extractor"].load_state_dict(fitted)
        data.needs, data.longest_seconds = task.needs, task.longest_seconds
        asked = next((mode for mode in ("s2tt", "t2tt", "asr", "s2st") if mode in task.modes), "s2tt")
        wanted = data.utterances("train", tasks=[asked], needs=task.needs)
        collate = data.collator(task.needs | task.serving_needs())
        return task, [collate([wanted[i] for i in range(n, n + _ROWS)]) for n in (0, _ROWS)]


def _prepare_codes(config: Any, rows: Sequence[Any], folder: Path) -> None:
    """Codes of all rows, drawn at random, three frames for two units: a tiny codec would give no better ones."""
    draws = np.random.default_rng(0)
    streams, size = int(config.stream_lm.get("num_streams") or 1), int(config.speech_lm.codebook_size)
    for name, units in (("codes", "units"), ("source_codes", "source_units")):
        with open(folder / f"{name}.jsonl", "w") as file:
            for row, found in read_units(folder / f"{units}.jsonl"):
                file.write(line_of(row, draws.integers(0, size, (3 * len(found) // 2 + 1, streams))))
        config.data[name] = str(folder / f"{name}.jsonl")


class _Contract:
    """The checks of one task."""

    def __init__(self, task: Task, batches: Sequence[Batch]) -> None:
        if not batches or min(map(len, batches)) < 2:
            raise UserError("check_task needs at least one batch, each of two rows or more")
        self.task, self.batches = task, batches
        self.name = type(task).__name__

    def checks(self) -> Iterator[Check]:
        yield "runs", self.runs
        yield "kinds", self.kinds
        yield "keys", self.keys
        yield "sums", self.sums
        yield "gradients", self.gradients
        yield "predictions", self.predictions
        yield "checkpoint", self.checkpoint

    def measure(self, batch: Batch, seed: int = 0) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        torch.manual_seed(seed)  # crops and dropout
        return self.task.measured(batch)

    def variants(self) -> Iterator[tuple[str, Batch]]:
        """Batches that data may bring."""
        first = self.batches[0]
        for number, batch in enumerate(self.batches):
            yield f"batch {number}", batch
        yield "a batch of one row", select(first, [0])
        if first.transcript is not None:
            yield "a batch without transcripts", replace(first, transcript=_emptied(first.transcript))
        if first.target is not None and self.task.tokenizer is not None:
            yield "a batch of empty texts", replace(first, target=_empty_target(first, self.task.tokenizer))

    def runs(self) -> None:
        self.task.train()
        self.task.measure(self.batches[0])

    def kinds(self) -> str | None:
        """Losses and statistics are what they should be: sums with a gradient, and numbers."""
        self.task.train()
        losses, statistics = self.measure(self.batches[0])
        if not losses and self.task.modes:
            return "measure returns no loss: nothing would be learned"
        for name, value in {**losses, **statistics}.items():
            for part in ("total", "count"):
                tensor = getattr(value, part)
                if not isinstance(tensor, Tensor) or tensor.dim():
                    shape = f"of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
                    return f"{name}.{part} is {shape} instead of a tensor of shape (): sum over the batch"
        for name, value in losses.items():
            if not value.total.requires_grad and not self.task.frozen:
                return (
                    f"the loss {name!r} has no gradient, so it would only shift valid/loss: what is only counted is a "
                    f"Statistic, returned in the second map of measure"
                )
            if float(value.count) <= 0:
                return f"the loss {name!r} counts {float(value.count):g} of a batch of {len(self.batches[0])} rows"
        return None

    def keys(self) -> str | None:
        """The same keys for every batch, in training and validation: ranks and steps add them up by name."""
        usual: tuple[list[str], list[str]] | None = None
        for words, batch in self.variants():
            for training in (True, False):
                self.task.train(training)
                with torch.set_grad_enabled(training):
                    losses, statistics = self.measure(batch)
                keys = (list(losses), list(statistics))
                usual = usual or keys
                for kind, found, expected in zip(("losses", "statistics"), keys, usual, strict=True):
                    if found != expected:
                        return (
                            f"the {kind} of {words}{'' if training else ' in validation'} are {_listed(found)}, "
                            f"of batch 0 {_listed(expected)}: return the same keys in the same order for every batch "
                            "(Loss.zero where there is nothing to count)"
                        )
                for name, value in {**losses, **statistics}.items():
                    if not bool(torch.isfinite(value.total)):
                        return f"{name} of {words} is {float(value.total)}: rows that cannot count must add nothing"
        return None

    def sums(self) -> str | None:
        """A batch that is cut in two gives the same sums: so do ranks and accumulated batches."""
        self.task.eval()
        for batch in self.batches:
            half = len(batch) // 2
            parts = [select(batch, list(range(half))), select(batch, list(range(half, len(batch))))]
            with torch.no_grad():
                whole, again = (_flat(self.measure(batch, seed)) for seed in (0, 1))
                first, second = (_flat(self.measure(part)) for part in parts)
            for name, value in whole.items():
                together = first[name] + second[name]
                words = f"of {len(batch)} rows {{}} is {{:.6g}}, of the same rows in two batches {{:.6g}}"
                if _far(together.count, value.count):
                    return f"{name}: " + words.format("the count", float(value.count), float(together.count)) + _SUMS
                drawn = _far(again[name].total, value.total)  # crops: another draw gives another sum
                if not drawn and _far(together.total, value.total):
                    return f"{name}: " + words.format("the total", float(value.total), float(together.total)) + _SUMS
        return None

    def gradients(self) -> str | None:
        """Into every parameter that learns, from every batch, and into no other."""
        self.task.train()
        for words, batch in self.variants():
            if words == "a batch of empty texts":
                continue
            self.task.zero_grad(set_to_none=True)
            self.task.weighted(self.measure(batch)[0]).backward()
            missing = [n for n, p in self.task.named_parameters() if p.requires_grad and p.grad is None]
            if missing:
                return (
                    f"{few(missing, 3)} {'has' if len(missing) == 1 else 'have'} no gradient from {words}: several "
                    "processes would wait for it; use it for every batch, or take it out by requires_grad_(False)"
                )
            for name, parameter in self.task.named_parameters():
                if not parameter.requires_grad and parameter.grad is not None:
                    return f"{name} is frozen, but has a gradient"
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return f"{name}: the gradient from {words} is not finite"
        if not any(parameter.requires_grad for parameter in self.task.parameters()):
            return "no parameter learns"
        return None

    def predictions(self) -> str | None:
        """One for each row, in order, whatever stands beside it."""
        if not self.task.modes:
            raise NotAsked("it serves no task")
        self.task.eval()
        batch = self.batches[0]
        order = list(reversed(range(len(batch))))
        found = self._predict(batch)
        if not isinstance(found, list) or not all(isinstance(one, Prediction) for one in found):
            return f"predict returns {type(found).__name__} instead of a list of Prediction"
        if [one.id for one in found] != list(batch.ids):
            got, ids = few([one.id for one in found], 4), few(list(batch.ids), 4)
            return f"predict gives {len(found)} predictions, of {got}, for the rows {ids}: one each, in order"
        turned = self._predict(select(batch, order))
        for one, number in zip(turned, order, strict=True):
            if (one.id, one.text, one.units) != (found[number].id, found[number].text, found[number].units):
                return f"the prediction of {found[number].id} depends on the order of the batch"
        return None

    def _predict(self, batch: Batch) -> Any:
        torch.manual_seed(0)
        asked = batch.task[0] if batch.task and batch.task[0] in self.task.modes else sorted(self.task.modes)[0]
        return self.task.predict(batch, task=asked, options=_SHORT)

    def checkpoint(self) -> str | None:
        """What is saved builds the same task again."""
        if not self.task.config:
            raise NotAsked("it was built by hand, so that no config says how to build it again (`tiny_task` does)")
        self.task.eval()
        content: dict[str, Any] = {"state_dict": self.task.state_dict()}
        self.task.on_save_checkpoint(content)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.ckpt"
            torch.save(content, path)
            again = load_run(path, allow=self.task.config.get("allow") or ()).task
            if type(again) is not type(self.task):
                return f"a checkpoint is loaded as {type(again).__name__}"
            with torch.no_grad():
                before = _flat(self.measure(self.batches[0]))
                torch.manual_seed(0)
                after = _flat(again.eval().measured(self.batches[0]))
            for name, value in before.items():
                if name not in after or _far(after[name].total, value.total):
                    now = float(after[name].total) if name in after else float("nan")
                    return (
                        f"{name} is {float(value.total):.6g}, and {now:.6g} once saved and loaded: keep what the loss "
                        "depends on in parameters, buffers or constructor arguments"
                    )
        return None


_SUMS = ": return sums over rows, not means, and nothing that depends on the rows beside"


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The rows of a batch by number, in that order, padded anew."""
    changed: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Padded):
            parts = value.unpad()
            changed[item.name] = Padded.from_list([parts[row] for row in rows])
        elif isinstance(value, Tensor):
            changed[item.name] = value[list(rows)]
        elif value:
            changed[item.name] = tuple(value[row] for row in rows)
    return replace(batch, **changed)


def _emptied(padded: Padded) -> Padded:
    return Padded(padded.data[:, :0], torch.zeros_like(padded.lengths))


def _empty_target(batch: Batch, tokenizer: Any) -> Padded:
    """Texts without a piece: prefix and eos alone."""
    assert batch.target is not None
    rows = [row[[*range(tokenizer.prefix_length), -1]] for row in batch.target.unpad()]
    return Padded.from_list(rows, tokenizer.pad_id)


def _flat(measured: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
    return {**measured[0], **measured[1]}


def _far(one: Tensor, other: Tensor) -> bool:
    first, second = float(one), float(other)
    return abs(first - second) > _TOLERANCE * max(abs(first), abs(second), 1.0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
