"""One base class per role. A part is a LightningModule for its hparams, device and dtype handling, but its `forward` is
pure: it never logs, never reads the trainer and never reaches into a sibling. Parts return losses; the task logs them.

Letters: B batch, T frames, S subwords, U units, K codebooks, N samples, F features, D model dim, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn

from .cards import Card
from .joint_vocabulary import JointVocabulary
from .languages import match
from .types import Adapted, Batch, Judgement, Loss, Padded, Reconstruction, Statistic, UnitOutput


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


ROLES: dict[str, type] = {
    "frontend": Frontend,
    "tokenizer": Tokenizer,
    "speech_encoder": SpeechEncoder,
    "adaptor": Adaptor,
    "text_seq2seq": TextSeq2Seq,
    "t2u": TextToUnit,
    "unit_extractor": UnitExtractor,
    "vocoder": UnitVocoder,
    "discriminator": Discriminator,
    "codec": Codec,
    "speech_lm": SpeechLM,
    "stream_lm": StreamLM,
    "data": DataModule,
}
"""Config key -> base class. `voxzoo check` refuses a part in the wrong slot by this table."""
