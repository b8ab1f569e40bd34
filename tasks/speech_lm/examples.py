"""Rows of a batch as what a speech LM and a stream LM learn from: tasks, directions, prompts.

Letters: B batch, U units, T frames, K streams.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...components.errors import UserError
from ...components.joint_vocabulary import PAD, JointVocabulary
from ...components.speech_lm.templates import Template
from ...components.types import Batch, Padded
from .languages import row_languages

Prompt = Literal["source", "target"]


@dataclass(frozen=True)
class Example:
    """One row of a batch in one task and direction."""

    template: Template
    pieces: dict[str, Tensor]
    langs: tuple[str, str]
    whose: str


@dataclass(frozen=True)
class Sequences:
    """Examples as the speech LM reads them.

    Attributes:
        tokens: (B, S) ids.
        starts: (B,) int64, tokens before the bar.
        tasks: (B,) int64, the place of each row's template in their order.
    """

    tokens: Padded
    starts: Tensor
    tasks: Tensor


@dataclass(frozen=True)
class Spoken:
    """What the stream LM learns from: arguments of its `forward`."""

    units: Padded
    codes: Padded
    prompt: Padded
    stage: Tensor

    def __iter__(self):
        return iter((self.units, self.codes, self.prompt, self.stage))


@dataclass(frozen=True)
class ExampleMaker:
    """Turns rows into examples. In training each row is one an epoch; over epochs its tasks follow their `upsample`,
    and directions take turns. In validation it is all of them. What is drawn follows from the seed, the epoch and the
    name of the utterance: a batch may be cut up in any way.

    Args:
        vocabulary: of the speech LM.
        templates: task -> sequence, in order.
        upsample: task -> how often it comes for one time of the others.
        ways: directions; whether each goes backwards.
        needs: prepared fields that are read.
        prompt: `source`, of the source speech; `target`, cut out of the target.
        prompt_frames: most frames of a prompt of source speech; None: all.
        prompt_share: least and greatest part of the target that a prompt of it is.
        num_streams: K, of the stream LM; None: there is none.
        codebook_size: codes of each stream.
        max_positions: of the speech LM.
    """

    vocabulary: JointVocabulary
    templates: Mapping[str, Template]
    upsample: Mapping[str, int]
    ways: Sequence[bool]
    needs: frozenset[str]
    prompt: Prompt
    prompt_frames: int | None
    prompt_share: tuple[float, float]
    num_streams: int | None
    codebook_size: int
    max_positions: int | None

    def examples(self, batch: Batch, seed: int, epoch: int | None) -> tuple[list[Example], Spoken | None]:
        """Rows in their tasks and directions, and what the stream LM learns from, where there is one.

        Args:
            batch: with the fields of `needs`.
            seed: of the run.
            epoch: of training; None: validation.

        Raises:
            UserError: codes of too few streams, or languages that are not said.
        """
        columns = {name: self.column(batch, name) for name in sorted(self.needs)}
        shares = [name for name, share in self.upsample.items() for _ in range(share)]
        ways = self.ways
        langs_of = row_languages(batch, self.vocabulary)
        examples: list[Example] = []
        spoken: list[tuple[Tensor, ...]] = []
        stages: list[int] = []
        for row, name in enumerate(batch.ids):
            if epoch is not None:
                turn = epoch + _draw(seed, name, "turn")
                asked = [(shares[turn // len(ways) % len(shares)], ways[turn % len(ways)])]
            else:
                asked = [(task, way) for way in ways for task in self.templates]
            pieces = {
                way: self.pieces(columns, row, name, way, seed, epoch) for way in dict.fromkeys(way for _, way in asked)
            }
            for task, way in asked:
                source, target = langs_of[row]
                langs = (target, source) if way else (source, target)
                examples.append(Example(self.templates[task], pieces[way][0], langs, f"utterance {name}"))
            if self.num_streams is not None:
                for way, (one, codes, prompt) in pieces.items():
                    spoken.append((one["S_tgt"], codes, prompt))
                    draw = _draw(seed, name, f"stage {'' if epoch is None else epoch} {way}")
                    stages.append(1 + draw % (self.num_streams - 1))
        if not spoken:
            return examples, None
        units, codes, prompts = (Padded.from_list(list(column)) for column in zip(*spoken, strict=True))
        return examples, Spoken(units, codes, prompts, torch.tensor(stages, device=units.device))

    def sequences(self, examples: Sequence[Example]) -> Sequences:
        """Examples packed into their templates.

        Raises:
            UserError: a piece that is empty or of another vocabulary, or a sequence that is too long.
        """
        packed = [one.template.pack(one.pieces, *one.langs, one.whose) for one in examples]
        most = self.max_positions
        for one, (ids, _) in zip(examples, packed, strict=True):
            if most is not None and len(ids) - 1 > most:
                raise UserError(
                    f"{one.whose}: {len(ids)} tokens in the template {one.template.name}, but speech_lm has positions "
                    f"for {most}: leave it out (data.max_seconds), shorten prompts (task.prompt_frames), or raise "
                    "speech_lm.max_positions"
                )
        names = list(self.templates)
        tokens = Padded.from_list([ids for ids, _ in packed], value=PAD)
        starts = torch.tensor([start for _, start in packed], device=tokens.device)
        tasks = torch.tensor([names.index(one.template.name) for one in examples], device=tokens.device)
        return Sequences(tokens, starts, tasks)

    def column(self, batch: Batch, name: str) -> list[Tensor]:
        """A field of a batch, row by row; of codes the streams that are used."""
        found: Padded | None = getattr(batch, name)
        assert found is not None
        if name.endswith("codes") and self.num_streams is not None:
            found = first_streams(found, name, self.num_streams, self.codebook_size)
        return found.unpad()

    def pieces(
        self,
        columns: Mapping[str, list[Tensor]],
        row: int,
        name: str,
        backwards: bool,
        seed: int,
        epoch: int | None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What templates put in, 0-based; codes (T, K) of the target; codes of the prompt."""

        def side(field: str, source: bool) -> Tensor | None:
            column = columns.get(f"source_{field}" if source != backwards else field)
            return None if column is None else column[row]

        codes = side("codes", source=False)
        prompt = side("codes", source=self.prompt == "source")
        if prompt is not None:
            prompt = self._cut(prompt, name, seed, -1 if epoch is None else epoch)
        pieces = {
            "S_src": side("units", source=True),
            "S_tgt": side("units", source=False),
            "A_tgt": None if codes is None else codes[:, 0],
            "A_prompt": None if prompt is None else prompt[:, 0],
        }
        empty = torch.empty(0)
        return (
            {key: value for key, value in pieces.items() if value is not None},
            empty if codes is None else codes,
            empty if prompt is None else prompt,
        )

    def _cut(self, codes: Tensor, name: str, seed: int, epoch: int) -> Tensor:
        """(T, K) -> the frames that are the prompt, drawn anew in each epoch."""
        frames = len(codes)
        if self.prompt == "target":
            least, greatest = self.prompt_share
            share = least + (greatest - least) * (_draw(seed, name, f"share {epoch}") % 1000) / 1000
            count = max(round(share * frames), 1)
        else:
            count = frames if self.prompt_frames is None else self.prompt_frames
        count = min(count, frames)
        start = _draw(seed, name, f"start {epoch}") % (frames - count + 1)
        return codes[start : start + count]

    def amounts(self, data: Any) -> list[str]:
        """A line for each task: utterances of the training data that have all it needs, and target tokens of all, each
        direction once."""
        ids = [row.id for row in data.rows("train")]
        tables = {name: data.read_prepared(name) for name in sorted(self.needs)}
        whole = [name for name in ids if all(name in table for table in tables.values())]
        lines = []
        for task, template in self.templates.items():
            tokens = 0
            for way in self.ways:
                for segment in template.segments:
                    field = "units" if segment.piece == "S_tgt" else "codes"
                    table = tables[f"source_{field}" if way else field]
                    tokens += sum(len(table[name]) + 1 for name in whole)
            both = "both directions" if len(self.ways) > 1 else "one direction"
            lines.append(
                f"{task}: {len(whole)} utterances, {tokens:,} target tokens in {both}, {self.upsample[task]} of "
                f"{sum(self.upsample.values())} examples"
            )
        return lines


def first_streams(codes: Padded, name: str, wanted: int, size: int) -> Padded:
    """The first `wanted` streams of a batch's codes, of `size` codes each; `name` is the field.

    Raises:
        UserError: fewer streams, or a code that there is not.
    """
    there = codes.data.shape[2]
    if there < wanted:
        raise UserError(
            f"data.{name} has {there} streams, but stream_lm.num_streams is {wanted}: write the codes of "
            f"{wanted} codebooks, or set stream_lm.num_streams={there}"
        )
    codes = codes.with_data(codes.data[:, :, :wanted])
    if codes.data.numel() and not codes.data.is_meta:
        low, high = (int(bound) for bound in codes.zeroed().data.aminmax())
        if low < 0 or high >= size:
            raise UserError(
                f"data.{name} has the code {low if low < 0 else high}, but the codebooks have {size} entries (0 to "
                f"{size - 1}): they are of another codec; write them again"
            )
    return codes


def _draw(seed: int, name: str, what: str) -> int:
    """A number of the seed, an utterance and a word: the same however batches are cut up."""
    return zlib.crc32(f"{seed} {what} {name}".encode())
