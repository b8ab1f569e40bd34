"""The roles of networks. A part is a LightningModule for its hparams, device and dtype handling, but its `forward` is
pure: it never logs, never reads the trainer and never reaches into a sibling. Parts return losses; the task logs them.

Letters: B batch, T frames, S subwords, U units, K codebooks, N samples, F features, D model dim, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from lightning import LightningModule
from torch import Tensor, nn

from ..cards import Card
from ..joint_vocabulary import JointVocabulary
from ..types import Adapted, Judgement, Loss, Padded, Reconstruction, Statistic, UnitOutput


class Part(LightningModule, ABC):
    """Base of all roles. Class attributes describe the part for `voxzoo parts`."""

    paper: str = ""
    stacks: ClassVar[tuple[str, ...] | None] = None
    """Names of its lists of layers, which are computed again, compiled and cut into shards one by one; (): it has none.
    None: `layers`, else every list of blocks of one class (`layers.blocks`)."""
    exempt: Mapping[str, str] = {}
    """Check of `components.contract` -> why this part need not pass it; `learns NAME` for one parameter or module."""

    def log(self, *args: Any, **kwargs: Any):
        raise RuntimeError(f"{type(self).__name__} is a part: return losses and let the task log them")

    log_dict = log


class SpeechEncoder(Part):
    """Features or samples to states."""

    input_dim: int
    output_dim: int
    longest_input: int | None = None
    """Most steps (T or N) it takes; None: any number."""

    @abstractmethod
    def forward(self, speech: Padded) -> Padded:
        """(B, T, F) features or (B, N) samples -> (B, T', output_dim) states with lengths `output_lengths(lengths)`."""

    @abstractmethod
    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 -> (B,) int64, exact integer arithmetic."""


class Adaptor(Part):
    """Shortens encoder states to about the rate of text, and fits their width to the decoder's."""

    input_dim: int
    output_dim: int
    length_is_bound: bool = False
    """Whether the length of what comes out depends on content: `output_lengths` is an upper bound then."""

    @abstractmethod
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T', output_dim); `text` (B, S) are transcript ids for adaptors that bring a loss."""

    @abstractmethod
    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 -> (B,) int64, exact, but with `length_is_bound`."""


class DecoderState(ABC):
    """What cached decoding carries from step to step, for R = B x beams rows."""

    room: list[int] | None = None
    """Steps that each sample has positions for, where that depends on the sample (behind a prompt); None: it does not.
    """

    def reserve(self, steps: int) -> None:  # noqa: B027 - for a state that takes its memory at once
        """So many steps are to come at most."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64, in that order (R' may be smaller: finished samples are dropped)."""


class TextSeq2Seq(Part):
    """Text encoder (optional) and autoregressive text decoder over one vocabulary."""

    dim: int
    vocab_size: int
    has_encoder: bool
    max_positions: int | None = None
    """Most tokens of a sequence, prefix included; None: no limit."""

    def encoder_only(self) -> list[nn.Module]:
        """Modules that nothing but `encode` uses: tasks that read speech alone take them out of training."""
        return []

    @abstractmethod
    def encode(self, text: Padded) -> Padded:
        """(B, S) ids -> (B, S, dim) memory. Raises ValueError where the model has no encoder."""

    @abstractmethod
    def decode(self, memory: Padded, tokens: Padded) -> Padded:
        """Teacher forcing: (B, T, dim) memory and (B, S) decoder input -> (B, S, dim) states after the final norm."""

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """(..., dim) states -> (..., V) logits."""

    @property
    def output_weight(self) -> Tensor | None:
        """(V, dim) where `project(x)` is `x @ output_weight.T` and nothing else: losses then need no logits of a whole
        batch. None where it is more than that."""
        return None

    def forward(self, memory: Padded, tokens: Padded) -> Padded:
        """(B, T, dim) memory, (B, S) decoder input -> (B, S, V) logits."""
        states = self.decode(memory, tokens)
        return states.with_data(self.project(states.data))

    @abstractmethod
    def start(self, memory: Padded, beams: int = 1) -> DecoderState:
        """Prepare cached decoding: keys and values of (B, T, dim) memory once per sample, B x beams rows."""

    @abstractmethod
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, dim) states after the final norm; advances `state`."""


class SpeechLM(Part):
    """Autoregressive decoder-only model over one joint vocabulary of specials, languages, units and codes."""

    dim: int
    vocab_size: int
    vocabulary: JointVocabulary
    """What each of the V ids is."""
    max_positions: int | None = None
    """Most tokens of a sequence, prompt included; None: no limit."""

    @abstractmethod
    def decode(self, tokens: Padded, prompt: Tensor | None = None) -> Padded:
        """Teacher forcing: (B, S) ids -> (B, S, dim) states after the final norm; state i predicts token i + 1. Of a
        model whose prompt sees all of itself, `prompt` (B,) int64 says how many tokens that is in each row; others do
        not look at it."""

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """(..., dim) states -> (..., V) logits."""

    @property
    def output_weight(self) -> Tensor | None:
        """As in `TextSeq2Seq`."""
        return None

    def forward(self, tokens: Padded, prompt: Tensor | None = None) -> Padded:
        """(B, S) ids -> (B, S, V) logits; `prompt` as in `decode`."""
        states = self.decode(tokens, prompt)
        return states.with_data(self.project(states.data))

    @abstractmethod
    def start(self, prompt: Padded, beams: int = 1) -> DecoderState:
        """Prepare cached decoding: reads (B, P) ids in one pass, once per sample, for B x beams rows. Rows may be of
        any length, 0 too. Raises ValueError where a row has more tokens than the model has positions."""

    @abstractmethod
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, dim) states after the final norm; advances `state`."""


class StreamLM(Part):
    """Codec streams from semantic units: those that the speech LM leaves to it, or all."""

    num_units: int
    codebook_size: int
    num_streams: int
    """K, of the codec, the first included."""
    pattern: str
    """Who writes which stream when: `ar_nar` (stream 1 is given, each other one is written at once), or all streams
    step by step: `delay`, `parallel`, `flat`."""
    given_streams: int
    """Streams that it is given: 1 with `ar_nar`, else 0."""

    @abstractmethod
    def forward(
        self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor | None = None
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses, and accuracies by stream, of (B, U) units and an acoustic prompt (B, P, K) of all streams against
        (B, T, K) codes. `stage` (B,) int64: with `ar_nar` the stream that each row learns, 1..K-1 counted from 0; None
        draws one for each row. Keys never depend on the batch."""

    @abstractmethod
    def generate(self, units: Padded, prompt: Padded, first: Padded | None = None, **options: Any) -> Padded:
        """(B, U) units, (B, P, K) prompt, and where streams are given the first, (B, T) -> (B, T, K) codes, 0 beyond
        the length."""


class TextToUnit(Part):
    """Second pass of UnitY: states of the text decoder to target units."""

    input_dim: int
    num_units: int
    num_tokens: int | None = None
    """Rows of the tokenizer that `set_characters` must be told of; None: any number."""
    num_languages: int | None = None
    """Languages that it is told by `lang`, (B,) int64, in `forward` and `generate`; None: it takes no `lang`."""
    default_language: int | None = None
    """The one that it takes where `lang` is not given; None: it must be given where there are several."""

    @abstractmethod
    def forward(self, states: Padded, targets: Padded, text: Padded | None = None) -> dict[str, Loss]:
        """Losses of (B, S, input_dim) states against (B, U) units, one per frame (the part reduces runs itself where it
        works on reduced units). `text` (B, S): the token that each state stands for, where the part wants it.
        Keys and their number never depend on the batch."""

    def set_characters(self, table: Tensor, pieces: Sequence[str] | None = None) -> None:
        """Give the characters of each token, (V, C) int64 with 0 beyond the end, and the text of each as the tokenizer
        writes it (word mark included, "" for specials). Parts that do not spell ignore it."""

    @abstractmethod
    def generate(self, states: Padded, text: Padded | None = None, **options: Any) -> UnitOutput:
        """(B, S, input_dim) states -> units (and durations where the part predicts them)."""


class UnitExtractor(Part):
    """Speech to discrete units by clustering of features."""

    num_units: int
    frame_rate: float
    """Units per second before runs are merged."""

    @abstractmethod
    def features(self, speech: Padded) -> Padded:
        """(B, N) samples at 16 kHz -> (B, U, F) features that are clustered."""

    @abstractmethod
    def fit(self, batches: Iterable[Padded], seed: int = 0) -> dict[str, float]:
        """Fit the centroids on batches of (B, N) samples; return statistics (inertia, frames, used clusters)."""

    @abstractmethod
    def forward(self, speech: Padded) -> Padded:
        """(B, N) samples at 16 kHz -> (B, U) int64 units, one per frame. Raises RuntimeError before `fit`."""


class UnitVocoder(Part):
    """Discrete units to a waveform."""

    num_units: int
    sample_rate: int
    num_langs: int = 0
    num_speakers: int = 0
    """Rows of its tables of languages and speakers; 0 where it has none."""
    default_language: int | None = None
    default_speaker: int | str | None = None
    """What it takes where `lang` or `speaker` is not given; None: it must be given where there are several."""
    languages: tuple[str, ...] = ()
    """Codes of the languages in the order of their table, where it was told them."""

    @abstractmethod
    def forward(
        self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None, durations: Padded | None = None
    ) -> Padded:
        """(B, U) units -> (B, N) samples in -1..1. With `durations` (B, U) each unit lasts that many frames; without,
        the vocoder predicts them for reduced units. `lang`, `speaker`: (B,) int64 where the vocoder is conditioned."""

    @abstractmethod
    def losses(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """Training losses of (B, U) units, one per frame, against the (B, N) samples they came from. `speaker`, `lang`:
        as in `forward`."""

    learns_samples: bool = False
    """Whether `reconstruct` makes samples that a gradient flows through, so that a discriminator can train it."""

    def reconstruct(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> Reconstruction:
        """The samples that `losses` looks at, beside those they should be. Arguments as in `losses`.

        Raises:
            NotImplementedError: the vocoder learns something else than samples (`learns_samples`).
        """
        raise NotImplementedError(f"{type(self).__name__} makes no samples while it trains")


class Discriminator(Part):
    """Tells speech from samples of a vocoder; trained against it."""

    stacks = ()
    """Its weights stand still in one of its passes, which layers that are computed again would not know."""

    @abstractmethod
    def forward(self, speech: Padded) -> Judgement:
        """(B, N) samples -> scores, 1 where they are taken for speech and 0 where not, and the features behind them.
        Padding never counts: each row is judged as if it were alone."""

    def advance(self) -> None:
        """Called once behind each step of its optimizer, for state that follows the weights; `forward` changes none."""


class Codec(Part):
    """Speech to K streams of codes at a low rate, and back. It resamples: speech may come and go at any rate.

    Samples are (B, N) where `channels` is 1, else (B, N, channels); (B, N) goes into each codec.
    """

    sample_rate: int
    channels: int
    frame_rate: float
    """Frames of codes a second."""
    num_codebooks: int
    """K, at most."""
    codebook_size: int
    streams: bool = False
    """Whether `start` and `step` decode piece by piece."""
    learns: bool = False
    """Whether it can be trained: `begin`, `reconstruct`, `advance`."""

    @abstractmethod
    def output_lengths(self, lengths: Tensor, sample_rate: int | None = None) -> Tensor:
        """(B,) int64 samples at `sample_rate` (None: the codec's own) -> (B,) int64 frames, exact."""

    @abstractmethod
    def encode(self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None) -> Padded:
        """Samples at `sample_rate` (None: the codec's own) -> (B, T, K) int64 codes of the first `num_codebooks` (None:
        all), zero beyond the length. What a row becomes never depends on the other rows. Raises UserError for more
        codebooks than there are, and for more channels than the codec has."""

    @abstractmethod
    def decode(self, codes: Padded, sample_rate: int | None = None, loudness: Padded | None = None) -> Padded:
        """(B, T, K) codes, K up to `num_codebooks` -> samples at `sample_rate` (None: the codec's own), not clipped.
        `loudness`: what `loudness` gave for the speech. Raises UserError for codes that the codec does not have."""

    def loudness(self, speech: Padded, sample_rate: int | None = None) -> Padded | None:
        """What a codec that takes the loudness out of speech needs beside the codes to put it back; None: nothing."""
        return None

    @abstractmethod
    def card(self) -> Card:
        """What its codes are: only codes of an equal card can be decoded, or mixed."""

    def start(self, rows: int) -> Any:
        """The state of a stream of so many rows, before its first piece. Without `streams`: NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} decodes whole utterances alone")

    def step(self, codes: Tensor, state: Any, last: bool = False) -> tuple[Tensor, Any]:
        """(R, t, K) codes that follow, t >= 0, and the state before them -> (R, n) samples that are ready, and the
        state behind them. All pieces up to the `last` one give the samples of `decode`. A state is a value: it is not
        changed, and a stream can go on from it again."""
        raise NotImplementedError(f"{type(self).__name__} decodes whole utterances alone")

    def reconstruct(
        self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None
    ) -> Reconstruction:
        """Samples with gradient beside what they should be, both at the codec's own rate; its own losses, such as a
        commitment, and in `update` what its codebooks learn of these rows: `counts` (K, V), how many frames chose each
        entry, among it. Arguments as in `encode`; with `num_codebooks=0` nothing is quantised, and no book learns.

        Raises:
            NotImplementedError: without `learns`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not learn")

    @property
    def begun(self) -> bool:
        """Whether the codebooks were set from data (`begin`); true where none wait for it."""
        return True

    def latents(self, speech: Padded, sample_rate: int | None = None) -> Padded:
        """(B, T, D) what `begin` reads of speech, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not learn")

    def begin(self, points: Tensor, seed: int = 0) -> None:
        """Set the codebooks from (P, D) of the first step's latents, of all processes."""
        raise NotImplementedError(f"{type(self).__name__} does not learn")

    def advance(self, update: Mapping[str, Tensor], seed: int = 0) -> None:
        """Move the codebooks by `Reconstruction.update`, summed over the rows of a step: once behind each step of the
        optimizer. `seed`: of what is drawn at random."""
        raise NotImplementedError(f"{type(self).__name__} does not learn")
