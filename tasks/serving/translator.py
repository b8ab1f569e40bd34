"""Serving files, folders and text with a task: the engine of `voxzoo translate`, one call from Python."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...components.errors import UserError
from ...components.languages import is_spaceless, match
from ...components.lines import open_text, raw_lines
from ...components.search import SearchOptions
from ...components.types import Batch, Padded
from ...datamodules.audio import audio_blocks, audio_seconds, level
from ...datamodules.selection import MOST_CHARACTERS
from ..processes.console import quiet_libraries
from ..runs.run import load_run
from ..scoring.speech import cut_at_quiet, write_wav
from .names import cut_name
from .shelf import Shelf, Shelved

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"})

SHORTEST_SECONDS = 0.1

LONGEST_MINUTES = 120

LONGEST_TOKENS = 1024
"""Of a line of text: attention takes memory by the square of it. NLLB has the same limit."""

_WINDOW = 16
"""Batches read ahead, so that inputs can be sorted by length inside and lines still come out while it runs."""


@dataclass
class Piece:
    """What goes into one row of a batch: (N,) samples at the rate of the front end, or a sentence."""

    start: float
    seconds: float
    samples: Shelved | None = None
    text: str | None = None


@dataclass
class Item:
    """One input and what became of it."""

    id: str
    name: str
    path: Path | None = None
    text: str | None = None
    pieces: list[Piece] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    waves: list[Shelved | None] = field(default_factory=list)
    """The audio of each prediction."""
    error: str | None = None


def translate(
    path: str | Path,
    inputs: Sequence[str],
    mode: str,
    to: str,
    *,
    source: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int = 8,
    beam: int | None = None,
    segment: float = 30.0,
    verify: bool = False,
) -> Iterator[dict[str, Any]]:
    """Load a run and serve inputs with it: what `voxzoo translate` does, and the lines that it prints.

    Args:
        path: a run folder or a checkpoint.
        inputs: files, folders, or `-` for standard input (`read_inputs`).
        device: `cpu`, `cuda`, ..., or `auto`, a GPU where there is one.
        precision: `32-true`, `bf16-true` or `16-true`; None: that of the run.
        mode, to, source, batch_size, beam, segment, out: as for `Translator`.
        verify: as for `load_run`.

    Yields:
        One dict for each input, in their order: `Translator.result`, or `id`, `input` and `error`.

    Raises:
        UserError: as `load_run` and `Translator`; a number below 1, or nothing to translate.
    """
    require_positive(batch_size=batch_size, beam=beam, segment=segment)
    quiet_libraries()
    task = load_run(path, device=device, pack=True, precision=precision, verify=verify).task
    translator = Translator(task, mode, to, source, batch_size, beam, segment, out)
    items = list(read_inputs(inputs, translator.reads_text, translator.out))
    if not items:
        kind = "sentence" if translator.reads_text else "audio file"
        raise UserError(f"nothing to translate in {', '.join(inputs)}: no {kind}")
    for item in translator.serve(items):
        if item.error is not None:
            yield {"id": item.id, "input": item.name, "error": item.error}
        else:
            yield translator.result(item)


def require_positive(**flags: float | None) -> None:
    """Raises UserError: a flag of a command, by its name in Python, that is given and below 1."""
    for name, value in flags.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")


def read_inputs(inputs: Sequence[str], text: bool, out: Path | None) -> Iterator[Item]:
    """Files, folders and standard input as items with unique ids, in the order they were given.

    Raises:
        UserError: an output folder that is also an input folder.
    """
    taken: set[str] = set()

    def unique(name: str) -> str:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate)
        return candidate

    def sentences(lines: Iterator[bytes], stem: str, name: str) -> Iterator[Item]:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                one, where = unique(f"{stem}-{number:05d}"), f"{name}, line {number}"
                try:
                    yield Item(one, where, text=line.decode().strip())
                except UnicodeDecodeError:
                    yield Item(one, where, error="not UTF-8 text")
        except (OSError, UserError) as error:
            yield Item(unique(f"{stem}-{number + 1:05d}"), name, error=_reason(error, name))

    suffixes = frozenset({".txt"}) if text else AUDIO_SUFFIXES
    for given in inputs:
        if given == "-":
            if sys.stdin is None or sys.stdin.closed:
                yield Item(unique("input"), "standard input", error="it is closed; give a file or folder")
            elif text:
                yield from sentences(raw_lines(_standard_input(), "standard input"), "line", "standard input")
            else:
                for line in raw_lines(_standard_input(), "standard input"):
                    if name := os.fsdecode(line).strip():
                        yield Item(unique(Path(name).stem), name, Path(name))
            continue
        if not given.strip():
            yield Item(unique("input"), "(empty INPUT)", error="expected a file or folder")
            continue
        path = Path(given)
        if os.path.isdir(path):
            if out is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(path)):
                raise UserError(
                    f"--out {out} lies in the input folder {path}: its audio would become input; give another one"
                )
            # A link that leads nowhere is named, too.
            found = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in suffixes and (os.path.isfile(p) or not os.path.exists(p))
            )
            if not found:
                kinds = ", ".join(sorted(suffixes))
                yield Item(unique(path.name), given, error=f"no files to translate in this folder (looked for {kinds})")
        else:
            found = [path]
        for file in found:
            if not text:
                yield Item(unique(file.stem), str(file), file)
                continue
            try:
                with open_text(file) as opened:
                    yield from sentences(raw_lines(opened, file), file.stem, str(file))
            except (OSError, ValueError) as error:
                yield Item(unique(file.stem), str(file), error=_reason(error, file))


def _standard_input() -> BinaryIO:
    """Its bytes; a stand-in of Python's own may hold text alone."""
    return getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode(errors="surrogateescape"))


def _reason(error: Exception, name: object) -> str:
    """What an error says without the name of what it is about."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()).removeprefix(f"{name}: ").removeprefix(f"{name}, ")


class Translator:
    """Serves items with a task.

    Args:
        task: a `tasks.Task` in evaluation mode.
        mode: one of `TASKS`.
        to, source: ISO 639-3 codes.
        batch_size: pieces at a time.
        beam: beam size, or None for the task's own.
        segment: longest piece in seconds, where the model takes as much.
        out: folder for audio; may be None where there is none.

    Raises:
        UserError: a task or language that the model does not have, or a missing argument.
    """

    def __init__(
        self,
        task: Any,
        mode: str,
        to: str,
        source: str | None = None,
        batch_size: int = 8,
        beam: int | None = None,
        segment: float = 30.0,
        out: str | Path | None = None,
    ) -> None:
        if mode not in task.modes:
            served = ", ".join(sorted(task.modes)) or "no task, it is a part alone"
            raise UserError(f"--task {mode}: this run can do {served}")
        self.task, self.mode, self.to = task, mode, to
        self.reads_text, self.speaks = mode.startswith("t2"), mode.endswith("2st")
        self.source = to if mode == "asr" else source
        if mode == "asr" and source not in (None, to):
            raise UserError(f"--from {source} --to {to}: asr writes down what is spoken; give --to alone")
        known = task.tokenizer or task  # a speech LM has no tokenizer, and says it itself
        for flag, lang in (("--to", to), ("--from", self.source)):
            if lang is not None and not known.knows(lang):
                raise UserError(f"{flag} {lang}: unknown language; this run knows {', '.join(known.languages)}")
        if self.reads_text and self.source is None:
            raise UserError(f"--task {mode} needs --from: the language of the text")
        if task.tokenizer is not None:
            task.tokenizer.prefix(to, self.source, mode)  # one that must know what is spoken says so now
        spoken = getattr(task, "spoken_languages", None) if self.speaks else None
        if spoken is not None and match(to, spoken) is None:
            raise UserError(f"--to {to}: this run speaks {', '.join(spoken)}; for text in {to} use --task {mode[:2]}tt")
        if self.speaks and out is None:
            raise UserError(f"--task {mode} needs --out: the folder for the audio")
        self.out = Path(out) if out is not None else None
        self._taken: set[str] = set()  # every input, and every file written so far
        self.batch_size = batch_size
        longest = None if self.reads_text else task.longest_seconds
        self.segment = segment if longest is None else min(segment, longest)
        self.options = search_options(task, beam)
        self._heard, self._spoken = Shelf(), Shelf()

    def serve(self, items: Sequence[Item]) -> Iterator[Item]:
        """Predict items; each comes out in the order it was given, with its predictions or its error."""
        self._taken |= {_real(item.path) for item in items if item.path is not None}
        window: list[Item] = []
        size = 0
        for item in items:
            if item.error is None:
                self._load(item)
            window.append(item)
            size += len(item.pieces)
            if size >= _WINDOW * self.batch_size:
                yield from self._predict(window)
                window, size = [], 0
        yield from self._predict(window)

    def _load(self, item: Item) -> None:
        try:
            if self.reads_text:
                if not item.text:
                    raise ValueError("empty line: expected a sentence")
                require_short(item.text, self.source, self.task.tokenizer)
                item.pieces = [Piece(0.0, float(len(item.text)), text=item.text)]
                return
            assert item.path is not None
            rate = self.task.frontend.sample_rate
            item.pieces = [
                Piece(start / rate, len(cut) / rate, samples=self._heard.put(cut))
                for start, cut in cut_at_quiet(speech_blocks(item.path, rate), rate, self.segment)
            ]
        except (ValueError, OSError) as error:
            item.error = _reason(error, item.path)
        except Exception as error:  # of a front end or tokenizer: the others may be served
            item.error = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"

    def _predict(self, window: list[Item]) -> Iterator[Item]:
        pieces = [(item, index) for item in window for index in range(len(item.pieces)) if item.error is None]
        pieces.sort(key=lambda place: place[0].pieces[place[1]].seconds)
        for item in window:
            item.predictions, item.waves = [None] * len(item.pieces), [None] * len(item.pieces)
        for start in range(0, len(pieces), self.batch_size):
            self._serve_batch(pieces[start : start + self.batch_size])
        for item in window:
            yield item
            item.pieces, item.predictions, item.waves = [], [], []
        self._heard.clear()
        self._spoken.clear()

    def _serve_batch(self, places: list[tuple[Item, int]]) -> None:
        try:
            predictions = self.task.predict(self._collate(places), task=self.mode, options=self.options)
        except Exception as error:
            # One bad row must not take the others with it: alone, only the bad one fails.
            if len(places) > 1:
                for place in places:
                    self._serve_batch([place])
                return
            item = places[0][0]
            item.error = f"the model failed on it ({type(error).__name__}: {' '.join(str(error).split())})"
            return
        for (item, index), prediction in zip(places, predictions, strict=True):
            if prediction.audio is not None:
                item.waves[index] = self._spoken.put(prediction.audio)
                prediction = replace(prediction, audio=None)
            item.predictions[index] = prediction

    def _collate(self, places: list[tuple[Item, int]]) -> Any:
        gather = getattr(self.task, "gather", None)  # of a task that is made of runs, which read differently
        return gather(lambda task: self._batch(task, places)) if gather else self._batch(self.task, places)

    def _batch(self, task: Any, places: list[tuple[Item, int]]) -> Batch:
        pieces = [item.pieces[index] for item, index in places]
        speech = source = None
        if self.reads_text:
            ids = [task.tokenizer.source(piece.text, self.source) for piece in pieces]
            source = Padded.from_list([torch.tensor(row) for row in ids], task.tokenizer.pad_id)
        else:
            waves = [piece.samples.take() for piece in pieces if piece.samples is not None]
            speech = Padded.from_list([task.frontend(wave) for wave in waves])
        return Batch(
            ids=tuple(f"{item.id}/{index}" for item, index in places),
            task=(self.mode,) * len(places),
            src_lang=(self.source or "",) * len(places),
            tgt_lang=(self.to,) * len(places),
            speech=speech,
            source=source,
            seconds=torch.tensor([piece.seconds for piece in pieces]) if speech is not None else None,
            references=("",) * len(places),
        ).to(task.device)

    def result(self, item: Item) -> dict[str, Any]:
        """The JSON object of a served item; writes its audio."""
        whole = joined(item.predictions)
        path, duration = None, None
        waves = [wave for wave in item.waves if wave is not None]
        if self.speaks and waves:
            duration = round(sum(wave.count for wave in waves) / whole.sample_rate, 3)
            path = self._free_path(item)
            write_wav(path, (wave.take() for wave in waves), whole.sample_rate)
        answer: dict[str, Any] = {
            "id": item.id,
            "input": item.name,
            "task": self.mode,
            "src_lang": self.source,
            "tgt_lang": self.to,
            "text": whole.text,
            "units": whole.units,
            "audio": str(path) if path is not None else None,
            "duration": duration,
            "score": round(whole.score, 6) if whole.score is not None else None,
        }
        if not self.reads_text:
            answer["source_duration"] = round(sum(piece.seconds for piece in item.pieces), 3)
        if len(item.pieces) > 1:
            answer["segments"] = [
                {"start": round(piece.start, 3), "end": round(piece.start + piece.seconds, 3), "text": prediction.text}
                for piece, prediction in zip(item.pieces, item.predictions, strict=True)
            ]
        return answer

    def _free_path(self, item: Item) -> Path:
        """Where the audio of an item goes: never onto an input; output of an earlier call is replaced."""
        assert self.out is not None
        path = self.out / f"{cut_name(item.id)}.{self.to}.wav"
        while _real(path) in self._taken:
            path = path.with_name(f"{path.stem}.{self.to}.wav")
        self._taken.add(_real(path))
        return path


def _real(path: Path) -> str:
    """The file that a path leads to; of a path that leads nowhere (a loop of links, a NUL in it) itself."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def joined(predictions: Sequence[Any], waves: Sequence[Shelved | None] = ()) -> Any:
    """The `Prediction`s of the pieces of one input, one behind the other, as one, with their audio where it is given;
    its score is their mean."""
    first = predictions[0]
    texts = [p.text for p in predictions if p.text is not None]
    units = [p.units for p in predictions if p.units is not None]
    spoken = [wave.take() for wave in waves if wave is not None]
    scores = [p.score for p in predictions if p.score is not None]
    return replace(
        first,
        text=("" if is_spaceless(first.tgt_lang) else " ").join(texts) if texts else None,
        units=[unit for row in units for unit in row] if units else None,
        audio=torch.cat(spoken) if spoken else None,
        score=sum(scores) / len(scores) if scores else None,
    )


def require_short(text: str, lang: str | None, tokenizer: Any) -> None:
    """Raises ValueError: a text of more tokens than a model is given, or one so long that they are not counted."""
    if len(text) > MOST_CHARACTERS * LONGEST_TOKENS:
        raise ValueError(
            f"{len(text):,} characters long; the limit is {LONGEST_TOKENS} tokens: give one sentence a line"
        )
    tokens = len(tokenizer.source(text, lang))
    if tokens > LONGEST_TOKENS:
        raise ValueError(f"{tokens} tokens long; the limit is {LONGEST_TOKENS}: give one sentence a line")


def search_options(task: Any, beam: int | None) -> Any:
    """The task's own search options, with another beam size where one was asked for."""
    options = getattr(task, "search", None) or SearchOptions()
    if beam is None:
        return options
    return replace(options, method="greedy" if beam == 1 else "beam", beam_size=beam)


def speech_blocks(path: Path, rate: int) -> Iterator[Tensor]:
    """The speech of a file as (n,) float32 at `rate`, some of it at a time, or a ValueError that says in one line what
    is wrong with it, which may come at the end."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ValueError("the file is empty (0 bytes)")
    seconds = audio_seconds(path)
    if seconds > 60 * LONGEST_MINUTES:
        raise ValueError(f"{seconds / 60:.0f} minutes long; the limit is {LONGEST_MINUTES}: cut it into several files")
    count, loudest = 0, None
    for block in audio_blocks(path, rate):
        if len(block):
            count += len(block)
            found = level(block)
            loudest = found if loudest is None or found.peak > loudest.peak else loudest
            yield block
    if count < SHORTEST_SECONDS * rate:
        raise ValueError(f"{count / rate:.3f} s of audio; expected at least {SHORTEST_SECONDS} s")
    if loudest is not None and loudest.silent:
        raise ValueError(f"silent: its peak is {loudest.peak:.1g} of full scale; expected speech")
