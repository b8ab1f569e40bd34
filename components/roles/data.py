"""The role of data. Letters: U units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning import LightningDataModule

from ..types import Batch
from .inputs import Frontend, Tokenizer


class DataModule(LightningDataModule, ABC):
    """Data to batches: what training, planning and evaluation ask of data, in this order.

    Most data of one's own are rows: derive from `voxzoo.datamodules.UtteranceData`, which does all of this for a class
    that says its rows. `voxzoo.datamodules.contract.check_data` tries what is said here.

    The constructor takes `tokenizer` and `frontend` by name; they are given, and either may be None: training sets
    `tokenizer` after it has read the texts to train it, planning gives no front end. A row is an utterance: an object
    with the attributes of `voxzoo.datamodules.Utterance`.
    """

    tokenizer: Tokenizer | None
    frontend: Frontend | None
    needs: frozenset[str]
    """`Batch` fields that the task reads, set from outside before batches are asked for."""
    longest_seconds: float | None
    """Longest speech that the task takes, set from outside; None: any."""
    longest_text: int | None = None
    """Most tokens of a target text that the task takes, set from outside; None: any."""
    tasks: tuple[str, ...]
    """What is asked of the rows: some of `s2tt asr t2tt s2st t2st`."""
    dropped: dict[str, dict[str, list[str]]]
    """Split -> reason -> ids that are left out, of what was asked for so far."""
    cache_dir: str | None = None
    """Where things that take long to make are kept; None: nowhere."""

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names that `rows`, `texts` and `utterances` take: `train`, `valid`, and test sets."""

    @abstractmethod
    def rows(self, split: str) -> Sequence[Any]:
        """The rows of a split, in order, after `prepare_data`. Raises UserError for an unknown split."""

    def languages(self) -> tuple[str, ...]:
        """All language codes of all splits, sorted: a trained tokenizer has a token for each."""
        rows = (row for split in self.splits() for row in self.rows(split))
        return tuple(sorted({lang for row in rows for lang in (row.src_lang, row.tgt_lang)} - {""}))

    def texts(self, split: str = "train") -> Iterator[str]:
        """Source and target texts of a split, for training a tokenizer."""
        for row in self.rows(split):
            yield from filter(None, (row.src_text, row.tgt_text))

    @abstractmethod
    def utterances(self, split: str, *, tasks: Iterable[str], needs: Iterable[str]) -> Sequence[Any]:
        """What of a split can be served, each row once for each of `tasks`, with its `task`; `dropped` says the rest.
        Rows without a reference are served too."""

    @abstractmethod
    def collator(self, needs: Iterable[str] | None = None) -> Callable[[list[Any]], Batch]:
        """What makes a batch of utterances of one task; `needs` in place of the data module's. Picklable."""

    @abstractmethod
    def plan(
        self, needs: Iterable[str], world_size: int = 1
    ) -> tuple[Sequence[Any], Sequence[Sequence[int]], Sequence[int]]:
        """What training would read: its utterances with their seconds, the batches of the first epoch over all ranks,
        as indices (rank r of W takes every W-th, from the r-th on), and those that exceed a budget alone. Reads no
        audio. Raises UserError where the data cannot be read."""

    @abstractmethod
    def train_dataloader(self) -> Any:
        """Batches of this rank: as many as any other rank has, each utterance once an epoch over all ranks, in an order
        that depends on the seed and the epoch alone. Its `state_dict` and `load_state_dict` go into checkpoints: after
        a restart, also on another number of ranks, the rest of the epoch follows."""

    @abstractmethod
    def val_dataloader(self) -> Any:
        """Batches of the split `valid`, always the same, as many on each rank; [] where there is none."""

    # What planning and evaluation also ask, where it is there.

    slowest: float = 1.0
    """The lowest speed that training plays audio at."""

    def unprepared(self) -> str | None:
        """Why nothing can be planned before `prepare_data`, or None."""
        return None

    def source(self) -> str:
        """Where the training data come from, for messages."""
        return type(self).__name__

    units_path: str | None = None
    """The file of target units, which a stage before may write; None: there is none."""

    def read_units(self) -> Mapping[str, Any]:
        """Utterance id -> (U,) target units, one per frame, of `units_path`."""
        return {}

    def target_seconds(self, utterance: Any) -> float:
        """Seconds of the target speech of an utterance, 0 where there is none."""
        return 0.0
