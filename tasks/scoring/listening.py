"""Hearing the speech of a split with a recogniser. Letters: N samples."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...datamodules.audio import level, resample
from .evaluation import Scored
from .recogniser import SAMPLE_RATE

TOGETHER_SECONDS = 300.0
"""Speech that is heard at once: enough to fill the batches of every window and to keep all threads busy; 19 MB."""


class Hears(Protocol):
    """What listening needs of a recogniser."""

    @property
    def signature(self) -> str: ...

    def check_language(self, lang: str) -> object:
        """Raises UserError where it does not know the language."""

    def transcribe(self, audio: Sequence[Tensor], lang: str) -> list[str]: ...


@dataclass(frozen=True)
class _Waiting:
    row: Scored
    field: str
    audio: Tensor
    key: str | None


class Listener:
    """Fills the `heard` fields of rows with what a recogniser makes of their speech.

    Utterances wait until there are many, because the recogniser takes those of like length together: a few of them make
    small batches, and its threads wait for the last one. What it hears in one does not depend on the others. It hears
    them in a thread, while the model speaks the next ones.

    Args:
        recogniser: Whisper, or what hears as it does.
        folder: where transcripts of recordings are kept for the next evaluation, by recogniser; None keeps none.
    """

    def __init__(self, recogniser: Hears, folder: str | Path | None = None) -> None:
        self.recogniser = recogniser
        self.num_known = 0  # recordings that had been heard before
        self._waiting: list[_Waiting] = []
        self._seconds = 0.0
        self._langs: set[str] = set()
        self._kept = None if folder is None else KeptTranscripts(folder, recogniser.signature)
        self._problem: str | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._hearing: Future[dict[str, str]] | None = None

    def add(self, rows: Sequence[Scored], field: str, audio: Sequence[Tensor], sample_rate: int) -> None:
        """Speech of some rows, (N,) samples each; `field` is filled by the next `finish` at the latest.

        Raises:
            UserError: the recogniser does not know a language.
        """
        for row, samples in zip(rows, audio, strict=True):
            if row.tgt_lang not in self._langs:
                self.recogniser.check_language(row.tgt_lang)
                self._langs.add(row.tgt_lang)
            samples = resample(samples, sample_rate, SAMPLE_RATE).detach().to("cpu")
            key = None
            if self._kept is not None and field == "heard_reference":
                key = self._kept.key(samples, row.tgt_lang)
                text = self._kept.get(key)
                if text is not None:
                    self.num_known += 1
                    setattr(row, field, text)
                    continue
            self._waiting.append(_Waiting(row, field, samples, key))
            self._seconds += len(samples) / SAMPLE_RATE
        if self._seconds >= TOGETHER_SECONDS:
            self._hear()

    def finish(self) -> None:
        """Hear what still waits, and wait until all is heard."""
        if self._waiting:
            self._hear()
        self._settle()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _hear(self) -> None:
        """Begin to hear what waits, once what is being heard is done."""
        self._settle()
        items, self._waiting, self._seconds = self._waiting, [], 0.0
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "listener")
        self._hearing = self._thread.submit(self._transcribe, items)

    def _settle(self) -> None:
        """Wait for what is being heard, and keep what is worth it."""
        if self._hearing is None:
            return
        hearing, self._hearing = self._hearing, None
        new = hearing.result()
        if self._kept is not None and new:
            try:
                self._kept.add(new)
            except OSError as error:
                self._problem = f"transcripts of the target recordings could not be kept: {error}"

    def _transcribe(self, items: Sequence[_Waiting]) -> dict[str, str]:
        """Fill the rows; returns the texts to keep, by key."""
        by_lang: defaultdict[str, list[_Waiting]] = defaultdict(list)
        for item in items:
            by_lang[item.row.tgt_lang].append(item)
        new: dict[str, str] = {}
        for lang, items in sorted(by_lang.items()):
            texts = self.recogniser.transcribe([item.audio for item in items], lang)
            for item, text in zip(items, texts, strict=True):
                setattr(item.row, item.field, text)
                if item.key is not None:
                    new[item.key] = text
        return new

    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        notes = []
        if self.num_known and self._kept is not None:
            notes.append(
                f"{self.num_known} target recordings had been heard before by this recogniser; what it heard is in "
                f"{self._kept.path}"
            )
        return [*notes, self._problem] if self._problem else notes


class KeptTranscripts:
    """What one recogniser heard in recordings, by their samples: a file of JSON lines that only grows.

    Args:
        folder: made with the first transcript.
        signature: of the recogniser; each has a file of its own.
    """

    def __init__(self, folder: str | Path, signature: str) -> None:
        self.path = Path(folder) / f"{hashlib.sha256(signature.encode()).hexdigest()[:16]}.jsonl"
        self._texts: dict[str, str] = {}
        try:
            lines = self.path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._texts[entry["key"]] = entry["text"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that a killed process left unfinished: heard again

    def key(self, samples: Tensor, lang: str) -> str:
        """Of (N,) samples at the recogniser's rate, and the language they are heard in."""
        return hashlib.sha256(lang.encode() + b"|" + samples.numpy().tobytes()).hexdigest()

    def get(self, key: str) -> str | None:
        return self._texts.get(key)

    def add(self, texts: dict[str, str]) -> None:
        """Write transcripts, all in one piece, so that those of two processes do not mix.

        Raises:
            OSError: the folder cannot be written.
        """
        self._texts |= texts
        lines = "".join(json.dumps({"key": key, "text": text}) + "\n" for key, text in texts.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        place = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # Behind what a killed process left unfinished.
            os.write(place, b"\n" * bool(os.fstat(place).st_size) + lines.encode())
        finally:
            os.close(place)


def note_audio(row: Scored, audio: Tensor, sample_rate: int) -> None:
    """Enter what can be seen in (N,) samples of output speech."""
    row.duration = round(len(audio) / sample_rate, 4)
    if len(audio) == 0:
        row.silent, row.clipped = True, False
        return
    found = level(audio)
    row.silent, row.clipped = found.silent, found.clipped
