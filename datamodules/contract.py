"""The contract of a data module, as a tool: what training asks of it, said in one line where it is broken.

    from voxzoo.datamodules.contract import check_data

    check_data(lambda: MyData(root="clips", batch_size=8, frontend=Fbank()))

`voxzoo parts check data=mine` does the same by configs. Several ranks are played one after the other by this process,
each in Lightning's own loops. Rows are read many times over, audio only for the first batches where the module derives
from `UtteranceData`: a data module that reads by itself is best given a small part of its data.

Letters: B batch, W world size.
"""

from __future__ import annotations

import copy
import logging
import pickle
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..components.contract import Check, NotAsked, Outcome, collect, require
from ..components.errors import UserError
from ..components.roles import DataModule, Tokenizer
from ..components.types import Batch, Padded
from ..configs.build import build
from ..configs.check import check, foreign_folders
from ..configs.compose import compose, origins
from ..configs.targets import allow_list
from .audio import AudioError, AudioFiles
from .collator import FROM_SPEECH
from .ranks import Read, first_batches, read_epochs, read_valid

_RANKS = (1, 2, 3)
_MOVES = ((1, 1), (2, 2), (2, 1), (1, 2), (2, 3))
"""World sizes before and after a restart."""
_LOOKED_AT = 3  # batches whose content is looked at
_CLIPS = 32  # of each split that are read
_SHOWN = 3
_NEAR = 0.05  # seconds by which a plan may differ from the audio

_BESIDE = ("frontend=tiny",)

Make = Callable[[], DataModule]


def check_data(data: DataModule | Make, needs: Iterable[str] | None = None) -> list[Outcome]:
    """Check a data module against its contract.

    Args:
        data: what builds one without arguments, or one, of which copies are used. Without a tokenizer it gets one of
            characters.
        needs: `Batch` fields to ask for; None: speech, source and target as the module's tasks have them.

    Raises:
        ContractError: a line for each broken check.
    """
    made = data if isinstance(data, DataModule) else data()
    outcomes = examine_data(data, needs)
    require(type(made).__name__, outcomes)
    return outcomes


def examine_data(data: Any, needs: Iterable[str] | None = None) -> list[Outcome]:
    """As `check_data`; what is broken is said in the outcomes and not raised."""
    if torch.distributed.is_initialized():
        raise UserError("check_data plays several ranks in one process: call it where there is no process group")
    made = data() if callable(data) and not isinstance(data, DataModule) else data
    if not isinstance(made, DataModule):
        fault = f"{type(made).__name__} is no DataModule: derive it from voxzoo.datamodules.UtteranceData"
        return [Outcome("role", fault)]
    with torch.random.fork_rng(devices=[]), _quiet():
        return collect(_Checks(data, needs).all())


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what Lightning says of some thirty trainings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def examine_choice(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[type, list[Outcome]]:
    """Check the data module that `data=CHOICE` names, as `voxzoo parts check` does.

    Args:
        overrides: as for `voxzoo train`; parts beside it are the tiny ones, where they are not chosen.
        config_dirs: further folders of YAML groups.

    Returns:
        The class, and what was found.

    Raises:
        UserError: faults of `data` in the config, or data that are not there.
    """
    config = compose([*_BESIDE, *overrides], config_dirs=config_dirs)
    faults = [str(fault) for fault in check(config) if fault.path.split(".")[0] == "data"]
    asked = origins([*_BESIDE, *overrides], config_dirs=config_dirs)
    faults += [str(fault) for fault in foreign_folders(config, asked)]
    if faults:
        raise UserError("\n  ".join([f"{len(faults)} fault{'s' * (len(faults) > 1)} in the config:", *faults]))
    allowed = allow_list(config)

    def make() -> Any:
        return build(config.data, allowed=allowed, tokenizer=None)

    return type(make()), examine_data(make)


class _Checks:
    """The checks of one data module, and what they read of it."""

    def __init__(self, data: Any, needs: Iterable[str] | None) -> None:
        self._data = data
        self._needs = None if needs is None else frozenset(needs)
        self._tokenizer: Tokenizer | None = None
        self._prepared = False
        self._epochs: dict[int, list[list[Read]]] = {}

    def all(self) -> Iterator[Check]:
        yield "runs", self.runs
        yield "rows", self.rows
        yield "languages", self.languages
        yield "texts", self.texts
        yield "needs", self.needs
        yield "plan", self.plan
        yield "lengths", self.lengths
        yield "ranks", self.ranks
        yield "once", self.once
        yield "order", self.order
        yield "content", self.content
        yield "audio", self.audio
        yield "resume", self.resume
        yield "workers", self.workers
        yield "pickles", self.pickles
        yield "validation", self.validation

    # What is looked at

    def fresh(self) -> DataModule:
        """One that nothing has been asked of."""
        data = copy.deepcopy(self._data) if isinstance(self._data, DataModule) else self._data()
        if not self._prepared:
            data.prepare_data()
            self._prepared = True
        if self._tokenizer is None:
            rows = [row for split in data.splits() for row in data.rows(split)]
            spoken = {lang for row in rows for lang in (row.src_lang, row.tgt_lang)} - {""}
            self._tokenizer = data.tokenizer or _Characters(sorted(spoken))
        data.tokenizer = self._tokenizer
        if self._needs is None:
            self._needs = _usual(data)
        data.needs = self._needs
        return data

    @property
    def asked(self) -> frozenset[str]:
        assert self._needs is not None
        return self._needs

    def epochs(self, world_size: int) -> list[list[Read]]:
        """Of each rank the batches of two epochs."""
        if world_size not in self._epochs:
            self._epochs[world_size] = [read_epochs(self.fresh(), rank, world_size, 2) for rank in range(world_size)]
        return self._epochs[world_size]

    def dealt(self, world_size: int) -> list[list[Read]]:
        """As `epochs`. Raises NotAsked where there are fewer utterances than ranks."""
        count = len(self.fresh().plan(self.asked)[0])
        if count < 2 * world_size:
            raise NotAsked(f"{count} utterances are too few for {world_size} ranks")
        return self.epochs(world_size)

    def expected(self, epoch: int) -> Counter[tuple[str, str]]:
        """What is to be read in an epoch: each utterance once, or, mixed, what one rank reads of it."""
        data = self.fresh()
        if getattr(getattr(data, "mix", None), "by", None) is None:
            return Counter((item.task, item.id) for item in data.plan(self.asked)[0])
        return _rows(read for read in self.epochs(1)[0] if read.epoch == epoch)

    # Checks

    def runs(self) -> str | None:
        data = self.fresh()
        if "train" not in data.splits():
            return f"there is no split 'train'; `splits` says {', '.join(data.splits()) or 'none'}"
        first = next(iter(first_batches(self.fresh(), 1)), None)
        if first is None:
            return "training gets no batch"
        if not isinstance(first, Batch):
            return f"a batch is a {type(first).__name__}, not a components.types.Batch"
        return None

    def rows(self) -> str | None:
        """Each row of the training data is planned for each task, or said to be dropped."""
        data = self.fresh()
        rows = data.rows("train")
        twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
        if twice:
            return f"rows of one id in the split train: {_few(twice)}; ids must be unique"
        items, _, _ = data.plan(self.asked)
        found = Counter((item.task, item.id) for item in items)
        gone = Counter(name for names in data.dropped.get("train", {}).values() for name in names)
        for row in rows:
            count = sum(found[task, row.id] for task in data.tasks)
            if count + gone[row.id] != len(data.tasks):
                return (
                    f"row {row.id} is planned {count} times and dropped {gone[row.id]} times for "
                    f"{len(data.tasks)} task{'s' * (len(data.tasks) > 1)}: leave none out without a word in `dropped`"
                )
        strange = {name for _, name in found} - {row.id for row in rows}
        return f"utterances that are no rows are planned: {_few(sorted(strange))}" if strange else None

    def languages(self) -> str | None:
        data = self.fresh()
        known = set(data.languages())
        for split in data.splits():
            for row in data.rows(split):
                for lang in (row.src_lang, row.tgt_lang):
                    if lang and lang not in known:
                        return f"row {row.id} of {split} has the language {lang!r}, which `languages` leaves out"
        return None

    def texts(self) -> str | None:
        data = self.fresh()
        known = set(data.texts("train"))
        for row in data.rows("train"):
            for key in ("src_text", "tgt_text"):
                if getattr(row, key) and getattr(row, key) not in known:
                    return f"row {row.id}: its {key} is not among `texts`, which a vocabulary is trained on"
        return None

    def needs(self) -> str | None:
        """The first batches hold what the task reads, each field as long as the batch."""
        for batch in first_batches(self.fresh(), _LOOKED_AT):
            tasks = set(batch.task)
            if len(tasks) != 1 or len(batch.task) != len(batch.ids):
                return f"{_of(batch)} holds the tasks {sorted(tasks)}: expected one, said for each row"
            speaks = tasks <= FROM_SPEECH
            for name in sorted(self.asked):
                value = getattr(batch, name)
                if value is None:
                    if (speaks and name == "source" and "speech" in self.asked) or (not speaks and name == "speech"):
                        continue
                    return f"{_of(batch)} has no {name}, which the task reads (`needs`)"
                if len(value) != len(batch):
                    return f"{_of(batch)}: {name} has {len(value)} rows, not {len(batch)}"
                words = _padded(value) if isinstance(value, Padded) else None
                if words:
                    return f"{_of(batch)}: {name} {words}"
        return None

    def plan(self) -> str | None:
        """What `plan` says is what ranks read in the first epoch."""
        data = self.fresh()
        for world_size in (1, 2):
            items, batches, _ = data.plan(self.asked, world_size)
            names = [[(items[index].task, items[index].id) for index in batch] for batch in batches]
            for rank, found in enumerate(self.dealt(world_size)):
                first = [read.rows for read in found if read.epoch == 0]
                mine = names[rank::world_size]
                if [sorted(rows) for rows in first] != [sorted(rows) for rows in mine]:
                    place = next((n for n, (a, b) in enumerate(zip(first, mine)) if sorted(a) != sorted(b)), None)
                    where = f"{len(mine)} batches, {len(first)} are read" if place is None else f"another batch {place}"
                    return f"rank {rank} of {world_size}: `plan` says {where}"
        return None

    def lengths(self) -> str | None:
        """The plan's durations are those of the audio."""
        data = self.fresh()
        items, batches, _ = data.plan(self.asked)
        front = data.frontend
        spoken = [i for batch in batches[:_LOOKED_AT] for i in batch if items[i].task in FROM_SPEECH]
        if front is None or "speech" not in self.asked or not spoken:
            raise NotAsked("no speech is read")
        collate = data.collator({"speech"})
        for index in spoken:
            item = items[index]
            if item.duration is None:
                return f"utterance {item.id} is planned without a duration"
            speech = collate([item]).speech
            if speech is None:
                return f"utterance {item.id}: `collator` reads no speech"
            length, (low, high) = int(speech.lengths[0]), _frames(front, item.duration)
            if not low <= length <= high:
                return (
                    f"utterance {item.id} is planned with {item.duration:.3f} s, which are {low} to {high} frames, but "
                    f"its audio makes {length}: say the duration of the audio itself, or None to have it read"
                )
        return None

    def ranks(self) -> str | None:
        for world_size in _RANKS[1:]:
            for epoch in (0, 1):
                counts = [sum(read.epoch == epoch for read in found) for found in self.dealt(world_size)]
                if len(set(counts)) > 1:
                    return (
                        f"{world_size} ranks get {', '.join(map(str, counts))} batches in epoch {epoch}: the others "
                        "would wait for the one with more for ever; split or drop batches until all have as many"
                    )
        return None

    def once(self) -> str | None:
        for world_size in _RANKS:
            for epoch in (0, 1):
                expected = self.expected(epoch)
                reads = [read for found in self.dealt(world_size) for read in found if read.epoch == epoch]
                words = _compare(_rows(reads), expected)
                if words:
                    return f"epoch {epoch} on {world_size} rank{'s' * (world_size > 1)}: {words}"
        return None

    def order(self) -> str | None:
        """The same order for the same seed, another one in the next epoch."""
        (found,) = self.epochs(1)
        again = read_epochs(self.fresh(), 0, 1, 2)
        if found != again:
            return "two runs of one seed read other batches: draw from the seed and the epoch alone"
        first, second = ([read.rows for read in found if read.epoch == epoch] for epoch in (0, 1))
        if len(_rows(found)) > 3 and len(first) > 3 and first == second:
            return "the second epoch has the order of the first: draw from the epoch too"
        return None

    def content(self) -> str | None:
        pairs = zip(first_batches(self.fresh(), _LOOKED_AT), first_batches(self.fresh(), _LOOKED_AT))
        for one, other in pairs:
            words = _difference(one, other)
            if words:
                return f"{_of(one)}: {words} when the same epoch is read again: draw from the seed, epoch and id alone"
        return None

    def audio(self) -> str | None:
        """Clips of every split can be read: some of them, spread over the split, since there may be many."""
        data = self.fresh()
        files = getattr(data, "audio", None)
        rate = int(getattr(data.frontend, "sample_rate", 16000))
        tried = 0
        if not isinstance(files, AudioFiles):
            raise NotAsked("it reads no files")
        for split in data.splits():
            clips = [(row.id, clip) for row in data.rows(split) for clip in (row.audio, row.tgt_audio) if clip]
            some = clips[:: -(-len(clips) // _CLIPS)] if clips else []
            broken = []
            for name, clip in some:
                try:
                    files.load(clip, rate)
                except AudioError as error:
                    broken.append(f"{name}: {error}")
            tried += len(some)
            if broken:
                of_all = "" if len(some) == len(clips) else f" that were tried, of {len(clips)}"
                return f"{len(broken)} of {len(some)} clips of {split}{of_all} cannot be read: {_few(broken)}"
        if not tried:
            raise NotAsked("it names no audio")
        return None

    def resume(self) -> str | None:
        expected = [self.expected(epoch) for epoch in (0, 1)]
        asked = 0
        for before, after in _MOVES:
            try:
                straight = {world_size: self.dealt(world_size) for world_size in (before, after)}
            except NotAsked:
                continue
            count = sum(read.epoch == 0 for read in straight[before][0])
            if count < 2:
                continue
            asked += 1
            words = self._moved(before, after, max(1, count // 2), straight[before], expected)
            if words:
                return words
        if not asked:
            raise NotAsked("an epoch of one batch has no middle")
        return None

    def _moved(
        self, before: int, after: int, done: int, straight: list[list[Read]], expected: list[Counter[Any]]
    ) -> str | None:
        """Stop after `done` batches on `before` ranks, go on with `after`."""
        where = f"{done} batches on {before} rank{'s' * (before > 1)}, then {after}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "middle.ckpt"
            for rank in reversed(range(before)):  # rank 0 writes, the last
                read_epochs(self.fresh(), rank, before, 2, stop=(done, file))
            rest = [read_epochs(self.fresh(), rank, after, 2, resume=file) for rank in range(after)]
        if before == after:
            for rank, found in enumerate(rest):
                if found != straight[rank][done:]:
                    lost = _compare(_rows(found), _rows(straight[rank][done:]))
                    return f"{where}: rank {rank} goes on with other batches ({lost or 'in another order'}); {_STATE}"
            return None
        for epoch in (0, 1):
            counts = [sum(read.epoch == epoch for read in found) for found in rest]
            if len(set(counts)) > 1:
                return f"{where}: the ranks get {', '.join(map(str, counts))} batches in epoch {epoch}"
        taken = [read for found in straight for read in found[:done]]
        first = _rows([*taken, *(read for found in rest for read in found if read.epoch == 0)])
        words = _compare(first, expected[0], missing=False)
        if words:
            return f"{where}: in the epoch {words}; {_STATE}"
        # What is too little to go round at the epoch's end may come in the next one.
        whole = _rows([*taken, *(read for found in rest for read in found)])
        words = _compare(whole, expected[0] + expected[1])
        if words:
            return f"{where}: by the end of the next epoch {words}; {_STATE}"
        return None

    def workers(self) -> str | None:
        if not hasattr(self.fresh(), "num_workers"):
            raise NotAsked("it has no num_workers")
        found: list[list[Batch]] = []
        for count in (0, 2):
            data = self.fresh()
            data.num_workers = count  # pyright: ignore[reportAttributeAccessIssue]
            found.append(list(first_batches(data, _LOOKED_AT)))
        for one, other in zip(*found, strict=True):
            words = f"other rows, {_few(other.ids)}" if one.ids != other.ids else _difference(one, other)
            if words:
                return f"{_of(one)}: {words} with two workers: a worker may not count what it has read itself"
        return None

    def pickles(self) -> str | None:
        loader = self.fresh().train_dataloader()
        things = {"what `collator` makes": self.fresh().collator(self.asked)}
        things |= {
            f"the loader's {name}": getattr(loader, name) for name in ("dataset", "collate_fn") if hasattr(loader, name)
        }
        for name, thing in things.items():
            try:
                pickle.loads(pickle.dumps(thing))
            except Exception as error:
                return f"{name} cannot be pickled for a data worker ({' '.join(str(error).split())})"
        return None

    def validation(self) -> str | None:
        if "valid" not in self.fresh().splits():
            raise NotAsked("there is no split 'valid'")
        one, other = (read_valid(self.fresh(), 0, 1) for _ in range(2))
        if one != other:
            return "validation reads other batches when it is asked again: scores could not be compared"
        expected = _rows(one)
        twice = [name for (_, name), count in expected.items() if count > 1]
        if twice:
            return f"validation reads rows more than once: {_few(twice)}"
        data = self.fresh()
        items = data.utterances("valid", tasks=data.tasks, needs=self.asked)
        strange = set(expected) - {(item.task, item.id) for item in items}
        if strange:
            return f"validation reads what `utterances` leaves out: {_few(name for _, name in strange)}"
        for world_size in _RANKS[1:]:
            if len(expected) < 2 * world_size:
                continue
            found = [read_valid(self.fresh(), rank, world_size) for rank in range(world_size)]
            if len({len(reads) for reads in found}) > 1:
                counts = ", ".join(str(len(reads)) for reads in found)
                return f"{world_size} ranks get {counts} batches of validation: all must get as many"
            words = _compare(_rows([read for reads in found for read in reads]), expected)
            if words:
                return f"on {world_size} ranks {words}"
        return None


_STATE = "`state_dict` and `load_state_dict` of the loader carry where an epoch stands"


class _Characters(Tokenizer):
    """An id for each character, by its number; where data bring no tokenizer."""

    vocab_size, pad_id, unk_id, bos_id, eos_id = 1 << 21, 0, 1, 2, 3

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = tuple(languages)

    def encode(self, text: str) -> list[int]:
        return [1024 + ord(char) for char in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(number - 1024) for number in ids if number >= 1024)

    def lang_id(self, lang: str) -> int:
        if lang not in self.languages:
            raise ValueError(f"language {lang!r}: the data have {', '.join(self.languages)}")
        return 4 + self.languages.index(lang)

    def to_bytes(self) -> bytes:
        return "\n".join(self.languages).encode()

    def piece_characters(self) -> Tensor:
        raise NotImplementedError("every character is a piece")


def _usual(data: DataModule) -> frozenset[str]:
    """What tasks read of data as these."""
    rows = data.rows("train")
    spoken = data.frontend is not None and any(row.audio for row in rows) and FROM_SPEECH & set(data.tasks)
    text = [name for name in data.tasks if name not in FROM_SPEECH]
    target = any(row.tgt_text for row in rows) or ("asr" in data.tasks and any(row.src_text for row in rows))
    return frozenset([*["speech"] * bool(spoken), *["source"] * bool(text), *["target"] * target])


def _frames(front: Any, seconds: float) -> tuple[int, int]:
    """Fewest and most steps that a front end makes of about so many seconds."""
    near = int(_NEAR * front.sample_rate)
    count = round(seconds * front.sample_rate)
    return front.output_length(max(count - near, 1)), front.output_length(count + near)


def _padded(value: Padded) -> str | None:
    if int(value.lengths.min()) < 1 or int(value.lengths.max()) > value.data.shape[1]:
        return f"has lengths of {int(value.lengths.min())} to {int(value.lengths.max())} in {value.data.shape[1]} steps"
    if value.data.is_floating_point() and not bool(value.data.isfinite().all()):
        return "is not finite"
    return None


def _difference(one: Batch, other: Batch) -> str | None:
    """Which field of two batches differs."""
    if one.ids != other.ids:
        return f"the rows differ ({_few(other.ids)})"
    for name in ("speech", "transcript", "source", "target", "units", "target_speech", "speaker", "seconds"):
        mine, yours = getattr(one, name), getattr(other, name)
        same = (mine is None) == (yours is None)
        if isinstance(mine, Padded) and isinstance(yours, Padded):
            same = torch.equal(mine.lengths, yours.lengths) and torch.equal(mine.data, yours.data)
        elif isinstance(mine, Tensor) and isinstance(yours, Tensor):
            same = torch.equal(mine, yours)
        if not same:
            return f"{name} differs"
    return None


def _rows(reads: Iterable[Read]) -> Counter[tuple[str, str]]:
    return Counter(row for read in reads for row in read.rows)


def _compare(found: Counter[Any], expected: Counter[Any], missing: bool = True) -> str | None:
    """Which rows are lost, taken too often, or none of those expected."""
    words = []
    lost, more = expected - found, found - expected
    if lost and missing:
        words.append(f"{len(lost)} of {len(expected)} rows are lost ({_few(name for _, name in lost)})")
    if more:
        words.append(f"{len(more)} are taken once more than they should be ({_few(name for _, name in more)})")
    return ", ".join(words) or None


def _of(batch: Batch) -> str:
    return f"batch of {_few(batch.ids)}"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
