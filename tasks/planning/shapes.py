"""What flows through a task: built on the meta device, run on fake tensors, in seconds and without weights.

Letters: B batch, T frames, S subwords, U units, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ...components.errors import UserError
from ...components.roles import Tokenizer
from ...components.types import Adapted, Batch, Judgement, Loss, Padded, Reconstruction, UnitOutput
from ...configs.build import build
from ...configs.followers import followers
from ...configs.optimisation import factory, make_schedule
from ...configs.targets import allow_list
from ..distributed.gradients import parameter_groups
from ..runs.assembly import assemble, set_up
from ..task import Task
from ..voices import made_up_languages, told_to_vocoder

# The calls of each role that a task makes while it trains.
_CALLS = {
    "speech_encoder": ("forward",),
    "adaptor": ("forward",),
    "text_seq2seq": ("encode", "decode"),
    "t2u": ("forward",),
    "vocoder": ("losses", "reconstruct", "forward"),
    "discriminator": ("forward",),
    "codec": ("reconstruct", "encode"),
    "unit_extractor": ("forward",),
    "speech_lm": ("decode",),
    "stream_lm": ("forward",),
}
_SECONDS = (5.0, 3.1)
_SUBWORDS = (14, 9)
CODE_RATE = 75  # codec frames a second of EnCodec, where no codec says it
_STEPS = 1000  # of a run that is counted in epochs


@dataclass
class Row:
    """One part: its class, what went in and came out, and its parameters."""

    part: str
    cls: str
    input: str = "not used in training"
    output: str = ""
    parameters: int = 0
    trainable: int = 0

    @property
    def state(self) -> str:
        if not self.parameters:
            return "no parameters"
        if self.trainable == self.parameters:
            return "trainable"
        return "frozen" if not self.trainable else f"{self.trainable:,} trainable"


def fake_task(config: DictConfig) -> Task:
    """The task of a config on the meta device, with a stand-in for its tokenizer. Raises UserError as `trace`."""
    tokenizer = None
    if "tokenizer" in config.task:
        tokenizer = FakeTokenizer(int(config.tokenizer.vocab_size), config.tokenizer.languages)
    task = assemble(config, allow_list(config), weights="fake", tokenizer=tokenizer)
    return set_up(task, config, blocks={}).train()


def trace(config: DictConfig, serving: bool = True, task: Task | None = None) -> list[Row]:
    """Build the task of a config on the meta device and push a fake batch through it.

    Args:
        config: composed.
        serving: also through what is for serving alone, such as the vocoder of a second pass.
        task: what `fake_task` made of the config, where that is there.

    Returns:
        One row per part, in the order of the data flow, then what belongs to the task itself (such as a CTC head).

    Raises:
        UserError: parts that do not fit; names the part, what it got and what it expects.
    """
    allowed = allow_list(config)
    task = fake_task(config) if task is None else task
    rows = {role: _row(role, part) for role, part in task.parts().items()}
    if not hasattr(task, "run_once"):
        for role, part in task.parts().items():
            _watch(role, part, rows[role])
        batch = fake_batch(task, build(config.frontend, allowed=allowed))
        try:
            losses, statistics = task.measured(batch)
            _require_monitor(task, config, [*losses, *statistics])
            if serving:
                _serve(task, batch, rows)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{type(task).__name__}: {_first_line(error)}") from error
        _make_steps(task, config, allowed)
    owned = sum(p.numel() for part in task.parts().values() for p in part.parameters())
    rest = sum(p.numel() for p in task.parameters()) - owned
    if rest:
        learn = sum(p.numel() for p in task.parameters() if p.requires_grad) - sum(r.trainable for r in rows.values())
        rows["task"] = Row("(heads)", type(task).__name__, "", "", rest, learn)
    return list(rows.values())


def _require_monitor(task: Task, config: DictConfig, names: Iterable[str]) -> None:
    """Refuse metrics that checkpoints, a schedule or early stopping follow and that no validation measures, as far as
    that can be known.

    Raises:
        UserError: there is no such metric.
    """
    logged = _logged_by_callbacks(config)
    if logged is None or type(task).on_validation_epoch_end is not Task.on_validation_epoch_end:
        return
    known = list(dict.fromkeys(["valid/loss", *(f"valid/{name}" for name in names if name != "loss"), *logged]))
    for follower in followers(config):
        if follower.monitor not in known:
            raise UserError(f"{follower.key}={follower.monitor}: validation measures {', '.join(known)}")


def _logged_by_callbacks(config: DictConfig) -> list[str] | None:
    """Names of what callbacks log of a validation; None where some are of elsewhere, which may log anything."""
    nodes = list((config.get("callbacks") or {}).values())
    if not all(str(node.get("_target_")).startswith("voxzoo.") for node in nodes):
        return None
    made = [build(node, allowed=allow_list(config)) for node in nodes]
    return [one.name for one in made if isinstance(getattr(one, "name", None), str)]


def _make_steps(task: Task, config: DictConfig, allowed: tuple[str, ...]) -> None:
    """Optimizer and schedule over the parameters that learn: values for each group fit their number."""
    if not any(parameter.requires_grad for parameter in task.parameters()):
        return
    key = "optim"
    try:
        optimizer = factory(config.optim, allowed)(parameter_groups(task))
        key, make = "schedule", factory(config.schedule, allowed)
        if make is not None:
            limit = config.trainer.get("max_steps")
            make_schedule(make, optimizer, limit if isinstance(limit, int) and limit > 0 else _STEPS)
    except UserError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{key}: {_first_line(error)}") from error
    except RuntimeError:
        return  # fused kernels are for parameters on a device


def fake_batch(task: Task, frontend: Any) -> Batch:
    """A batch of two with meta data and real lengths, holding what the task needs."""
    samples = torch.tensor([int(16000 * s) for s in _SECONDS])
    frames = torch.tensor([frontend.output_length(int(n)) for n in samples])
    words = torch.tensor(_SUBWORDS)
    units = torch.tensor([math.ceil(unit_rate(task) * s) for s in _SECONDS])
    width = frontend.output_dim

    def ids(lengths: Tensor) -> Padded:
        return Padded(torch.zeros(2, int(lengths.max()), dtype=torch.int64, device="meta"), lengths)

    def real(lengths: Tensor, *shape: int) -> Padded:
        return Padded(torch.zeros(2, int(lengths.max()), *shape, device="meta"), lengths)

    coded = torch.tensor([int(CODE_RATE * s) for s in _SECONDS])
    codes = Padded(torch.zeros(2, int(coded.max()), streams_of(task), dtype=torch.int64, device="meta"), coded)
    return Batch(
        ids=("a", "b"),
        task=(sorted(task.modes)[0],) * 2 if task.modes else (),
        tgt_lang=made_up_languages(task, 2),
        speech=real(frames, width) if width > 1 else real(samples),
        transcript=ids(words),
        source=ids(words + 2),
        target=ids(words + 3),
        units=ids(units) if "units" in task.needs else None,
        source_units=ids(units) if "source_units" in task.needs else None,
        codes=codes if "codes" in task.needs else None,
        source_codes=codes if "source_codes" in task.needs else None,
        target_speech=real(samples),
        seconds=torch.tensor(_SECONDS),
    )


def unit_rate(task: Task) -> float:
    """Units of a second of speech, as the vocoder or the unit extractor of a task has them; else 50."""
    vocoder: Any = getattr(task, "vocoder", None)
    if vocoder is not None and getattr(vocoder, "hop_length", None):
        return vocoder.sample_rate / vocoder.hop_length
    return float(getattr(getattr(task, "unit_extractor", None), "frame_rate", 50.0))


def streams_of(task: Task) -> int:
    """Codec streams of the batches that a task learns from."""
    return int(getattr(getattr(task, "stream_lm", None), "num_streams", 1))


def _row(role: str, part: nn.Module) -> Row:
    parameters = list(part.parameters())
    return Row(
        role,
        type(part).__name__,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )


def _watch(role: str, part: nn.Module, row: Row) -> None:
    """Record the shapes of a part's calls, and name the part when one fails."""
    for name in _CALLS.get(role, ()):
        inner: Callable | None = getattr(part, name, None)
        if inner is None:
            continue

        def call(*args: Any, _inner: Callable = inner, _name: str = name, **kwargs: Any) -> Any:
            shapes = _shapes([*args, *kwargs.values()])
            try:
                result = _inner(*args, **kwargs)
            except UserError:
                raise
            except Exception as error:
                width = getattr(part, "dim" if role == "text_seq2seq" else "input_dim", None)
                widths = _widths([*args, *kwargs.values()])
                expected = f"; it expects width {width}" if width and widths and width not in widths else ""
                raise UserError(
                    f"{role} ({type(part).__name__}): got {shapes}{expected}. {_first_line(error)}"
                ) from error
            if not row.output:
                row.input, row.output = shapes, _shapes([result])
            return result

        setattr(part, name, call)


def _serve(task: Task, batch: Batch, rows: dict[str, Row]) -> None:
    """Call the parts that training does not call, as inference does."""
    parts = task.parts()
    vocoder: Any = parts.get("vocoder")
    extractor = parts.get("unit_extractor")
    if vocoder is not None and batch.units is not None and not rows["vocoder"].output:
        languages: Any = getattr(task, "vocoder_languages", ())
        spoken = replace(batch, tgt_lang=tuple(languages[:1]) * len(batch.ids))
        speaker = getattr(task, "speaker", None)
        told = told_to_vocoder(vocoder, spoken, languages, speaker, batch.units.device)
        vocoder(batch.units, durations=batch.units, **told)
    if extractor is not None and batch.target_speech is not None and not rows["unit_extractor"].output:
        extractor(batch.target_speech)


def _widths(values: Iterable[Any]) -> list[int]:
    """Of features, states and samples."""
    padded = [value.data for value in values if isinstance(value, Padded)]
    return [data.shape[2] if data.dim() > 2 else 1 for data in padded if data.is_floating_point()]


def _shapes(values: Iterable[Any]) -> str:
    found = []
    for value in values:
        if isinstance(value, Padded):
            found.append(str(tuple(value.data.shape)))
        elif isinstance(value, Adapted):
            found.append(_shapes([value.states, value.losses]))
        elif isinstance(value, Reconstruction):
            found.append(_shapes([value.samples, value.losses]))
        elif isinstance(value, Judgement):
            found.append(f"{len(value.scores)} scores, {len(value.features)} layers")
        elif isinstance(value, UnitOutput):
            found.append(str(tuple(value.units.data.shape)))
        elif isinstance(value, tuple):
            found.append(_shapes(value))
        elif isinstance(value, Tensor):
            found.append(str(tuple(value.shape)))
        elif isinstance(value, dict) and value and all(isinstance(v, Loss) for v in value.values()):
            found.append("losses: " + ", ".join(value))
    return " ".join(text for text in found if text)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class FakeTokenizer(Tokenizer):
    """The sizes of a tokenizer that may not be trained yet."""

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, vocab_size: int, languages: Iterable[str]) -> None:
        self.vocab_size = vocab_size
        self.languages = tuple(languages)

    def encode(self, text: str) -> list[int]:
        raise RuntimeError("a stand-in for shapes has no pieces")

    def decode(self, ids: Iterable[int]) -> str:
        raise RuntimeError("a stand-in for shapes has no pieces")

    def lang_id(self, lang: str) -> int:
        return self.vocab_size - 1

    def to_bytes(self) -> bytes:
        raise RuntimeError("a stand-in for shapes has no pieces")

    def piece_characters(self) -> Tensor:
        """(V, 1) int64: one character a piece."""
        return torch.zeros(self.vocab_size, 1, dtype=torch.int64, device="cpu")

    def pieces(self) -> tuple[str, ...]:
        return ("",) * self.vocab_size
