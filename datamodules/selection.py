"""Which rows of a manifest a task can use, of what length, and why the others are left out: by whole columns.

Letters: N rows, n utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from .audio import AudioError, AudioFiles
from .codes import Codes
from .collator import FROM_SPEECH
from .manifest import Utterance
from .rows import Rows, groups_of, labels_of
from .units import Units

UNREADABLE = "unreadable audio"
"""Begins the reason for which a row is dropped whose file's header is at fault."""

LONGEST_TEXT = 4096
"""Tokens of a text that is trained on, where `max_tokens` allows no more: attention takes memory by the square."""

LONGEST_UNITS = 16_384
"""Units or codec frames of a row: more than five minutes at 50 a second, and what the same square leaves room for."""

MOST_CHARACTERS = 32
"""Of a token, on average over a text: no tokenizer writes as much with one, so that a longer text is not even cut."""


class Items(Sequence[Utterance]):
    """Utterances: rows, each as one task sees it.

    Args:
        rows: all of a manifest.
        places: (n,) int32 which of them.
        tasks: (n,) uint8 numbers into `names`.
        names: of tasks.
        measured: (n,) seconds of the files whose rows do not say, NaN elsewhere; None where all say.
    """

    def __init__(
        self, rows: Rows, places: np.ndarray, tasks: np.ndarray, names: tuple[str, ...], measured: np.ndarray | None
    ) -> None:
        self.rows, self.names = rows, names
        self._places, self._tasks, self._measured = places, tasks, measured

    def __reduce__(self) -> tuple[Any, ...]:
        # As tensors: what is sent to a worker is memory that both see, and no copy.
        columns = (self._places, self._tasks, self._measured)
        return _again, (self.rows, self.names, *(None if one is None else torch.from_numpy(one) for one in columns))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Utterance | Items:
        if isinstance(index, slice):
            measured = None if self._measured is None else self._measured[index]
            return Items(self.rows, self._places[index], self._tasks[index], self.names, measured)
        item = as_task(self.rows[int(self._places[index])], self.names[self._tasks[index]])
        if self._measured is not None and item.audio and item.duration is None:
            return replace(item, duration=float(self._measured[index]))
        return item

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def ids(self, indices: Sequence[int]) -> list[str]:
        """Ids of some utterances."""
        return [self.rows.text("id", int(self._places[index])) for index in indices]

    def durations(self) -> np.ndarray:
        """(n,) float64 seconds of the source speech, NaN for text."""
        seconds = self.rows.durations()[self._places]
        if self._measured is not None:
            seconds = np.where(np.isnan(seconds), self._measured, seconds)
        spoken = np.array([name in FROM_SPEECH for name in self.names])
        return np.where(spoken[self._tasks], seconds, np.nan)

    def characters(self) -> np.ndarray:
        """(n,) characters of the longer of the source and the target text."""
        source = self.rows.characters("src_text")[self._places]
        target = self.rows.characters("tgt_text")[self._places]
        repeats = np.array([name == "asr" for name in self.names])
        return np.where(repeats[self._tasks], source, np.maximum(source, target))

    def labels(self, by: str, manifests: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
        """(n,) number of the group of each, and the names of the groups, sorted.

        Args:
            by: `languages`, `src_lang`, `tgt_lang`, `speaker`, `manifest` or `task`.
            manifests: their names, in the order of the rows.
        """
        if by == "task":
            return labels_of([(self._tasks.astype(np.int64), self.names)])
        codes, names = groups_of(self.rows, by, manifests)
        return labels_of([(codes[self._places], names)])

    def groups(self) -> np.ndarray:
        """(n,) number of each task in the order of their names."""
        order = sorted(self.names)
        return np.array([order.index(name) for name in self.names], np.uint8)[self._tasks]


@dataclass(frozen=True)
class Selection:
    """What can be used, and why the rest cannot.

    Attributes:
        items: n utterances.
        seconds: (n,) to plan batches with, 0 for text.
        tokens: (n,) of the target, with those around it; None where they are not counted.
        dropped: reason -> ids, in the order of the rows.
    """

    items: Items
    seconds: np.ndarray
    tokens: np.ndarray | None
    dropped: dict[str, list[str]]


@dataclass(frozen=True)
class Limits:
    """What is left out by its size.

    Attributes:
        min_seconds, max_seconds: of the audio.
        longest: seconds that the model takes, None for any.
        slowest: the slowest speed at which audio is played.
        max_tokens: of the target, None for up to `LONGEST_TEXT`.
    """

    min_seconds: float
    max_seconds: float | None
    longest: float | None
    slowest: float
    max_tokens: int | None


Count = Callable[[str, np.ndarray], np.ndarray]
"""(key of a text, (k,) rows) -> (k,) tokens of each."""


def select(
    rows: Rows,
    tasks: Sequence[str],
    needs: frozenset[str],
    *,
    limits: Limits | None,
    units: Mapping[str, np.ndarray],
    prepared: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    count: Count | None,
    knows: Callable[[str], bool] | None = None,
    counted: bool = True,
    longest_text: int | None = None,
    measure: Callable[[str, np.ndarray], tuple[np.ndarray, dict[int, str]]],
) -> Selection:
    """Choose the utterances of a manifest that can be used.

    Args:
        rows: N of them; each is asked for each task.
        tasks: names.
        needs: `Batch` fields.
        limits: None keeps those without a target text and of any size.
        units: id -> units, read where they are needed.
        prepared: field -> id -> what else is needed of prepared units and codes.
        count: of tokens; None where there is no tokenizer. Of texts up to `MOST_CHARACTERS` for each token that may be.
        knows: whether the tokenizer has a language; None: any will do.
        counted: whether the tokens of all are counted.
        longest_text: most tokens of a target text, for which the model has positions; None: any number. Those texts
            alone are counted that may be longer.
        measure: (key of a path, (k,) rows) -> their (k,) seconds, and what is wrong with the file of a row.
    """
    reasons: dict[str, int] = {"": 0}
    why = np.zeros((len(rows), len(tasks)), np.int32)
    seconds = np.zeros((len(rows), len(tasks)))
    tokens = np.zeros((len(rows), len(tasks)), np.int32) if counted and count is not None else None
    lengths = _lengths(rows, units) if "units" in needs else np.empty(0, np.int64)
    others = {name: _lengths(rows, found) for name, found in (prepared or {}).items()}
    for column, task in enumerate(tasks):
        view = _View(rows, task, needs, why[:, column], seconds[:, column], reasons)
        view.drop_without_what_is_read(with_target=limits is not None)
        if knows is not None:
            view.drop_unknown_languages(knows)
        view.drop_unprepared(lengths, others)
        view.measure(lengths, measure)
        if limits is not None:
            view.drop_by_length(limits)
        if longest_text is not None and count is not None and "target" in needs:
            view.drop_long_texts(longest_text, count)
        if count is not None and limits is not None:
            view.drop_endless_texts(max(LONGEST_TEXT, limits.max_tokens or 0), count)
        if tokens is not None:
            assert count is not None
            view.count(count, tokens[:, column])
            if limits is not None and limits.max_tokens is not None:
                view.drop(tokens[:, column] > limits.max_tokens, f"more than {limits.max_tokens} tokens")
    kept = np.flatnonzero(why.reshape(-1) == 0).astype(np.int32)
    places, numbers = kept // len(tasks), (kept % len(tasks)).astype(np.uint8)
    length = seconds.reshape(-1) if len(kept) == why.size else seconds.reshape(-1)[kept]
    unsaid = np.isnan(rows.durations()) & rows.has("audio")
    measured = None
    if unsaid.any():
        spoken = np.array([task in FROM_SPEECH for task in tasks])[numbers]
        measured = np.where(spoken & unsaid[places], length, np.nan)
    return Selection(
        Items(rows.whole(), rows.numbers(places), numbers, tuple(tasks), measured),
        length,
        None if tokens is None else tokens.reshape(-1)[kept],
        _dropped(rows, why, list(reasons)),
    )


@dataclass(frozen=True)
class _View:
    """The rows as one task sees them.

    Attributes:
        rows: N of them.
        task: its name.
        needs: `Batch` fields.
        why: (N,) int32 number of the reason for which a row is left out, 0 for none; filled in here.
        seconds: (N,) of its speech, 0 for text; filled in here.
        reasons: their numbers, shared by all tasks.
    """

    rows: Rows
    task: str
    needs: frozenset[str]
    why: np.ndarray
    seconds: np.ndarray
    reasons: dict[str, int]

    @property
    def spoken(self) -> bool:
        return self.task in FROM_SPEECH

    @property
    def reads_speech(self) -> bool:
        return self.spoken and "speech" in self.needs

    @property
    def target(self) -> str:
        return "src_text" if self.task == "asr" else "tgt_text"

    def drop(self, which: np.ndarray, reason: str) -> None:
        """Leave out rows; of several reasons the first one counts."""
        self.why[which & (self.why == 0)] = self.reasons.setdefault(reason, len(self.reasons))

    def kept(self) -> np.ndarray:
        """Which rows are not left out so far."""
        return self.why == 0

    def drop_without_what_is_read(self, *, with_target: bool) -> None:
        if self.reads_speech:
            self.drop(~self.rows.has("audio"), "no audio")
        if not self.spoken:
            self.drop(~self.rows.has("src_text"), "no source text")
        if "target" in self.needs and with_target:
            self.drop(~self.rows.has(self.target), "no target text")

    def drop_unknown_languages(self, knows: Callable[[str], bool]) -> None:
        asked = [("src_lang" if self.task == "asr" else "tgt_lang")] if "target" in self.needs else []
        for key in (*asked, *(() if self.spoken else ("src_lang",))):
            for lang in sorted(self.rows.labels(key) - {""}):
                if not knows(lang):
                    self.drop(self.rows.labelled(key, [lang]), f"no token for the language {lang!r} in the tokenizer")

    def drop_unprepared(self, lengths: np.ndarray, others: Mapping[str, np.ndarray]) -> None:
        """`lengths`: (N,) units, -1 where there are none; `others`: the same of other prepared fields."""
        if "target_speech" in self.needs:
            self.drop(
                ~self.rows.has("tgt_audio") if self.task != "asr" else np.ones(len(self.rows), bool), "no target audio"
            )
        if "units" in self.needs:
            self.drop(lengths < 0, "no units")
            self.drop(lengths > LONGEST_UNITS, f"more than {LONGEST_UNITS:,} units")
        for name, sizes in others.items():
            self.drop(sizes < 0, f"no {name.replace('_', ' ')}")
            self.drop(sizes == 0, f"empty {name.replace('_', ' ')}")
            self.drop(sizes > LONGEST_UNITS, f"more than {LONGEST_UNITS:,} {name.replace('_', ' ')}")

    def measure(
        self, lengths: np.ndarray, measure: Callable[[str, np.ndarray], tuple[np.ndarray, dict[int, str]]]
    ) -> None:
        """Fill in the seconds; files are looked at only of rows that are kept and do not say."""
        length = self.seconds
        if self.reads_speech or "target_speech" in self.needs:
            places = np.flatnonzero(self.kept())
            if self.reads_speech:
                length[:] = self.rows.durations()
                unsaid = np.isnan(length)
                length[unsaid] = 0
                places = places[unsaid[places]]
            if len(places):
                length[places], wrong = measure("audio" if self.reads_speech else "tgt_audio", places)
                for place, message in wrong.items():
                    self.why[place] = self.reasons.setdefault(f"{UNREADABLE} ({message})", len(self.reasons))
        elif "units" in self.needs:
            length[:] = 0.02 * lengths

    def drop_by_length(self, limits: Limits) -> None:
        length, longest = self.seconds, limits.longest
        known = length > 0
        self.drop(known & (length < limits.min_seconds), f"shorter than {limits.min_seconds:g} s")
        if limits.max_seconds is not None:
            self.drop(known & (length > limits.max_seconds), f"longer than {limits.max_seconds:g} s")
        if self.reads_speech and longest is not None:
            speed = f" at {limits.slowest:g} times the speed" if limits.slowest < 1 else ""
            self.drop(
                known & (length / limits.slowest > longest),
                f"longer than {longest:g} s{speed}, the most that the model takes",
            )

    def drop_long_texts(self, longest: int, count: Count) -> None:
        beyond = self._longer(self.target, longest, count)
        self.drop(beyond, f"more than {longest} tokens, the most that the model has positions for")

    def drop_endless_texts(self, most: int, count: Count) -> None:
        """Of all texts that are cut into tokens."""
        keys: list[str] = ["src_text"] if self.needs & {"transcript", "source"} else []
        if "target" in self.needs and self.target not in keys:
            keys.append(self.target)
        for key in keys:
            side = "source" if key == "src_text" else "target"
            self.drop(self._longer(key, most, count), f"a {side} text of more than {most:,} tokens")

    def _longer(self, key: str, most: int, count: Count) -> np.ndarray:
        """(N,) bool: which texts of rows that are kept have more than `most` tokens. Only those are counted of which
        their characters do not say it."""
        characters = self.rows.characters(key)
        beyond = self.kept() & (characters > MOST_CHARACTERS * most)
        # No tokenizer has more tokens than bytes, and no character more than four of these.
        maybe = np.flatnonzero(self.kept() & ~beyond & (4 * characters > most))
        if len(maybe):
            beyond[maybe] = count(key, maybe) > most
        return beyond

    def count(self, count: Count, tokens: np.ndarray) -> None:
        """Fill in the (N,) `tokens` of rows that are kept, with those around them."""
        places = np.flatnonzero(self.kept())
        counts = count(self.target, places) + 3
        if not self.spoken:
            counts = np.maximum(counts, count("src_text", places) + 2)
        tokens[places] = counts


def as_task(row: Utterance, task: str) -> Utterance:
    """The row as one task sees it."""
    if task == "asr":
        return replace(row, task=task, tgt_lang=row.src_lang, tgt_text=row.src_text, tgt_audio=None, references=())
    if task in FROM_SPEECH:
        return replace(row, task=task)
    return replace(row, task=task, audio=None, duration=None)


def measure_files(rows: Rows, key: str, places: np.ndarray, audio: AudioFiles) -> tuple[np.ndarray, dict[int, str]]:
    """Seconds of the files of some rows, from their headers, and what is wrong with the file of a row; each file is
    read once."""
    hashes = np.fromiter(map(hash, rows.paths(key, places)), np.int64, len(places))
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    seconds, wrong = np.zeros(len(first)), {}
    for number, path in enumerate(rows.paths(key, places[first])):
        try:
            seconds[number] = audio.seconds(path or "")
        except AudioError as error:
            wrong[number] = str(error)
    bad = np.flatnonzero(np.isin(which, list(wrong))) if wrong else ()
    return seconds[which], {int(places[index]): wrong[int(which[index])] for index in bad}


def _lengths(rows: Rows, units: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) units of each row, -1 where there are none."""
    if isinstance(units, Units | Codes):
        return units.lengths(rows.texts("id"))
    found = (units.get(name) for name in rows.texts("id"))
    return np.fromiter((-1 if one is None else len(one) for one in found), np.int64, len(rows))


def _dropped(rows: Rows, why: np.ndarray, reasons: list[str]) -> dict[str, list[str]]:
    """Reason -> ids, in the order of the rows."""
    tasks = why.shape[1]
    gone = np.flatnonzero(why)
    codes = why.reshape(-1)[gone]
    order = np.argsort(codes, kind="stable")
    numbers, begin = np.unique(codes[order], return_index=True)
    groups = np.split(gone[order], begin[1:])
    found = sorted(zip((group[0] for group in groups), numbers, groups)) if len(numbers) else []
    return {reasons[number]: [rows.text("id", int(flat) // tasks) for flat in group] for _, number, group in found}


def _again(rows: Rows, names: tuple[str, ...], places: Tensor, tasks: Tensor, measured: Tensor | None) -> Items:
    return Items(rows, places.numpy(), tasks.numpy(), names, None if measured is None else measured.numpy())
