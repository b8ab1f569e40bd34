"""The roles of what stands before the networks: waveforms and texts become numbers here.

Letters: T frames, N samples, F features, C characters, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor

from ..languages import match


class Frontend(ABC):
    """Waveform to what the speech encoder reads. Runs in data workers; holds no trained parameters; picklable."""

    sample_rate: int
    output_dim: int
    """Features per step; 1 for raw samples (then the output is (N,), not (N, 1))."""
    longest_seconds: float | None = None
    """Longest clip it takes; None: any."""

    @abstractmethod
    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) float32 samples in -1..1 at `sample_rate` -> (T, F) float32 features (or (N,) samples)."""

    @abstractmethod
    def output_length(self, num_samples: int) -> int:
        """Exact T for N samples, so that batches are planned without reading audio."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names everything that changes the output: the key of the feature cache."""


class Tokenizer(ABC):
    """Text to ids and back. Ids of languages are part of the vocabulary."""

    vocab_size: int
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    languages: tuple[str, ...]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Text to ids, no special tokens."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; special and language tokens are dropped."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The whole tokenizer, so that a checkpoint can carry it."""

    @abstractmethod
    def piece_characters(self) -> Tensor:
        """(V, C) int64 character ids of each token, 0 beyond the end: for parts that spell."""

    def pieces(self) -> Sequence[str]:
        """Text of each of the V ids as the tokenizer writes it, "" for specials and languages. Tokenizers whose pieces
        have a word mark, or are not whole characters, say so themselves."""
        return tuple(self.decode([number]) for number in range(self.vocab_size))

    @abstractmethod
    def lang_id(self, lang: str) -> int:
        """Id of a language token. Raises ValueError naming the languages there are."""

    def knows(self, lang: str) -> bool:
        """Whether a language has a token, however its code is written (`es`, `spa`, `spa_Latn`)."""
        return match(lang, self.languages) is not None

    prefix_length: int = 2
    """Tokens of `prefix`. All but the first are labels, and only the pieces behind them are what is learned."""

    def source(self, text: str, lang: str) -> list[int]:
        """lang, pieces, eos: what a text encoder reads."""
        return [self.lang_id(lang), *self.encode(text), self.eos_id]

    def prefix(self, lang: str, src_lang: str | None = None, task: str | None = None) -> list[int]:
        """First decoder tokens for output in `lang`: eos, lang. A tokenizer whose prefix also says what is spoken or
        what to do with it (Whisper) reads the other two; `task` is one of `s2tt asr t2tt s2st t2st`."""
        return [self.eos_id, self.lang_id(lang)]

    def target(self, text: str, lang: str, src_lang: str | None = None, task: str | None = None) -> list[int]:
        """prefix, pieces, eos: decoder input is [:-1], labels are [1:]."""
        return [*self.prefix(lang, src_lang, task), *self.encode(text), self.eos_id]
