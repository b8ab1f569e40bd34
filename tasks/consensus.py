"""Several runs asked the same, and the answer that the others agree with most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

import torch

from ..components.errors import UserError
from ..components.search import SearchOptions
from ..components.types import Batch, Prediction
from .of_runs import OfRuns, require_hypotheses
from .scoring.consensus import choose, utility_of
from .task import Task

_TEXTS = frozenset({"s2tt", "asr", "t2tt"})


@dataclass(frozen=True)
class Gathered:
    """The batches of the same utterances, as each run reads them."""

    batches: tuple[Batch, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.batches[0].ids

    def to(self, device: Any) -> Gathered:
        return Gathered(tuple(batch.to(device) for batch in self.batches))


class _Collators:
    """A list of utterances as each run reads it."""

    def __init__(self, collators: Sequence[Any]) -> None:
        self._each = list(collators)

    @property
    def audio(self) -> Any:
        return self._each[0].audio

    @audio.setter
    def audio(self, files: Any) -> None:
        for one in self._each:
            one.audio = files

    def __call__(self, utterances: list[Any]) -> Gathered:
        return Gathered(tuple(collate(utterances) for collate in self._each))


class Consensus(OfRuns):
    """Minimum-Bayes-risk decoding over the outputs of runs: of all candidates the one with the highest mean utility
    against all others (Kumar and Byrne 2004). The runs may be of any kind, cascades too; what all can do is served.

    Args:
        runs: two or more; with several candidates one is enough.
        utility: chrF2, or BLEU of sentences.
        candidates: texts that each run gives: the best of its search, or that many samples.
        sample: draw them (Eikema and Aziz 2020): the same ones whenever the same utterances are served together.
        top_p: of sampling, the fewest tokens that together have this probability.
    """

    def __init__(
        self,
        *,
        runs: Sequence[str],
        utility: Literal["chrf", "bleu"] = "chrf",
        candidates: int = 5,
        sample: bool = False,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(runs=runs)
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1; got {candidates}")
        if len(runs) * candidates < 3:
            raise ValueError(
                f"{len(runs) * candidates} texts have no consensus: give more runs, or candidates above {candidates}"
            )
        self.utility, self.candidates = utility, candidates
        self.sample, self.top_p = sample, top_p
        utility_of(utility)

    def accept(self, steps: Sequence[Task]) -> frozenset[str]:
        shared = _TEXTS.intersection(*(step.modes for step in steps))
        if not shared:
            each = "; ".join(f"{run}: {', '.join(sorted(s.modes))}" for run, s in zip(self.runs, steps, strict=True))
            raise UserError(f"task.runs: there is no text that all can write ({each})")
        rates = {step.frontend.sample_rate for step in steps if step.frontend is not None}
        if len(rates) > 1:
            raise UserError(f"task.runs: they read speech at {', '.join(map(str, sorted(rates)))} Hz; take runs of one")
        self.tokenizer = steps[0].tokenizer
        return shared

    def serving_needs(self) -> frozenset[str]:
        return frozenset().union(*(step.serving_needs() for step in self.attached()))

    def collator(self) -> Any:
        return _Collators([step.collator() for step in self.attached()])

    def gather(self, make: Callable[[Task], Batch]) -> Any:
        return Gathered(tuple(make(step) for step in self.attached()))

    @torch.inference_mode()
    def predict(self, batch: Any, *, task: str | None = None, options: SearchOptions | None = None) -> list[Prediction]:
        first: Batch = batch.batches[0]
        mode = self.pick_mode(task, first)
        found: list[list[Prediction]] = [[] for _ in first.ids]
        for step, own in zip(self.attached(), batch.batches, strict=True):
            for texts, more in zip(found, self._texts(step, own, mode, options), strict=True):
                texts += more
        chosen = []
        for place, texts in enumerate(found):
            metric = utility_of(self.utility, first.tgt_lang[place])
            chosen.append(texts[choose([one.text or "" for one in texts], metric)])
        return chosen

    def _texts(self, step: Task, batch: Batch, mode: str, options: SearchOptions | None) -> list[list[Prediction]]:
        """What a run gives for each row."""
        own = self.options_of(step, options)
        if not self.sample:
            require_hypotheses(own, self.candidates, "task.candidates")
            return step.predict_several(batch, task=mode, options=own, count=self.candidates)
        own = replace(own, method="sample", beam_size=self.candidates, top_p=self.top_p)
        with torch.random.fork_rng(devices=[] if step.device.type == "cpu" else None):
            torch.manual_seed(crc32("\0".join(batch.ids).encode()))
            return step.predict_several(batch, task=mode, options=own, count=self.candidates)
