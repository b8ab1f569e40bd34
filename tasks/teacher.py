"""A frozen run as the teacher of another: beside the training, or by its most probable words, stored once.

Letters: B batch, S subwords, D model dim, V vocabulary, K stored words of a token, N stored tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from ..components.cards import Card
from ..components.errors import UserError
from ..components.lines import read_json
from ..components.losses.divergence import Side, distillation_loss, stored_distillation_loss
from ..components.roles import Tokenizer
from ..components.types import Batch, Loss, Padded
from ..components.whole import whole_folder
from .text import decoder_input, side_of

CARD = "card.json"
_FILES = {"words": np.int32, "log_probs": np.float32}


def vocabulary_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What makes ids mean the same, as a card has it."""
    digest = hashlib.sha256(tokenizer.to_bytes()).hexdigest()
    return {"tokenizer": digest, "size": tokenizer.vocab_size, "languages": list(tokenizer.languages)}


def name_of(row: str, target: Tensor) -> str:
    """Of a stored row: its id and its (S,) target ids, of which there may be several to an id (`asr`, `s2tt`)."""
    return f"{row} {crc32(target.to('cpu', torch.int32).numpy().tobytes()):08x}"


class StoredTeacher:
    """The K most probable words of each token of a corpus, in a folder with a card that says of which teacher and data.

    Args:
        folder: what `write` made.

    Raises:
        UserError: it is not there, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / CARD).is_file():
            raise UserError(f"{folder}: no stored teacher (no {CARD}); `voxzoo distil probabilities` writes one")
        self.folder = folder
        self.card = Card.from_dict(read_json(folder / CARD), str(folder / CARD))
        self.rows: dict[str, list[int]] = read_json(folder / "rows.json")
        shape = int(self.card["tokens"]), int(self.card["words"])
        self._values: dict[str, np.ndarray] = {}
        for name, dtype in _FILES.items():
            path = folder / f"{name}.bin"
            size = path.stat().st_size if path.exists() else 0
            if size != shape[0] * shape[1] * np.dtype(dtype).itemsize:
                raise UserError(f"{path}: {size:,} bytes, but the card says {shape[0]} x {shape[1]}; write it again")
            self._values[name] = np.memmap(path, dtype, "r", shape=shape)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, S-1, K) words and log-probabilities of them, for the targets of a batch.

        Raises:
            UserError: a row that is not stored, or of another text.
        """
        assert batch.target is not None
        steps, width = batch.target.data.shape[1] - 1, int(self.card["words"])
        words = torch.zeros(len(batch), steps, width, dtype=torch.int64)
        known = torch.full((len(batch), steps, width), float("-inf"))
        known[..., 0] = 0.0  # a distribution, where nothing counts
        for place, (row, target) in enumerate(zip(batch.ids, batch.target.unpad(), strict=True)):
            found = self.rows.get(name_of(row, target))
            if found is None:
                raise UserError(
                    f"{self.folder}: has nothing of {row!r} with this target text; write it again with this data"
                )
            start, count = found
            part = slice(start, start + count)
            words[place, :count] = torch.from_numpy(self._values["words"][part].astype(np.int64))
            known[place, :count] = torch.from_numpy(self._values["log_probs"][part].copy())
        return words.to(batch.target.device), known.to(batch.target.device)

    @classmethod
    def write(cls, folder: Path, card: dict[str, Any], rows: Iterable[tuple[str, Tensor, Tensor]]) -> Self:
        """Write a folder that appears whole.

        Args:
            card: values, without `tokens`.
            rows: name (`name_of`), (n, K) words and log-probabilities of each.
        """
        places: dict[str, list[int]] = {}
        total = 0
        with whole_folder(folder) as part:
            with ExitStack() as open_files:
                files = {name: open_files.enter_context((part / f"{name}.bin").open("wb")) for name in _FILES}
                for name, words, known in rows:
                    places[name] = [total, len(words)]
                    total += len(words)
                    for key, value in (("words", words), ("log_probs", known)):
                        files[key].write(value.cpu().numpy().astype(_FILES[key]).tobytes())
            (part / "rows.json").write_text(json.dumps(places))
            (part / CARD).write_text(Card("teacher", {**card, "tokens": total}).json)
        return cls(folder)


class Teacher(nn.Module):
    """What a text decoder learns from besides its targets: the distributions of a frozen run of the same vocabulary
    over them. Its weights are no part of the student's checkpoints, optimizer or shards.

    Args:
        run: the teacher's run folder, checkpoint or an earlier stage; read when a training begins.
        stored: in its place a folder of `voxzoo distil probabilities`.
        reads: what the run reads, the transcript or the speech; of one that reads text, rows without it do not count.
        weight: of the loss `teacher`, beside that of `text`.
        loss: `kl` or `cross_entropy`, against the teacher's distribution.
        temperature: of both distributions.
    """

    def __init__(
        self,
        *,
        run: str | None = None,
        stored: str | None = None,
        reads: Literal["text", "speech"] = "text",
        weight: float = 1.0,
        loss: Literal["kl", "cross_entropy"] = "kl",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if (run is None) == (stored is None):
            raise ValueError("a teacher is a run or what is stored of one: give one of run and stored")
        if weight <= 0 or not temperature > 0:
            raise ValueError(f"weight and temperature must be above 0; got {weight} and {temperature}")
        self.run, self.stored, self.reads = run, stored, reads
        self.weight, self.kind, self.temperature = weight, loss, temperature
        self._task: tuple[Any, ...] = ()  # a tuple: its weights are no part of this module's
        self._store: StoredTeacher | None = None

    @property
    def needs(self) -> frozenset[str]:
        """`Batch` fields that it reads beside the student."""
        if self.stored is not None:
            return frozenset()
        return frozenset({"source", "transcript"} if self.reads == "text" else {"speech"})

    def attach(self, teacher: Any, tokenizer: Tokenizer, frontend: Any = None) -> None:
        """Give it what teaches.

        Args:
            teacher: the task of its run, or a `StoredTeacher`.
            tokenizer, frontend: of the student.

        Raises:
            UserError: another vocabulary, or another front end where it reads speech.
        """
        ours = Card("vocabulary", vocabulary_of(tokenizer))
        if isinstance(teacher, StoredTeacher):
            theirs = Card("vocabulary", {name: teacher.card["vocabulary"][name] for name in ours.values})
            advice = "take the tokenizer of that teacher, or a teacher of this one"
            theirs.require(ours, f"task.teacher.stored={self.stored}", advice)
            self._store = teacher
            return
        what = f"task.teacher.run={self.run}"
        if getattr(teacher, "text_seq2seq", None) is None or teacher.tokenizer is None:
            raise UserError(f"{what}: {type(teacher).__name__} has no text decoder to learn from")
        Card("vocabulary", vocabulary_of(teacher.tokenizer)).require(ours, what, "take a run of the same tokenizer")
        if self.reads == "text" and not teacher.text_seq2seq.has_encoder:
            raise UserError(f"{what}: has no text encoder; task.teacher.reads=speech for one that reads speech")
        if self.reads == "speech":
            if not teacher.reads_speech:
                raise UserError(f"{what}: reads no speech; task.teacher.reads=text")
            if teacher.frontend.fingerprint != frontend.fingerprint:
                raise UserError(f"{what}: reads other features than this run; take one of the same front end")
        teacher.requires_grad_(False).eval()
        self._task = (teacher,)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for task in self._task:  # wherever the student goes
            task._apply(fn)
        return self

    def teach(self, batch: Batch, student: Side, mask: Tensor) -> Loss:
        """The loss of a student's (B, S-1, D) states of the batch's targets, where the (B, S-1) mask says."""
        how: dict[str, Any] = {"kind": self.kind, "temperature": self.temperature}
        if self._store is not None:
            return stored_distillation_loss(student, *self._store.read(batch), mask=mask, **how)
        if self.reads == "text" and batch.transcript is not None:
            mask = mask & (batch.transcript.lengths > 0).to(mask.device)[:, None]
        if self._task:
            teacher = side_of(self._task[0].text_seq2seq, teacher_states(self._task[0], batch, self.reads))
        elif student.states.data.is_meta:  # shapes alone: one as wide as the student
            weight = None if student.weight is None else student.weight.detach()
            teacher = Side(student.states.with_data(student.states.data.detach()), student.project, weight)
        else:
            raise UserError("task.teacher: it is read by `voxzoo train` and `voxzoo.tasks.prepare`, and not there")
        return distillation_loss(student, teacher, mask=mask, **how)


def teacher_weight(teacher: Teacher | None) -> dict[str, float]:
    """Its weight among those of the losses, where there is one."""
    return {} if teacher is None else {"teacher": teacher.weight}


def read_for_teacher(task: Any, teacher: Teacher | None) -> None:
    """Let a task ask for what its teacher reads, in training alone."""
    if teacher is not None:
        task.taught_by = teacher.needs - task.needs
        task.needs = task.needs | teacher.needs


@torch.no_grad()
def teacher_states(task: Any, batch: Batch, reads: str) -> Padded:
    """(B, S-1, D) states of a run's decoder over the targets of a batch."""
    assert batch.target is not None
    memory = task.memory_of(batch, "t2tt" if reads == "text" else "s2tt")
    return task.text_seq2seq.decode(memory, decoder_input(batch.target))


@torch.no_grad()
def most_probable(side: Side, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n, K) words and log-probabilities of (n, D) states, the most probable first."""
    known, words = side.project(rows).float().log_softmax(-1).topk(count)
    return words, known
