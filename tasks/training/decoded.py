"""BLEU, chrF or WER of decoded text after each validation, for whatever follows a metric: the best checkpoints, early
stopping."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ...components.errors import UserError
from ...datamodules.utterances import UtteranceData
from ..distributed.strategies import gathered
from ..scoring.counted import Metric
from ..scoring.normalise import normalise_basic
from ..scoring.text import Bleu, Chrf, error_rate_for
from ..serving.evaluation import choose_rows
from ..serving.translator import search_options
from ..task import Task

_TEXT_OUT = ("s2tt", "t2tt", "asr")


class DecodedScore(Callback):
    """Decodes a sample of the validation data after each validation, and logs the corpus score as `valid/METRIC`.

    The utterances are dealt to all processes and their statistics summed, so the score is that of the whole sample and
    the same on any number of them. Of several target languages it is the mean over them. The sample is the same at each
    validation: the utterances whose ids have the smallest hashes.

    Args:
        metric: `bleu`, `chrf`, or `wer` (lower case and punctuation off; characters for languages without spaces).
        count: utterances of the sample.
        beam: beam size; 1 is greedy.
        batch_size: utterances at a time, on each process.
        task: what to do with them; None: what the data asks for first that gives text.
    """

    def __init__(
        self,
        *,
        metric: Literal["bleu", "chrf", "wer"] = "bleu",
        count: int = 200,
        beam: int = 1,
        batch_size: int = 16,
        task: Literal["s2tt", "t2tt", "asr"] | None = None,
    ) -> None:
        for name, value in (("count", count), ("beam", beam), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        self.metric, self.count, self.beam, self.batch_size, self.task = metric, count, beam, batch_size, task
        self._rows: list[Any] | None = None

    @property
    def name(self) -> str:
        """Of the metric that is logged."""
        return f"valid/{self.metric}"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not isinstance(pl_module, Task):
            raise UserError(f"{type(self).__name__} decodes with a task of voxzoo, not {type(pl_module).__name__}")
        rows = self._sample(trainer, pl_module)
        texts = dict.fromkeys(sorted({row.tgt_lang for row in rows}))
        metrics = {lang: self._metric(lang) for lang in texts}
        own = rows[trainer.global_rank :: trainer.world_size]
        with gathered(pl_module):
            found = self._decode(trainer, pl_module, own)
        sums = [_statistics(metrics[lang], found[lang]) for lang in texts]
        total = torch.stack(sums).to(pl_module.device)
        total = trainer.strategy.reduce(total, reduce_op="sum") if trainer.world_size > 1 else total
        scores = [metric.score(row) for metric, row in zip(metrics.values(), total.cpu().numpy(), strict=True)]
        pl_module.log(self.name, sum(scores) / len(scores), rank_zero_only=False)

    def _metric(self, lang: str) -> Metric:
        return Bleu(lang) if self.metric == "bleu" else Chrf() if self.metric == "chrf" else error_rate_for(lang)

    def _sample(self, trainer: Trainer, task: Task) -> list[Any]:
        """The utterances, the same on all processes."""
        if self._rows is None:
            data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            if not isinstance(data, UtteranceData):
                raise UserError(f"{type(self).__name__} needs data of utterances, not {type(data).__name__}")
            mode = self.task or next((name for name in data.tasks if name in _TEXT_OUT and name in task.modes), None)
            mode = mode or next((name for name in _TEXT_OUT if name in task.modes), None)
            if mode is None:
                raise UserError(
                    f"{type(self).__name__}: {type(task).__name__} writes no text; it can do "
                    f"{', '.join(sorted(task.modes)) or 'nothing'}"
                )
            rows, _ = choose_rows(task, data, "valid", mode, None)
            rows = [row for row in rows if row.tgt_text.strip()]
            if not rows:
                raise UserError(f"{type(self).__name__}: no utterance of the validation data has a text for {mode}")
            ordered = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[: self.count]
            # Longest first: memory runs out at once or not at all, and the processes get alike shares.
            self._rows = sorted(ordered, key=lambda row: (-(row.duration or len(row.src_text)), row.id))
        return self._rows

    def _decode(self, trainer: Trainer, task: Task, rows: Sequence[Any]) -> dict[str, tuple[list[str], list[str]]]:
        """Language -> hypotheses and references."""
        collate, options = task.collator(), search_options(task, self.beam)
        collate.audio = trainer.datamodule.audio  # pyright: ignore[reportAttributeAccessIssue]
        found: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for start in range(0, len(rows), self.batch_size):
            part = list(rows[start : start + self.batch_size])
            predictions = task.predict(collate(part).to(task.device), task=part[0].task, options=options)
            for row, prediction in zip(part, predictions, strict=True):
                texts = (prediction.text or "", row.tgt_text)
                if self.metric == "wer":
                    texts = tuple(normalise_basic(text, row.tgt_lang) for text in texts)
                for side, text in zip(found[row.tgt_lang], texts, strict=True):
                    side.append(text)
        return found


def _statistics(metric: Metric, texts: tuple[list[str], list[str]]) -> torch.Tensor:
    """(K,) int64, summed; zeros where this process has no utterance of a language."""
    if texts[0]:
        return torch.from_numpy(metric.statistics(*texts).sum(axis=0))
    return torch.from_numpy(metric.statistics([""], [""]).sum(axis=0)) * 0
