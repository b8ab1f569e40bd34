"""Runs behind each other: speech to text by the first, what it wrote to text or speech by the next.

Letters: B batch, S subwords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..components.errors import UserError
from ..components.search import SearchOptions
from ..components.types import Batch, Padded, Prediction
from .of_runs import OfRuns, require_hypotheses
from .task import Task


@dataclass(frozen=True)
class _Passed:
    """What one row of the batch became so far.

    Attributes:
        place: of the row.
        last: what the last step made of it.
        score: the sum of the scores of all steps.
    """

    place: int
    last: Prediction
    score: float


class Cascade(OfRuns):
    """Two or three runs as one: recognition (or translation) of speech, translation of what was written, and where the
    last one speaks, speech. Its checkpoint holds where the runs are, not their weights.

    Args:
        runs: run folders, checkpoints or earlier stages of the same run, in their order; the first reads speech, the
            others text.
        pass_on: hypotheses of each step that the next one reads. Of several, the result is the one whose scores
            (log-probabilities normalised by length) sum up highest.
        languages: the language of what each step but the last writes; null: for the first the language of the speech,
            for the second of three the target language.
    """

    modes = frozenset({"s2tt", "s2st"})
    reads_speech = True

    def __init__(self, *, runs: Sequence[str], pass_on: int = 1, languages: Sequence[str | None] | None = None) -> None:
        super().__init__(runs=runs)
        if len(runs) not in (2, 3):
            raise ValueError(f"runs must be two or three; got {len(runs)}: {', '.join(map(str, runs))}")
        if pass_on < 1:
            raise ValueError(f"pass_on must be at least 1; got {pass_on}")
        if languages is not None and len(languages) != len(runs) - 1:
            raise ValueError(
                f"languages must be {len(runs) - 1}, one for each of runs but the last; got {len(languages)}"
            )
        self.pass_on = pass_on
        self.between = list(languages) if languages is not None else [None] * (len(runs) - 1)

    def accept(self, steps: Sequence[Task]) -> frozenset[str]:
        for place, (step, run) in enumerate(zip(steps, self.runs, strict=True)):
            wanted = ("asr", "s2tt") if place == 0 else ("t2tt",) if place < len(steps) - 1 else ("t2tt", "t2st")
            if isinstance(step, OfRuns):
                raise UserError(f"task.runs: {run} is made of runs itself; name those")
            if not step.modes & {*wanted}:
                can = ", ".join(sorted(step.modes)) or "nothing"
                must = " or ".join(wanted)
                raise UserError(f"task.runs: {run} stands at place {place + 1}, which must do {must}; it can do {can}")
        return frozenset(f"s2{mode[2:]}" for mode in steps[-1].modes & {"t2tt", "t2st"})

    @property
    def spoken_languages(self) -> tuple[str, ...] | None:
        """Languages that the last step speaks; None: any."""
        return getattr(self.attached()[-1], "spoken_languages", None)

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        """With `options` other than those of the last step, their method and beam size count for all steps; the rest
        stays each one's own."""
        return [found[0] for found in self.predict_several(batch, task=task, options=options)]

    @torch.inference_mode()
    def predict_several(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None, count: int = 1
    ) -> list[list[Prediction]]:
        mode = self.pick_mode(task, batch)
        steps, written = self.attached(), self._languages(batch)
        heard = "asr" if self.between[0] is None else "s2tt"
        spoken = replace(batch, task=(heard,) * len(batch), tgt_lang=written[0])
        own = self._options(steps[0], options, self.pass_on)
        found = steps[0].predict_several(spoken, task=heard, options=own, count=self.pass_on)
        passed = [[_Passed(place, one, one.score or 0.0) for one in row] for place, row in enumerate(found)]
        for number, step in enumerate(steps[1:], 1):
            last = number == len(steps) - 1
            asked, kept = (f"t2{mode[2:]}", count) if last else ("t2tt", self.pass_on)
            between = (written[number - 1], written[number])
            passed = self._step(step, passed, between, asked, self._options(step, options, kept), kept)
        return [
            [
                replace(
                    one.last, id=name, task=mode, src_lang=batch.src_lang[place], tgt_lang=batch.tgt_lang[place],
                    score=one.score,
                )
                for one in passed[place]
            ]
            for place, name in enumerate(batch.ids)
        ]  # fmt: skip

    @staticmethod
    def _step(
        step: Task,
        passed: Sequence[Sequence[_Passed]],
        languages: tuple[tuple[str, ...], tuple[str, ...]],
        mode: str,
        options: SearchOptions,
        kept: int,
    ) -> list[list[_Passed]]:
        """What a step makes of what was passed on: of each row those that are kept, the best first."""
        flat = [one for row in passed for one in row]
        made: list[list[_Passed]] = [[] for _ in passed]
        for start in range(0, len(flat), len(passed)):  # as many rows at a time as the batch has
            some = flat[start : start + len(passed)]
            found = step.predict_several(_as_text(step, some, languages, mode), task=mode, options=options, count=kept)
            for one, row in zip(some, found, strict=True):
                made[one.place] += [_Passed(one.place, each, one.score + (each.score or 0.0)) for each in row]
        return [sorted(row, key=lambda one: -one.score)[:kept] for row in made]

    def _languages(self, batch: Batch) -> list[tuple[str, ...]]:
        """Of what each step writes, by row."""
        if not batch.src_lang or not all(batch.src_lang):
            raise UserError("a cascade is told what is spoken: give --from")
        between = [
            (lang,) * len(batch) if lang is not None else batch.tgt_lang if number else batch.src_lang
            for number, lang in enumerate(self.between)
        ]
        return [*between, batch.tgt_lang]

    def _options(self, step: Task, asked: SearchOptions | None, wanted: int) -> SearchOptions:
        """How a step searches. Raises UserError: it gives fewer hypotheses than are wanted of it."""
        own = self.options_of(step, asked)
        require_hypotheses(own, wanted, "task.pass_on")
        return own


def _as_text(
    step: Task, some: Sequence[_Passed], languages: tuple[tuple[str, ...], tuple[str, ...]], mode: str
) -> Batch:
    """What was written as a batch of a step."""
    assert step.tokenizer is not None
    sources, targets = ([lang[one.place] for one in some] for lang in languages)
    ids = [step.tokenizer.source(one.last.text or "", lang) for one, lang in zip(some, sources, strict=True)]
    return Batch(
        ids=tuple(one.last.id for one in some),
        task=(mode,) * len(some),
        src_lang=tuple(sources),
        tgt_lang=tuple(targets),
        source=Padded.from_list([torch.tensor(row) for row in ids], step.tokenizer.pad_id),
        references=("",) * len(some),
    ).to(step.device)
