"""EnCodec: convolutions to latent frames, residual vector quantisation, convolutions back.

Letters: B batch, N samples, T frames, K codebooks, C channels, D width of the latents, R rows of one length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..cards import Card, weights_hash
from ..errors import UserError
from ..layers.precision import full_float32
from ..layers.resampling import resampled
from ..layers.residual_quantizer import ResidualQuantizer
from ..layers.seanet import Norm, PadMode, SEANetDecoder, SEANetEncoder, SEANetSettings, stream_through
from ..roles import Codec
from ..types import Loss, Padded, Reconstruction

_BLOCK = 750  # frames: what is longer is coded piece by piece, where nothing sees what comes later
_QUIET = 1e-8
"""What is added to the loudness of a chunk, so that silence can be divided by it."""


class EnCodec(Codec):
    """EnCodec (Defossez et al. 2022, arXiv 2210.13438). The defaults are the published model for 24 kHz, mono.

    Rows are encoded one by one, each without padding, in float32 also under autocast and where the part is cast: a code
    never depends on how rows were put together. On the same machine with as many threads it is the same bit for bit.

    Of the 48 kHz model (`chunk_seconds`) speech is cut into chunks that overlap; their frames stand one behind the
    other, so that there are a few more than `frame_rate` a second, and decoding fades from chunk to chunk. Its loudness
    is taken out of each chunk (`normalise`); `decode` puts back what `loudness` measured, else `default_loudness`.

    Args:
        sample_rate: Hz.
        channels: of the samples, 1 or 2.
        num_codebooks: K; a book is log2(codebook_size) * frame_rate bits a second.
        codebook_size: entries of a book.
        dim: D.
        num_filters: channels of the first convolution; each ratio doubles them.
        ratios: samples per step of each stage of the decoder; the encoder has them in reverse.
        num_residual_layers: residual units of a stage.
        kernel_size, last_kernel_size, residual_kernel_size: of the first, last and residual convolutions.
        dilation_growth: by how much the dilation grows from one residual unit of a stage to the next.
        compress: by how much a residual unit narrows.
        num_lstm_layers: of each of the two LSTMs.
        causal: whether nothing sees what comes later; decoding then works as a stream.
        norm: weight: weight normalisation of each convolution; time_group: group norm over all channels and steps.
        pad_mode: what convolutions see beyond the ends.
        conv_shortcut: a 1 x 1 convolution beside each residual unit, else nothing.
        normalise: divide by the loudness (root mean square over channels and steps) of each chunk.
        chunk_seconds: length of a chunk; None: speech is encoded whole.
        overlap: of neighbouring chunks, as a part of one.
        default_loudness: where `decode` is given none: 0.1 is 20 dB below full scale.
        decay: of the moving averages that the codebooks are, a step.
        dead_share: entries that are used less than this part of an average one start anew.
    """

    paper = "EnCodec, arXiv 2210.13438"
    stacks = ()
    learns = True

    def __init__(
        self,
        sample_rate: int = 24000,
        channels: int = 1,
        num_codebooks: int = 32,
        codebook_size: int = 1024,
        dim: int = 128,
        num_filters: int = 32,
        ratios: Sequence[int] = (8, 5, 4, 2),
        num_residual_layers: int = 1,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        residual_kernel_size: int = 3,
        dilation_growth: int = 2,
        compress: int = 2,
        num_lstm_layers: int = 2,
        causal: bool = True,
        norm: Norm = "weight",
        pad_mode: PadMode = "reflect",
        conv_shortcut: bool = True,
        normalise: bool = False,
        chunk_seconds: float | None = None,
        overlap: float = 0.01,
        default_loudness: float = 0.1,
        decay: float = 0.99,
        dead_share: float = 0.1,
    ) -> None:
        super().__init__()
        _require(channels, num_codebooks, codebook_size, ratios, num_lstm_layers, chunk_seconds, overlap)
        self.sample_rate, self.channels = sample_rate, channels
        self.num_codebooks, self.codebook_size, self.dim = num_codebooks, codebook_size, dim
        self.hop_length = math.prod(ratios)
        self.frame_rate = sample_rate / self.hop_length
        self.normalise, self.default_loudness = normalise, default_loudness
        self.chunk_length = None if chunk_seconds is None else int(chunk_seconds * sample_rate)
        """Samples of a chunk, or None."""
        self.chunk_stride = None if self.chunk_length is None else max(1, int((1 - overlap) * self.chunk_length))
        """Samples from one chunk to the next, or None."""
        if self.chunk_length is not None and self.chunk_length % self.hop_length:
            raise ValueError(
                f"chunk_seconds={chunk_seconds} are {self.chunk_length} samples, which must be a multiple of the "
                f"product of ratios, {self.hop_length}"
            )
        # A norm over all steps sees what comes later.
        self.streams = causal and norm == "weight" and not normalise and chunk_seconds is None
        self.decay, self.dead_share = decay, dead_share
        settings = SEANetSettings(
            channels, dim, num_filters, tuple(ratios), num_residual_layers, kernel_size, last_kernel_size,
            residual_kernel_size, dilation_growth, compress, num_lstm_layers, causal, norm, pad_mode, conv_shortcut,
        )  # fmt: skip
        self.encoder = SEANetEncoder(settings)
        self.decoder = SEANetDecoder(settings)
        self.quantizer = ResidualQuantizer(num_codebooks, codebook_size, dim)

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
        rate = sample_rate or self.sample_rate
        lengths = (lengths * self.sample_rate + rate - 1) // rate
        if self.chunk_length is None or self.chunk_stride is None:
            return self._frames(lengths)
        before = (lengths + self.chunk_stride - 1) // self.chunk_stride - 1  # chunks but the last
        last = lengths - before * self.chunk_stride
        # Where the last chunk lies within the overlap, the one before it is not whole either.
        second = (last + self.chunk_stride).clamp(max=self.chunk_length) * (before > 0)
        whole = (before - 1).clamp(min=0) * (self.chunk_length // self.hop_length)
        return (whole + self._frames(second) + self._frames(last)).clamp(min=0)

    def _frames(self, samples: Any) -> Any:
        return (samples + self.hop_length - 1) // self.hop_length

    # Codes

    @torch.no_grad()
    def encode(self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None) -> Padded:
        count = self._count(num_codebooks)
        with full_float32(speech.device.type), self._weights_kept(len(speech)):
            encoder = _in_float32(self.encoder)
            rows = [self._encode(encoder, row, count) for row in self._rows(speech, sample_rate)]
        return Padded(Padded.from_list(rows).data, self.output_lengths(speech.lengths, sample_rate))

    def _encode(self, encoder: nn.Module, row: Tensor, count: int) -> Tensor:
        """(C, N) -> (T, K)."""
        codes = [row.new_zeros(0, count, dtype=torch.int64)]
        for chunk in self._chunks(row):
            chunk = chunk / self._scale(chunk) if self.normalise else chunk
            for latents in self._in_blocks(encoder, chunk, _BLOCK * self.hop_length):
                codes.append(self.quantizer.encode(latents.T, count))
        return torch.cat(codes)

    @torch.no_grad()
    def loudness(self, speech: Padded, sample_rate: int | None = None) -> Padded | None:
        """(B, chunks) of each chunk, where the codec takes it out."""
        if not self.normalise:
            return None
        rows = [
            torch.stack([self._scale(chunk) for chunk in self._chunks(row)]) if row.shape[-1] else row.new_zeros(0)
            for row in self._rows(speech, sample_rate)
        ]
        return Padded.from_list(rows)

    @torch.no_grad()
    def decode(self, codes: Padded, sample_rate: int | None = None, loudness: Padded | None = None) -> Padded:
        """As in `Codec`. At the codec's own rate T frames are T x hop_length samples (of chunks: less their overlaps);
        `loudness` is (B, chunks)."""
        self._refuse(codes)
        levels: list[Tensor | None] = [None] * len(codes) if loudness is None else [*loudness.unpad()]
        with full_float32(codes.device.type), self._weights_kept(len(codes)):
            decoder = _in_float32(self.decoder)
            rows = [self._decode(decoder, row, level) for row, level in zip(codes.unpad(), levels, strict=True)]
            rows = [resampled(row, self.sample_rate, sample_rate or self.sample_rate) for row in rows]
        samples = Padded.from_list([row.T for row in rows])
        data = samples.data[..., 0] if self.channels == 1 else samples.data
        return Padded(data, samples.lengths.to(codes.lengths.device))

    def _decode(self, decoder: nn.Module, codes: Tensor, level: Tensor | None) -> Tensor:
        """(T, K) and (chunks,) -> (C, N)."""
        if not len(codes):
            return torch.zeros(self.channels, 0, device=codes.device)
        sizes = self._sizes(len(codes), None if level is None else len(level))
        chunks = [
            torch.cat([*self._in_blocks(decoder, self.quantizer.decode(part).T, _BLOCK)], -1)
            for part in codes.split(sizes)
        ]
        if self.normalise:
            if level is None:
                level = torch.full((len(chunks),), self.default_loudness, device=codes.device)
            chunks = [chunk * scale for chunk, scale in zip(chunks, level, strict=True)]
        return chunks[0] if self.chunk_stride is None else _overlap_add(chunks, self.chunk_stride)

    def _weights_kept(self, rows: int) -> AbstractContextManager:
        """The product of direction and length that each weight is: made once for all rows; for one, layer by layer, so
        that no second copy of the weights is there."""
        return parametrize.cached() if rows > 1 or self.chunk_length is not None else nullcontext()

    def _in_blocks(self, module: nn.Module, x: Tensor, steps: int) -> Iterator[Tensor]:
        """(C, N) through encoder or decoder: whole, or where nothing sees what comes later `steps` at a time, so that
        long speech takes no more memory than a block of it."""
        count = x.shape[-1] // steps
        if not self.streams or count < 2:
            yield module(x[None])[0]
            return
        assert isinstance(module.layers, nn.ModuleList)
        state = None
        for number in range(count):
            last = number == count - 1
            piece = x[:, number * steps : None if last else (number + 1) * steps]
            out, state = stream_through(module.layers, piece[None], state, last)
            yield out[0]

    def _sizes(self, frames: int, chunks: int | None) -> list[int]:
        """Frames of each chunk that `frames` frames are of; `chunks` says how many those are, where that is known."""
        if self.chunk_length is None or self.chunk_stride is None:
            return [frames]
        whole = self.chunk_length // self.hop_length
        least = -(-frames // whole)
        chunks = least if chunks is None else chunks
        if chunks == least:
            return [whole] * (least - 1) + [frames - whole * (least - 1)]
        # The last chunk lies within the overlap: it repeats the end of the one before, which is not whole.
        left = frames - whole * (chunks - 2)
        for rest in range(1, self.chunk_length - self.chunk_stride + 1):
            second, last = self._frames(self.chunk_stride + rest), self._frames(rest)
            if chunks == least + 1 and second + last == left:
                return [whole] * (chunks - 2) + [second, last]
        raise UserError(f"loudness of {chunks} chunks for {frames} frames of codes: measure it on the same speech")

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
                "chunk_length": self.chunk_length,
                "weights": None if any(value.is_meta for value in making.values()) else weights_hash(making)[:16],
            },
        )

    # Streaming

    def start(self, rows: int) -> Any:
        if not self.streams:
            raise NotImplementedError("only a causal EnCodec without chunks and loudness decodes as a stream")
        return None

    @torch.no_grad()
    def step(self, codes: Tensor, state: Any, last: bool = False) -> tuple[Tensor, Any]:
        """As in `Codec`, at the codec's own rate. Where convolutions reflect what they see first, the first 7 frames of
        codes give samples together."""
        if not self.streams:
            self.start(len(codes))
        self._refuse(Padded(codes, torch.full((len(codes),), codes.shape[1])))
        with full_float32(codes.device.type):
            decoder = _in_float32(self.decoder)
            latents = self.quantizer.decode(codes.flatten(0, 1)).reshape(*codes.shape[:2], self.dim)
            assert isinstance(decoder.layers, nn.ModuleList)
            samples, state = stream_through(decoder.layers, latents.transpose(1, 2), state, last)
        return (samples[:, 0] if self.channels == 1 else samples.transpose(1, 2)), state

    # Training

    def reconstruct(
        self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None
    ) -> Reconstruction:
        """As in `Codec`: gradients pass the quantiser as if it were not there (section 3.2). `commitment` draws latents
        to the entries that they chose, a mean over books and D. Runs in float32. Speech is not cut into chunks: give
        crops of at most one."""
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
        scale = torch.stack([self._scale(row) for row in rows]).view(-1, 1, 1) if self.normalise else 1.0
        encoder, decoder = self.encoder, self.decoder
        if not torch.is_grad_enabled():  # a copy learns nothing
            encoder, decoder = _in_float32(encoder), _in_float32(decoder)
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
            scaled = row / self._scale(row) if self.normalise else row
            rows.append(self.encoder(scaled[None].to(next(self.encoder.parameters()).dtype))[0].T.float())
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
        rate = sample_rate or self.sample_rate
        rows = []
        for row in speech.unpad():
            row = (row if row.dim() == 2 else row[:, None]).float().T.expand(self.channels, -1)
            rows.append(resampled(row, rate, self.sample_rate))
        return rows

    def _joined(self, rows: Sequence[Tensor]) -> Padded:
        """(C, N) rows as (B, N), or (B, N, C)."""
        samples = Padded.from_list([row.T for row in rows])
        return samples.with_data(samples.data[..., 0]) if self.channels == 1 else samples

    def _chunks(self, row: Tensor) -> list[Tensor]:
        if self.chunk_length is None or self.chunk_stride is None:
            return [row] if row.shape[-1] else []
        return [row[:, at : at + self.chunk_length] for at in range(0, row.shape[-1], self.chunk_stride)]

    def _scale(self, chunk: Tensor) -> Tensor:
        """(C, N) -> () loudness."""
        mono = chunk.sum(0) / len(chunk)
        return mono.square().mean().sqrt() + _QUIET

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


def _overlap_add(chunks: Sequence[Tensor], stride: int) -> Tensor:
    """(C, N) chunks, `stride` samples apart -> (C, N) their mean, each weighted by a triangle over its length."""
    length = chunks[0].shape[-1]
    place = torch.linspace(0, 1, length + 2, device=chunks[0].device)[1:-1]
    triangle = 0.5 - (place - 0.5).abs()
    size = max(number * stride + chunk.shape[-1] for number, chunk in enumerate(chunks))
    total, weight = chunks[0].new_zeros(len(chunks[0]), size), chunks[0].new_zeros(size)
    for number, chunk in enumerate(chunks):
        here = slice(number * stride, number * stride + chunk.shape[-1])
        total[:, here] += triangle[: chunk.shape[-1]] * chunk
        weight[here] += triangle[: chunk.shape[-1]]
    return total / weight


def _in_float32(module: nn.Module) -> nn.Module:
    """The module itself, or a copy where it was cast."""
    return module if all(p.dtype == torch.float32 for p in module.parameters()) else copy.deepcopy(module).float()


def _alike(rows: Sequence[Tensor]) -> list[list[int]]:
    """Places of the rows of each length, in the order of the first of them."""
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.shape[-1], []).append(place)
    return list(found.values())


def _require(channels, num_codebooks, codebook_size, ratios, num_lstm_layers, chunk_seconds, overlap) -> None:
    if channels not in (1, 2):
        raise ValueError(f"channels={channels} must be 1 or 2")
    if num_codebooks < 1 or codebook_size < 2:
        raise ValueError(f"num_codebooks={num_codebooks} must be at least 1, codebook_size={codebook_size} at least 2")
    if not ratios or min(ratios) < 1:
        raise ValueError(f"ratios={list(ratios)} must be at least 1, and at least one of them")
    if num_lstm_layers < 1:
        raise ValueError(f"num_lstm_layers={num_lstm_layers} must be at least 1")
    if chunk_seconds is not None and (chunk_seconds <= 0 or not 0 <= overlap <= 0.5):
        raise ValueError(f"chunk_seconds={chunk_seconds} must be positive, overlap={overlap} in 0..0.5")
