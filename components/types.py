"""What travels between parts.

Letters: B batch, T frames, S subwords, U units, K codebooks, N samples, F features, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class _Movable:
    """`.to()` and `.pin_memory()` for a dataclass of tensors and nested movables."""

    def to(self, *args: Any, **kwargs: Any):
        """Return a copy whose tensors (and nested batches) went through `Tensor.to`; to a GPU without waiting, which
        matters where they are in page-locked memory."""
        target = args[0] if args else kwargs.get("device")
        if isinstance(target, str | torch.device) and torch.device(target).type == "cuda":
            kwargs.setdefault("non_blocking", True)
        return self._map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self):
        """Return a copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function):
        changed = {}
        for item in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, item.name)
            if isinstance(value, Tensor | _Movable):
                changed[item.name] = function(value)
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Padded(_Movable):
    """A right-padded batch; `lengths` is the truth, `mask` follows from it.

    Attributes:
        data: (B, T) ids or samples, (B, T, F) features or states, or (B, T, K) codes.
        lengths: (B,) int64, the number of real steps of each row, at most T. It may stay on the CPU while `data` is
            elsewhere (the shape check keeps real lengths beside meta tensors).
    """

    data: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T) bool on the device of `data`, True where a step is real."""
        steps = torch.arange(self.data.shape[1], device=self.data.device)
        return steps < self.lengths.to(self.data.device)[:, None]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def full(self) -> bool:
        """Whether no step is padding, as far as that is known without waiting for a device: by lengths on the CPU."""
        return self.lengths.device.type == "cpu" and int(self.lengths.min()) == self.data.shape[1]

    def __len__(self) -> int:
        return self.data.shape[0]

    def with_data(self, data: Tensor) -> Padded:
        """Return the same lengths around other data of the same B and T."""
        return replace(self, data=data)

    def to(self, *args: Any, **kwargs: Any) -> Padded:
        """Move (and cast floating) data; lengths move to the device but stay int64."""
        data = (
            self.data.to(*args, **kwargs)
            if self.data.is_floating_point()
            else self.data.to(
                *[a for a in args if not isinstance(a, torch.dtype)],
                **{k: v for k, v in kwargs.items() if k != "dtype"},
            )
        )
        return Padded(data, self.lengths.to(data.device, non_blocking=kwargs.get("non_blocking", False)))

    def zeroed(self) -> Padded:
        """Return a copy whose padded steps are zero."""
        mask = self.mask
        return self.with_data(self.data.masked_fill(~mask.view(*mask.shape, *[1] * (self.data.dim() - 2)), 0))

    def unpad(self) -> list[Tensor]:
        """Return each row cut to its length."""
        return [row[:length] for row, length in zip(self.data, self.lengths.tolist(), strict=True)]

    @classmethod
    def from_list(cls, rows: Sequence[Tensor], value: float = 0, multiple: int = 1) -> Padded:
        """Right-pad rows of (T,) or (T, ...) with `value`, T rounded up to a multiple of `multiple`."""
        if not rows:
            raise ValueError("Padded.from_list needs at least one row; got an empty list")
        lengths = torch.tensor([row.shape[0] for row in rows], dtype=torch.int64)
        longest = -(-int(lengths.max()) // multiple) * multiple
        data = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), value)
        for place, row in enumerate(rows):
            data[place, : row.shape[0]] = row  # of `data` itself, so that gradients flow
        return cls(data, lengths)


@dataclass(frozen=True)
class _Sum(_Movable):
    """A sum and what it was summed over, so that ranks and accumulation steps add up and divide once."""

    total: Tensor
    count: Tensor

    def __add__(self, other: Self) -> Self:
        return replace(self, total=self.total + other.total, count=self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """() total / count, 0 where nothing was counted."""
        return self.total / self.count.to(self.total).clamp(min=1)

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> Self:
        """Nothing counted: keeps the key set equal on every rank."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))


@dataclass(frozen=True)
class Loss(_Sum):
    """A summed loss and what it was summed over. It is trained on, and is part of `train/loss` and `valid/loss`.

    Attributes:
        total: () float32, the sum over tokens (or frames), with gradient.
        count: () float32 or int64, the number of tokens (or frames).
    """


@dataclass(frozen=True)
class Statistic(_Sum):
    """What is counted and logged beside the losses, such as an accuracy: never trained on, never part of `valid/loss`.

    Attributes:
        total: () float32, the sum over tokens (or frames); no gradient is taken of it.
        count: () float32 or int64, the number of tokens (or frames).
    """


@dataclass(frozen=True)
class Adapted(_Movable):
    """What an adaptor returns: states (B, T', D) and the losses it brings (empty for most)."""

    states: Padded
    losses: dict[str, Loss] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitOutput(_Movable):
    """Discrete units.

    Attributes:
        units: (B, U) int64 in 0..num_units-1, zero beyond the length.
        durations: (B, U) int64 frames per unit, or None where units stand one per frame or the vocoder decides.
        scores: (B,) float32 log-probability of each row, or None.
    """

    units: Padded
    durations: Padded | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Reconstruction:
    """A crop of speech as a vocoder makes it from its units, or a codec from its codes.

    Attributes:
        samples: (B, N), with gradient; (B, N, C) of a codec with several channels.
        target: what they should be, of the same shape and lengths.
        frames: (B,) int64 mel frames (of a codec: frames of codes) of each row; their sum is the count of the first of
            `losses`.
        losses: the vocoder's or the codec's own losses.
        update: name -> sums over the rows, what codebooks learn of them (`Codec.advance`); empty for a vocoder.
    """

    samples: Padded
    target: Padded
    frames: Tensor
    losses: dict[str, Loss]
    update: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What a discriminator, or several that are one part, say about (B, N) samples.

    Attributes:
        scores: (B, T, ...) of each discriminator.
        features: (B, T, ...) of each layer of each discriminator, zero beyond the lengths.
    """

    scores: tuple[Padded, ...]
    features: tuple[Padded, ...]


@dataclass(frozen=True)
class Batch(_Movable):
    """One batch of utterances; a field a task does not need is None.

    Attributes:
        ids: utterance ids, length B.
        task: what is asked for each row, one of `s2tt asr t2tt s2st t2st`.
        src_lang, tgt_lang: ISO 639-3 codes of each row (for `asr`, tgt_lang is src_lang).
        speech: (B, T, F) front-end features, or (B, N) samples, of the source.
        transcript: (B, S) source text ids without special tokens (for CTC).
        source: (B, S) source text as the text encoder takes it: lang, pieces, eos.
        target: (B, S) target text: eos, lang, pieces, eos. Decoder input is [:, :-1], labels are [:, 1:].
        units: (B, U) target units, one per frame (not reduced).
        source_units: (B, U) those of the source.
        codes: (B, T, K) codec frames of the target speech.
        source_codes: (B, T, K) those of the source speech.
        target_speech: (B, N) samples of the target speech, 16 kHz.
        speaker: (B,) int64 index of the target speaker.
        seconds: (B,) float32 seconds of source audio (of target audio where there is no source audio).
        references: target text as written in the manifest ("" where there is none).
        stands_in: it takes the place of a batch none of whose rows could be read: it is computed, so that all processes
            do the same, and counts for nothing.
    """

    ids: tuple[str, ...]
    task: tuple[str, ...] = ()
    src_lang: tuple[str, ...] = ()
    tgt_lang: tuple[str, ...] = ()
    speech: Padded | None = None
    transcript: Padded | None = None
    source: Padded | None = None
    target: Padded | None = None
    units: Padded | None = None
    source_units: Padded | None = None
    codes: Padded | None = None
    source_codes: Padded | None = None
    target_speech: Padded | None = None
    speaker: Tensor | None = None
    seconds: Tensor | None = None
    references: tuple[str, ...] = ()
    stands_in: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prediction:
    """What one input became.

    Attributes:
        id, task, src_lang, tgt_lang: as in `Batch`.
        text: translated (or transcribed) text; None where the task has no text.
        units: unit ids, one per entry as the model emitted them; None where the task has no speech output.
        codes: (T, K) codec frames of the speech output; None where it is not made of such.
        audio: (N,) float32 samples at `sample_rate`, or None.
        score: length-normalised log-probability of the text (of the units where there is no text).
    """

    id: str
    task: str
    src_lang: str | None = None
    tgt_lang: str | None = None
    text: str | None = None
    units: list[int] | None = None
    codes: Tensor | None = None
    audio: Tensor | None = None
    sample_rate: int = 16000
    score: float | None = None


def _register(cls: type, static: tuple[str, ...] = ()) -> None:
    """Make a dataclass a pytree node, so that DDP, FSDP and Lightning find the tensors inside it."""
    names = [item.name for item in fields(cls) if item.name not in static]
    pytree.register_pytree_node(
        cls,
        lambda node: ([getattr(node, name) for name in names], tuple(getattr(node, name) for name in static)),
        lambda children, context: cls(
            **dict(zip(names, children, strict=True)), **dict(zip(static, context, strict=True))
        ),
        serialized_type_name=f"voxzoo.{cls.__name__}",
    )


for _cls in (Padded, Loss, Statistic, Adapted, UnitOutput):
    _register(_cls)
_register(Batch, static=("ids", "task", "src_lang", "tgt_lang", "references"))
