"""`SpeechTranslationData`: manifests (or a built-in corpus) to batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..components.errors import UserError
from .manifest import Utterance, did_you_mean, named, paths_of
from .resume import say
from .rows import Rows, open_rows
from .spoken_phrases import SpokenPhrases
from .utterances import VALIDATION, UtteranceData

_SHOWN = 5


class SpeechTranslationData(UtteranceData):
    """Batches for every task of the zoo, the same on 1 or W processes and after a restart.

    Args:
        train, valid: a manifest (`.jsonl` or `.tsv`), or several that are one list of rows; ids are unique over all.
        test: split name -> manifest or manifests.
        corpus: a built-in corpus in place of manifests; `prepare_data` makes it.
        options: all else that `UtteranceData` takes.

    Raises:
        UserError: contradictory settings; later, data that cannot be used.
    """

    def __init__(
        self,
        *,
        train: str | list[str] | None = None,
        valid: str | list[str] | None = None,
        test: dict[str, str | list[str] | None] | None = None,
        corpus: SpokenPhrases | None = None,
        **options: Any,
    ) -> None:
        tests = [path for path in (test or {}).values() if path]
        given = [name for name, value in (("train", train), ("valid", valid), ("test", tests)) if value]
        if corpus is not None and given:
            raise UserError(f"data.corpus brings its own splits: leave out {', '.join(given)}, or set corpus to null")
        if corpus is None and not given:
            raise UserError("there is no data: set data.train, data.valid and data.test to manifests, or data.corpus")
        super().__init__(**options)
        self.corpus = corpus
        self._paths: dict[str, str | list[str]] = {}
        if corpus is None:
            splits = {"train": train, "valid": valid, **(test or {})}
            self._paths = {split: path if isinstance(path, str) else [*path] for split, path in splits.items() if path}

    def prepare_data(self) -> None:
        """Make the built-in corpus, if there is one."""
        if self.corpus is not None:
            self.corpus.prepare()

    def unprepared(self) -> str | None:
        """That the built-in corpus is not made yet, where it is not."""
        if self.corpus is not None and not self.corpus.is_prepared:
            return "the built-in corpus is not made yet (`voxzoo train` makes it)"
        return None

    def source(self) -> str:
        """The manifest of the training data, the first of several, or the folder of the corpus."""
        return str(self.corpus.folder) if self.corpus is not None else named(self._paths["train"])

    def splits(self) -> tuple[str, ...]:
        """Names that `rows`, `texts` and `loader` take; also `test`, for the first test set."""
        return self.corpus.splits if self.corpus is not None else tuple(self._paths)

    def manifest(self, split: str) -> str | list[str]:
        """The file that a split is read from, or files, also for `test`, the first test set. Raises UserError where
        there is none."""
        return self._manifest(self._resolve(split))

    def _manifest(self, split: str) -> str | list[str]:
        if self.corpus is not None:
            self.corpus.prepare()
            return str(self.corpus.manifests()[split])
        return self._paths[split]

    def manifests(self, split: str) -> list[str]:
        """As `UtteranceData.manifests`, as they were given."""
        return list(map(str, paths_of(self._manifest(split))))

    def read(self, split: str) -> Rows:
        """The manifests of a split, as written. Raises UserError for a faulty manifest."""
        path = self._manifest(split)
        rows = open_rows(path, self.cache_dir, skip=self.on_error == "skip", most=self.most_rows)
        for name, reason in rows.faults:
            self.skipped.note(split, name, reason)
        if rows.extra:
            keys = ", ".join(f"{key!r} ({count}{did_you_mean(key)})" for key, count in rows.extra.most_common(_SHOWN))
            say(f"{named(path)}: ignored {len(rows.extra)} unknown key{'s' if len(rows.extra) > 1 else ''}: {keys}")
        parts = [_of_split(part, split, one) for part, one in zip(rows.by_manifest(), paths_of(path), strict=True)]
        if len(parts) == 1:
            return parts[0]
        return rows.take(np.concatenate([part.numbers(np.arange(len(part), dtype=np.int32)) for part in parts]))

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Split -> utterances, hours, shortest and longest (seconds), words a side, languages, speakers."""
        return {split: describe(self.rows(split)) for split in self.splits()}


_SAME = (frozenset({"train", "training"}), VALIDATION)
"""Names that corpora have for one split."""


def _of_split(rows: Rows, split: str, path: object) -> Rows:
    """The rows of a split, of a manifest for several; all of one that names no splits, or a single one.

    Raises:
        UserError: it names other splits.
    """
    labels = rows.labels("split")
    names = sorted(labels - {""})
    if not names:
        return rows
    alike = next((group for group in _SAME if split in group), frozenset({split}))
    found = [split] if split in labels else [name for name in names if name in alike]
    if not found and len(labels) == 1:
        say(f"{path}: all rows are of the split {names[0]!r}; they are taken as {split}")
        return rows
    if len(found) != 1:
        there = ", ".join(f"{name!r} ({len(rows.of_split(name))} rows)" for name in names)
        raise UserError(
            f"{path}: none of its rows is of the split {split!r}; there are {there}: name one of them {split!r}, or "
            "give a manifest of its own"
        )
    own = rows.of_split(found[0])
    if len(own) < len(rows):
        called = "" if found[0] == split else f", which it calls {found[0]!r}"
        say(f"{path}: {len(own)} of {len(rows)} rows are of the split {split}{called}")
    return own


def describe(rows: Iterable[Utterance]) -> dict[str, Any]:
    """Size of a manifest: utterances, hours, shortest and longest (seconds), words a side, languages, speakers."""
    count, words = 0, [0, 0]
    seconds: list[float] = []
    pairs: Counter[str] = Counter()
    speakers: set[str] = set()
    for row in rows:
        count += 1
        if row.duration is not None:
            seconds.append(row.duration)
        pairs[f"{row.src_lang}-{row.tgt_lang}" if row.tgt_lang else row.src_lang] += 1
        words = [words[0] + len(row.src_text.split()), words[1] + len(row.tgt_text.split())]
        if row.speaker:
            speakers.add(row.speaker)
    return {
        "utterances": count,
        "hours": round(math.fsum(seconds) / 3600, 3),
        "shortest": min(seconds, default=None),
        "longest": max(seconds, default=None),
        "src_words": words[0],
        "tgt_words": words[1],
        "languages": dict(sorted(pairs.items())),
        "speakers": len(speakers),
    }
