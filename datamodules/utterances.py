"""`UtteranceData`: rows to batches, planned, cached and resumed. The base of data modules that say their rows.

Letters: W world size.
"""

from __future__ import annotations

import math
import os
import signal
import traceback
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..components.errors import UserError
from ..components.roles import DataModule, Frontend, Tokenizer
from .audio import AudioFiles
from .batching import BatchSampler, Item
from .codes import read_codes
from .collator import PREPARED, TASKS, Collator
from .feature_cache import CacheDtype, FeatureCache
from .loader import ResumableLoader
from .manifest import Utterance
from .mixing import Mix
from .resume import follow_epoch, position, restore, say
from .rows import Rows, rows_of
from .selection import (
    LONGEST_TEXT,
    MOST_CHARACTERS,
    UNREADABLE,
    Items,
    Limits,
    Selection,
    measure_files,
    select,
)
from .skipped import OnError, SkippedRows
from .token_counts import count_tokens
from .units import read_units

_SHOWN = 5
_LANGUAGES = ("src_lang", "tgt_lang")

VALIDATION = frozenset({"valid", "validation", "val", "dev", "development"})
"""Names that corpora have for what is called `valid` here."""


def _outlive_signals(worker: int) -> None:
    """A worker ends with the process that reads from it, not by a signal to all of their group: that process finishes
    its step first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_where_lost)  # pyright: ignore[reportAttributeAccessIssue]


def _end_where_lost(error: Exception, batch: Any) -> None:
    """A batch that a worker cannot hand on is dropped by Python, and whoever reads would wait for it for ever."""
    traceback.print_exception(error)
    os._exit(1)


class _Utterances(Dataset[Utterance]):
    """(epoch, index) -> utterance, with the speed that this epoch plays it at."""

    def __init__(self, items: Sequence[Utterance], speeds: Sequence[float], seed: int) -> None:
        self.items, self.speeds, self.seed = items, speeds, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: Item) -> Utterance:
        epoch, index = item
        utterance = self.items[index]
        if not self.speeds or utterance.audio is None:
            return utterance
        draw = zlib.crc32(f"{self.seed} {epoch} {utterance.id}".encode())
        return replace(utterance, speed=self.speeds[draw % len(self.speeds)])


_NEEDS = frozenset({"speech", "target"})


class UtteranceData(DataModule):
    """Batches of utterances for every task of the zoo, the same on 1 or W processes and after a restart.

    A class of one's own says its rows, by `splits` and `read`; it hands what it does not use itself to this constructor
    (`**options`). All else follows: batches under budgets, dealt to ranks, the feature cache, workers, exact resume,
    and what `voxzoo check` plans.

    Args:
        frontend: waveform to features; needed by tasks that read speech.
        tokenizer: needed by tasks that read or write text; may be set after the texts were read to train it.
        units: JSON lines of {"id", "units": [...]}: target units, one per frame, joined by id.
        source_units: likewise those of the source speech.
        codes: what `voxzoo units codes` wrote: codec frames of the target speech, joined by id.
        source_codes: likewise those of the source speech.
        tasks: which of s2tt, asr, t2tt, s2st, t2st each row becomes; a batch holds one of them. `asr` takes the source
            text and language as target.
        batch_seconds: most padded seconds of audio in a batch.
        batch_tokens: most padded target tokens in a batch (the longer side for text input).
        batch_size: most utterances in a batch.
        min_seconds, max_seconds: shorter and longer training and validation audio is dropped, and said.
        max_tokens: longer target texts are dropped from training and validation, and said. Without it those of more
            than 4,096 tokens are, and source texts likewise; rows of more than 16,384 units or codec frames always.
        speed_perturb: factors, one of which is drawn for each (seed, epoch, id) in training; [] is none. Batches are
            planned for the slowest.
        num_workers: processes that read data; 0 reads in the training process.
        cache_dir: folder of the feature cache, and of the columns of large manifests; None computes features and reads
            manifests each time.
        cache_dtype: float16 halves the feature cache; features are rounded to it, also when they are fresh.
        cache_gb: gigabytes (10^9 bytes) at which the feature cache grows no more; what it lacks is computed each time.
            None: no limit.
        seed: of the order of batches and of the speeds.
        mix: what share of the training data each group of rows has; None: each row is taken once an epoch.
        on_error: what a row does whose audio, text or units cannot be read while training or validating: `stop` ends
            the run with its name, `skip` leaves it out of its batch, names it once and counts it (`skipped`). Which
            rows are left out depends on their files alone, and so do all processes' counts of batches not at all.

    Attributes:
        needs: names of the `Batch` fields that the task reads; a trainer's task says them itself.
        longest_seconds, longest_text: longest speech, and most tokens of a target text, that the task takes, None for
            any; a trainer's task says them itself.
        dropped: split -> reason -> ids, of the loaders made so far.
        skipped: the rows that `on_error=skip` has left out.
        audio: reads what rows name as their audio; files, unless a class says otherwise. Picklable.
        most_rows: rows of a split that are read, the first ones, without their audio's headers; None: all. For a look
            at data that should not take long (`judge`).

    Raises:
        UserError: contradictory settings; later, data that cannot be used.
    """

    audio: AudioFiles = AudioFiles()
    most_rows: int | None = None

    def __init__(
        self,
        *,
        frontend: Frontend | None = None,
        tokenizer: Tokenizer | None = None,
        units: str | None = None,
        source_units: str | None = None,
        codes: str | None = None,
        source_codes: str | None = None,
        tasks: dict[str, bool] | None = None,
        batch_seconds: float | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        min_seconds: float = 0.1,
        max_seconds: float | None = None,
        max_tokens: int | None = None,
        speed_perturb: Sequence[float] = (),
        num_workers: int = 0,
        cache_dir: str | None = None,
        cache_dtype: CacheDtype = "float32",
        cache_gb: float | None = 100.0,
        seed: int = 1,
        mix: Mix | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__()
        chosen = {"s2tt": True} if tasks is None else dict(tasks)
        unknown = [name for name in chosen if name not in TASKS]
        if unknown or not any(chosen.values()):
            raise UserError(f"data.tasks={chosen}: expected some of {', '.join(TASKS)} to be true")
        wrong = [factor for factor in speed_perturb if not 0.5 <= factor <= 2]
        if wrong:
            raise UserError(f"data.speed_perturb={list(speed_perturb)}: expected factors from 0.5 to 2")
        if max_seconds is not None and max_seconds <= min_seconds:
            raise UserError(f"data.max_seconds={max_seconds}: expected more than min_seconds={min_seconds}")
        if cache_gb is not None and not 0 <= cache_gb < math.inf:
            raise UserError(f"data.cache_gb={cache_gb}: expected gigabytes from 0, or null for no limit")
        if batch_seconds is None and batch_tokens is None and batch_size is None:
            raise UserError("data needs a budget: set batch_seconds, batch_tokens or batch_size")
        self.frontend, self.tokenizer = frontend, tokenizer
        self.units_path = units
        self._others = {"source_units": source_units, "codes": codes, "source_codes": source_codes}
        self.tasks = tuple(name for name in TASKS if chosen.get(name))
        self.budget = {"batch_seconds": batch_seconds, "batch_tokens": batch_tokens, "batch_size": batch_size}
        self.min_seconds, self.max_seconds, self.max_tokens = min_seconds, max_seconds, max_tokens
        self.speed_perturb = tuple(float(factor) for factor in speed_perturb)
        self.slowest = min(self.speed_perturb, default=1.0)
        self.num_workers, self.seed = num_workers, seed
        self.cache_dir = cache_dir
        self.cache_dtype: CacheDtype = cache_dtype
        self.cache_gb = cache_gb
        self.mix = Mix() if mix is None else mix
        self.needs = _NEEDS
        self.longest_seconds = None
        self.dropped = {}
        self.on_error: OnError = on_error
        self.skipped = SkippedRows()
        self._rows: dict[str, Rows] = {}
        self._prepared: dict[str, Mapping[str, np.ndarray]] = {}
        self._seconds: dict[str, float] = {}
        self._measured: dict[tuple[str, str], np.ndarray] = {}

    # Reading

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of what there is: `train`, `valid`, and test sets in their order."""

    @abstractmethod
    def read(self, split: str) -> Iterable[Utterance]:
        """The utterances of a split, in an order that is always the same, after `prepare_data`; asked for once.

        Ids are unique in a split, and over all splits where units are joined by them. `audio` is a path, or whatever
        the class's `audio` reads; where `duration` is not said, it is read from the file's header.
        """

    def setup(self, stage: str) -> None:
        """Ask the trainer's task what it reads, where nobody has said it."""
        task = self.trainer.lightning_module if self.trainer is not None else None
        if self.needs is _NEEDS:
            self.needs = getattr(task, "needs", _NEEDS)
        if self.longest_seconds is None:
            self.longest_seconds = getattr(task, "longest_seconds", None)
        if self.longest_text is None:
            self.longest_text = getattr(task, "longest_text", None)

    def rows(self, split: str) -> Rows:
        """What `read` says, as columns; `test` is the first test set. Raises UserError for an unknown split or faulty
        rows."""
        split = self._resolve(split)
        if split not in self._rows:
            found = self.read(split)
            self._rows[split] = found if isinstance(found, Rows) else rows_of(found, f"{type(self).__name__}: {split}")
        return self._rows[split]

    def _resolve(self, split: str) -> str:
        names = self.splits()
        if split not in names and split == "test":
            tests = [name for name in names if name not in ("train", "valid")]
            if tests:
                return tests[0]
        if split not in names:
            raise UserError(f"split {split!r}: this data has {', '.join(names)}")
        return split

    def languages(self) -> tuple[str, ...]:
        """All language codes of all splits, sorted."""
        found = {name for split in self.splits() for key in _LANGUAGES for name in self.rows(split).labels(key)}
        return tuple(sorted(found - {""}))

    def texts(self, split: str = "train") -> Iterator[str]:
        """Source and target texts of a split, for training a tokenizer; without those that are too long for any row."""
        rows, most = self.rows(split), MOST_CHARACTERS * LONGEST_TEXT
        for pair in zip(rows.texts("src_text"), rows.texts("tgt_text")):
            yield from (text for text in pair if 0 < len(text) <= most)

    # Loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; goes on where the trainer's restored progress stands."""
        self._refuse_foreign_sampler()
        return self._loader("train", training=True)

    def epoch_loader(self, epoch: int = 0) -> ResumableLoader:
        """The batches of an epoch of training from its beginning, wherever the trainer stands."""
        loader = self._loader("train", training=True, follows=False)
        loader.batch_sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        return loader

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Every validation utterance once, over all ranks; [], and said, where there is no split `valid`.

        Raises:
            UserError: a split looks like one for validation, under another name.
        """
        self._refuse_foreign_sampler()
        splits = self.splits()
        if "valid" in splits:
            return self._loader("valid", training=False)
        if any(name.lower() in VALIDATION for name in splits):
            raise UserError(
                f"{type(self).__name__}: splits are {', '.join(splits)}; validation reads 'valid': name it so, or "
                "trainer.limit_val_batches=0 trains without"
            )
        say(f"{type(self).__name__}: no split 'valid': nothing is validated, the last checkpoint counts")
        return []

    def test_dataloader(self) -> list[ResumableLoader]:
        """One loader for each test split, in the order of `splits`."""
        self._refuse_foreign_sampler()
        return [self.loader(split) for split in self.splits() if split not in ("train", "valid")]

    def loader(
        self,
        split: str,
        *,
        tasks: Iterable[str] | None = None,
        needs: Iterable[str] | None = None,
        batch_seconds: float | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> ResumableLoader:
        """Every utterance of a split once over all ranks, longest first, also those without a reference.

        Args:
            split: a name of `splits`, or `test`.
            tasks: in place of the data module's.
            needs: `Batch` fields, in place of the data module's.
            batch_seconds, batch_tokens, batch_size: in place of the data module's budget, if any is given.
        """
        budget = {"batch_seconds": batch_seconds, "batch_tokens": batch_tokens, "batch_size": batch_size}
        return self._loader(
            self._resolve(split),
            training=False,
            keep_all=True,
            tasks=self.tasks if tasks is None else tuple(tasks),
            needs=self.needs if needs is None else frozenset(needs),
            budget=budget if any(value is not None for value in budget.values()) else None,
        )

    def collator(self, needs: Iterable[str] | None = None) -> Collator:
        """What makes a batch of utterances, with this module's frontend, tokenizer, units, speakers and cache."""
        needs = self.needs if needs is None else frozenset(needs)
        cache = None
        if self.cache_dir is not None and self.frontend is not None and "speech" in needs:
            limit = None if self.cache_gb is None else int(self.cache_gb * 1e9)
            folder = Path(self.cache_dir) / "features"
            cache = FeatureCache(folder, self.frontend.fingerprint, self.cache_dtype, limit)
            cache.join()
        return Collator(
            self.frontend,
            self.tokenizer,
            needs,
            prepared={name: self.read_prepared(name) for name in PREPARED if name in needs},
            speakers=self.speakers() if "speaker" in needs else None,
            cache=cache,
            audio=self.audio,
        )

    def speakers(self) -> dict[str, int]:
        """Speaker label -> index, over the training data, sorted."""
        return {name: place for place, name in enumerate(sorted(self.rows("train").labels("speaker") - {""}))}

    def _loader(
        self,
        split: str,
        *,
        training: bool,
        keep_all: bool = False,
        tasks: tuple[str, ...] | None = None,
        needs: frozenset[str] | None = None,
        budget: dict[str, Any] | None = None,
        follows: bool = True,
    ) -> ResumableLoader:
        needs = self.needs if needs is None else needs
        items, speeds, sampler = self._sampler(split, training, keep_all, tasks, needs, budget)
        if sampler.oversized:
            over = items.ids(sampler.oversized)
            say(f"{split}: {_count(over)} alone exceed the budget of a batch; each is a batch of its own: {_few(over)}")
        collate = self.collator(needs)
        loader = ResumableLoader(
            _Utterances(items, speeds, self.seed),
            sampler=sampler,
            position=(lambda: position(self.trainer)) if training and follows else None,
            skipped=partial(self.skipped.note, split) if self.on_error == "skip" and not keep_all else None,
            options={
                "collate_fn": collate,
                "num_workers": self.num_workers,
                "persistent_workers": self.num_workers > 0,
                "worker_init_fn": _outlive_signals,
                "pin_memory": torch.cuda.is_available(),
            },
        )
        if training and follows:
            cache = getattr(collate, "cache", None)  # a class of one's own may collate otherwise
            if isinstance(cache, FeatureCache):
                say(cache.line())
            loader.restored = lambda state: restore(self.trainer, state, sampler)
            loader.begun = lambda: follow_epoch(self.trainer, sampler)
        return loader

    def plan(self, needs: Iterable[str], world_size: int = 1) -> tuple[Items, list[list[int]], list[int]]:
        """What training would read: its utterances with their seconds, the batches of the first epoch over all ranks,
        as indices, and those that exceed a budget alone. Reads the manifest and headers of audio, no audio."""
        items, _, sampler = self._sampler("train", True, False, None, frozenset(needs), None, world_size)
        return items, sampler.plan(0), sampler.oversized

    def judge(self, split: str, needs: Iterable[str]) -> dict[str, list[str]]:
        """Reason -> ids of what training, or validation, would leave out of a split, by the rows and by the headers of
        audio whose length no row says. Raises UserError for faulty rows, as training does."""
        unbounded = dict.fromkeys(self.budget)
        return self._choose(self._resolve(split), False, self.tasks, frozenset(needs), unbounded).dropped

    def utterances(self, split: str, *, tasks: Iterable[str], needs: Iterable[str]) -> Items:
        """What of a split can be served, also without a reference; `dropped` says the rest."""
        unbounded = dict.fromkeys(self.budget)
        return self._select(self._resolve(split), True, tuple(tasks), frozenset(needs), unbounded).items

    def _sampler(
        self,
        split: str,
        training: bool,
        keep_all: bool,
        tasks: tuple[str, ...] | None,
        needs: frozenset[str],
        budget: dict[str, Any] | None,
        world_size: int | None = None,
    ) -> tuple[Items, Sequence[float], BatchSampler]:
        """Utterances, the speeds they are played at, and which of them form batches."""
        budget = budget or self.budget
        chosen = self._select(split, keep_all, tasks or self.tasks, needs, budget)
        speeds = self.speed_perturb if training else ()
        more = {}
        if training and self.mix.by is not None:
            labels, names = chosen.items.labels(self.mix.by, self.manifests(split))
            more = {"mixture": self.mix.mixture(labels, names, chosen.seconds)}
            say(f"{split}: mixed by {self.mix.by}, {more['mixture'].line()}")
        sampler = self.batch_sampler(
            seconds=chosen.seconds / min(speeds) if speeds else chosen.seconds,
            tokens=chosen.tokens,
            groups=chosen.items.groups(),
            shuffle=training,
            seed=self.seed,
            world_size=world_size,
            name=split,
            **more,
            **budget,
        )
        return chosen.items, speeds, sampler

    def manifests(self, split: str) -> list[str]:
        """Names of the manifests that the rows of a split are of, in their order; [] where they are of none."""
        return []

    def batch_sampler(self, **settings: Any) -> BatchSampler:
        """Which utterances form a batch, in which order; for a class that forms batches in a way of its own.

        Args:
            settings: for `BatchSampler`, with the lengths, tokens and groups of n utterances.
        """
        return BatchSampler(**settings)

    def _choose(
        self, split: str, keep_all: bool, tasks: tuple[str, ...], needs: frozenset[str], budget: dict[str, Any]
    ) -> Selection:
        """Utterances with their task, seconds and tokens, and why others are left out."""
        counted = budget["batch_tokens"] is not None or (self.max_tokens is not None and not keep_all)
        tokenizer = self.tokenizer
        if counted and tokenizer is None:
            raise UserError("batch_tokens and max_tokens count tokens: give the data a tokenizer")
        units = self.read_units() if "units" in needs else {}
        prepared = {name: self.read_prepared(name) for name in PREPARED[1:] if name in needs}
        slowest = self.slowest if split == "train" else 1.0
        rows = self.rows(split)
        chosen = select(
            rows,
            tasks,
            needs,
            limits=None
            if keep_all
            else Limits(self.min_seconds, self.max_seconds, self.longest_seconds, slowest, self.max_tokens),
            units=units,
            prepared=prepared,
            # One that is still to be trained has none: it gets those of the data.
            knows=tokenizer.knows if tokenizer is not None and tokenizer.languages else None,
            count=None if tokenizer is None else lambda key, places: count_tokens(rows, key, places, tokenizer),
            counted=counted,
            longest_text=None if keep_all else self.longest_text,
            measure=lambda key, places: self._measure_rows(rows, split, key, places),
        )
        self.dropped[split] = chosen.dropped
        return chosen

    def _select(
        self, split: str, keep_all: bool, tasks: tuple[str, ...], needs: frozenset[str], budget: dict[str, Any]
    ) -> Selection:
        """As `_choose`; says what is left out. Raises UserError where nothing is left."""
        chosen = self._choose(split, keep_all, tasks, needs, budget)
        total = len(self.rows(split)) * len(tasks)
        for reason, ids in chosen.dropped.items():
            if self.on_error == "skip" and reason.startswith(UNREADABLE):
                for name in ids:
                    self.skipped.note(split, name, reason)
            else:
                say(f"{split}: dropped {len(ids)} of {total}, {reason}: {_few(ids)}")
        if not len(chosen.items):
            reasons = "; ".join(f"{len(ids)} {reason}" for reason, ids in chosen.dropped.items())
            raise UserError(f"{split}: none of {total} utterances can be used: {reasons}")
        return chosen

    def _measure_rows(self, rows: Rows, split: str, key: str, places: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """As `measure_files`; a file that could be read is not read again. 0, of which nothing is known, where this is
        a look at the first rows."""
        if self.most_rows is not None:
            return np.zeros(len(places)), {}
        known = self._measured.setdefault((split, key), np.full(len(rows), np.nan))
        new = places[np.isnan(known[places])]
        seconds, wrong = measure_files(rows, key, new, self.audio)
        good = ~np.isin(new, list(wrong))
        known[new[good]] = seconds[good]
        return np.nan_to_num(known[places]), wrong

    def target_seconds(self, utterance: Utterance) -> float:
        """Seconds of the target speech, from the header of its file; 0 where there is none."""
        path = utterance.tgt_audio
        if not path:
            return 0.0
        if path not in self._seconds:
            self._seconds[path] = self.audio.seconds(path)
        return self._seconds[path]

    def read_units(self) -> Mapping[str, np.ndarray]:
        """Utterance id -> (U,) int32 target units. Raises UserError where there is no file of units."""
        return self.read_prepared("units")

    @property
    def prepared_paths(self) -> dict[str, str]:
        """Field in `PREPARED` -> its file, of those that are named."""
        return {name: path for name, path in {"units": self.units_path, **self._others}.items() if path is not None}

    def read_prepared(self, name: str) -> Mapping[str, np.ndarray]:
        """Utterance id -> (U,) int32 units or (T, K) int32 codes of a field in `PREPARED`. Raises UserError where there
        is no file of them."""
        if name not in self._prepared:
            codes, path = name.endswith("codes"), self.prepared_paths.get(name)
            verb = "voxzoo units codes" if codes else "voxzoo units extract"
            if path is None:
                what = name.replace("_", " ")
                raise UserError(f"the task reads {what}: set data.{name} to what `{verb}` wrote")
            if not Path(path).is_file():
                raise UserError(f"data.{name}={path}: no such file; `{verb}` writes it")
            self._prepared[name] = (read_codes if codes else read_units)(Path(path), self.cache_dir)
        return self._prepared[name]

    def _refuse_foreign_sampler(self) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "trainer.use_distributed_sampler=true would deal the batches a second time; set it to false"
                " (the data module deals them to the processes)"
            )
        repeated = getattr(trainer, "overfit_batches", 0)
        if repeated:
            raise UserError(
                f"Trainer(overfit_batches={repeated}): the data module deals other batches in each epoch; for the same "
                "ones give it a few rows"
            )


def _few(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")


def _count(ids: list[str]) -> str:
    return f"{len(ids)} utterance{'s' if len(ids) > 1 else ''}"
