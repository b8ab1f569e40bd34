"""What codecs share that quantise latent frames: an encoder, books that quantise what those before left, a decoder.

Letters: B batch, N samples, T frames, K codebooks, C channels, D width of the latents, R rows of one length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..cards import Card, weights_hash
from ..errors import UserError
from ..layers.precision import full_float32
from ..layers.resampling import resampled
from ..layers.residual_quantizer import ResidualQuantizer
from ..roles import Codec
from ..types import Loss, Padded, Reconstruction


class LatentCodec(Codec):
    """An encoder to latent frames, residual vector quantisation (Zeghidour et al. 2021, arXiv 2107.03312), a decoder.

    A subclass makes the three and says the rates. Rows are encoded one by one, each without padding, in float32 also
    under autocast and where the part is cast: a code never depends on how rows were put together. On the same machine
    with as many threads it is the same bit for bit.

    Attributes:
        encoder: (R, C, N) samples at the codec's rate -> (R, D, ceil(N / hop_length)) latents.
        decoder: (R, D, T) latents -> (R, C, T x hop_length) samples.
        hop_length: samples of a frame.
        dim: D.
        decay: of the moving averages that the codebooks are, a step.
        dead_share: entries that are used less than this part of an average one start anew.
    """

    learns = True
    encoder: nn.Module
    decoder: nn.Module
    quantizer: ResidualQuantizer
    hop_length: int
    dim: int
    decay: float
    dead_share: float

    # Rates

    @property
    def bits(self) -> float:
        """Bits a second of one codebook."""
        return math.log2(self.codebook_size) * math.ceil(self.frame_rate)

    def codebooks_of(self, kbps: float) -> int:
        """How many codebooks a bandwidth is. Raises UserError for one below a book, or above all of them."""
        count = math.floor(1000 * kbps / self.bits + 1e-9)
        if not 1 <= count <= self.num_codebooks:
            low, high = self.bits / 1000, self.num_codebooks * self.bits / 1000
            raise UserError(f"a bandwidth of {kbps:g} kbps: this codec has {low:g} to {high:g}")
        return count

    def output_lengths(self, lengths: Tensor, sample_rate: int | None = None) -> Tensor:
        return self._frames(self._at_own_rate(lengths, sample_rate))

    def _at_own_rate(self, lengths: Tensor, sample_rate: int | None) -> Tensor:
        rate = sample_rate or self.sample_rate
        return (lengths * self.sample_rate + rate - 1) // rate

    def _frames(self, samples: Any) -> Any:
        return (samples + self.hop_length - 1) // self.hop_length

    # Codes

    @torch.no_grad()
    def encode(self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None) -> Padded:
        count = self._count(num_codebooks)
        with full_float32(speech.device.type), self._weights_kept(len(speech)):
            encoder = in_float32(self.encoder)
            rows = [self._encode(encoder, row, count) for row in self._rows(speech, sample_rate)]
        return Padded(Padded.from_list(rows).data, self.output_lengths(speech.lengths, sample_rate))

    def _encode(self, encoder: nn.Module, row: Tensor, count: int) -> Tensor:
        """(C, N) -> (T, K)."""
        if not row.shape[-1]:
            return row.new_zeros(0, count, dtype=torch.int64)
        return self.quantizer.encode(encoder(row[None])[0].T, count)

    @torch.no_grad()
    def decode(self, codes: Padded, sample_rate: int | None = None, loudness: Padded | None = None) -> Padded:
        self._refuse(codes)
        levels: list[Tensor | None] = [None] * len(codes) if loudness is None else [*loudness.unpad()]
        with full_float32(codes.device.type), self._weights_kept(len(codes)):
            decoder = in_float32(self.decoder)
            rows = [self._decode(decoder, row, level) for row, level in zip(codes.unpad(), levels, strict=True)]
            rows = [resampled(row, self.sample_rate, sample_rate or self.sample_rate) for row in rows]
        samples = Padded.from_list([row.T for row in rows])
        data = samples.data[..., 0] if self.channels == 1 else samples.data
        return Padded(data, samples.lengths.to(codes.lengths.device))

    def _decode(self, decoder: nn.Module, codes: Tensor, level: Tensor | None) -> Tensor:
        """(T, K), and what `loudness` said of the row -> (C, N)."""
        if not len(codes):
            return torch.zeros(self.channels, 0, device=codes.device)
        return decoder(self.quantizer.decode(codes).T[None])[0]

    def _weights_kept(self, rows: int) -> AbstractContextManager:
        """What is made of the weights for all rows of a batch."""
        return nullcontext()

    def _levels(self, rows: Tensor) -> Tensor | float:
        """What (R, C, N) rows are divided by before they are encoded, and multiplied by behind the decoder."""
        return 1.0

    def card(self) -> Card:
        """The rates, and a hash of the weights that choose a code: of the encoder and of the books' entries."""
        making = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        making |= {f"books.{number}": book.embed for number, book in enumerate(self.quantizer.books)}  # pyright: ignore
        return Card(
            "codec",
            {
                "codec": type(self).__name__,
                "sample_rate": self.sample_rate,
                "channels": self.channels,
                "frame_rate": self.frame_rate,
                "num_codebooks": self.num_codebooks,
                "codebook_size": self.codebook_size,
                "weights": None if any(value.is_meta for value in making.values()) else weights_hash(making)[:16],
            },
        )

    # Training

    def reconstruct(
        self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None
    ) -> Reconstruction:
        """As in `Codec`: gradients pass the quantiser as if it were not there. `commitment` draws latents to the
        entries that they chose, a mean over books and D. Runs in float32. Speech is not cut into chunks: give crops of
        at most one."""
        count = 0 if num_codebooks == 0 else self._count(num_codebooks)
        rows = self._rows(speech, sample_rate)
        samples: list[Tensor | None] = [None] * len(rows)
        losses, updates = [], []
        for places in _alike(rows):
            if not rows[places[0]].shape[-1]:
                for place in places:
                    samples[place] = rows[place]
                continue
            with full_float32(speech.device.type):
                made, loss, update = self._reconstruct(torch.stack([rows[place] for place in places]), count)
            losses.append(loss)
            updates.append(update)
            for place, row in zip(places, made, strict=True):
                samples[place] = row
        whole = [row for row in samples if row is not None]
        frames = self.output_lengths(torch.tensor([row.shape[-1] for row in rows])).to(speech.lengths.device)
        total = torch.stack(losses).sum() if losses else torch.zeros((), device=speech.device)
        each = (count, self.codebook_size)
        empty = {"counts": each, "sums": (*each, self.dim), "errors": each}
        update = {
            name: sum((one[name] for one in updates if one), torch.zeros(shape, device=speech.device))
            for name, shape in empty.items()
        }
        commitment = Loss(total, frames.sum().to(speech.device).float())
        return Reconstruction(self._joined(whole), self._joined(rows), frames, {"commitment": commitment}, update)

    def _reconstruct(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(R, C, N) -> the same reconstructed, the commitment summed over frames, and the points of each entry."""
        scale = self._levels(rows)
        encoder, decoder = self.encoder, self.decoder
        if not torch.is_grad_enabled():  # a copy learns nothing
            encoder, decoder = in_float32(encoder), in_float32(decoder)
        latents = encoder((rows / scale).to(next(encoder.parameters()).dtype))
        points = latents.transpose(1, 2).flatten(0, 1).float()  # (R x T, D)
        if not count:
            made = decoder(latents)[..., : rows.shape[-1]].float() * scale
            return made, 0 * points.sum(), {}
        codes = self.quantizer.encode(points, count)
        residual, quantised, commitment = points, torch.zeros_like(points), points.new_zeros(())
        learned = []
        for number in range(count):
            chosen = codes[:, number]
            entries = self.quantizer.entries(number)
            learned.append(self.quantizer.learned_from(residual.detach(), chosen, number))
            residual = residual - entries[chosen]
            quantised = quantised + entries[chosen]
            commitment = commitment + residual.square().mean(1).sum()
        passed = points + (quantised - points).detach()
        back = passed.view(len(rows), -1, self.dim).transpose(1, 2).to(latents.dtype)
        made = decoder(back)[..., : rows.shape[-1]].float() * scale
        return made, commitment / count, {name: torch.stack([one[name] for one in learned]) for name in learned[0]}

    @torch.no_grad()
    def advance(self, update: Mapping[str, Tensor], seed: int = 0) -> None:
        self.quantizer.advance(update, self.decay, self.dead_share, seed)

    @property
    def begun(self) -> bool:
        return all(bool(book.inited) for book in self.quantizer.books)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def latents(self, speech: Padded, sample_rate: int | None = None) -> Padded:
        rows = []
        for row in self._rows(speech, sample_rate):
            if not row.shape[-1]:
                rows.append(row.new_zeros(0, self.dim))
                continue
            scaled = row[None] / self._levels(row[None])
            rows.append(self.encoder(scaled.to(next(self.encoder.parameters()).dtype))[0].T.float())
        return Padded.from_list(rows)

    @torch.no_grad()
    def begin(self, points: Tensor, seed: int = 0) -> None:
        self.quantizer.begin(points, seed)

    # Rows

    def _rows(self, speech: Padded, sample_rate: int | None) -> list[Tensor]:
        """(C, N) float32 of each row at the codec's rate, without padding."""
        data = speech.data
        given = data.shape[2] if data.dim() == 3 else 1
        if data.dim() not in (2, 3) or given not in (1, self.channels):
            kind = {1: "mono", 2: "stereo"}.get(given, f"{given} channels")
            raise UserError(
                f"codec: speech of shape {tuple(data.shape)} ({kind}), but this codec is for "
                f"{'mono' if self.channels == 1 else 'stereo'}: give (B, N), or (B, N, {self.channels})"
            )
        rate = self.sample_rate if sample_rate is None else sample_rate
        if rate < 1:
            known = f"give the rate of its samples, or none for {self.sample_rate} Hz"
            raise UserError(f"codec: speech of {rate} Hz; {known}")
        rows = []
        for row in speech.unpad():
            row = (row if row.dim() == 2 else row[:, None]).float().T.expand(self.channels, -1)
            rows.append(resampled(row, rate, self.sample_rate))
        return rows

    def _joined(self, rows: Sequence[Tensor]) -> Padded:
        """(C, N) rows as (B, N), or (B, N, C)."""
        samples = Padded.from_list([row.T for row in rows])
        return samples.with_data(samples.data[..., 0]) if self.channels == 1 else samples

    def _count(self, num_codebooks: int | None) -> int:
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise UserError(f"num_codebooks={count}: this codec has 1 to {self.num_codebooks}")
        return count

    def _refuse(self, codes: Padded) -> None:
        """Raise UserError for codes that are none of this codec."""
        if codes.data.dim() != 3 or not 1 <= codes.data.shape[2] <= self.num_codebooks:
            raise UserError(
                f"codes of shape {tuple(codes.data.shape)}: this codec reads (B, T, K) with K from 1 to "
                f"{self.num_codebooks}"
            )
        if codes.data.is_meta or not codes.data.numel():
            return
        low, high = (int(bound) for bound in codes.zeroed().data.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise UserError(
                f"code {low if low < 0 else high} is outside of the codebooks, which have {self.codebook_size} entries "
                f"(0 to {self.codebook_size - 1}): these codes are of another codec"
            )


def in_float32(module: nn.Module) -> nn.Module:
    """The module itself, or a copy where it was cast."""
    return module if all(p.dtype == torch.float32 for p in module.parameters()) else copy.deepcopy(module).float()


def _alike(rows: Sequence[Tensor]) -> list[list[int]]:
    """Places of the rows of each length, in the order of the first of them."""
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.shape[-1], []).append(place)
    return list(found.values())
