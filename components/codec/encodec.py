"""EnCodec: convolutions to latent frames, residual vector quantisation, convolutions back.

Letters: B batch, N samples, T frames, K codebooks, C channels, D width of the latents, R rows of one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..cards import Card
from ..errors import UserError
from ..layers.precision import full_float32
from ..layers.residual_quantizer import ResidualQuantizer
from ..layers.seanet import Norm, PadMode, SEANetDecoder, SEANetEncoder, SEANetSettings, stream_through
from ..types import Padded
from .latent import LatentCodec, in_float32

_BLOCK = 750  # frames: what is longer is coded piece by piece, where nothing sees what comes later
_QUIET = 1e-8
"""What is added to the loudness of a chunk, so that silence can be divided by it."""


class EnCodec(LatentCodec):
    """EnCodec (Defossez et al. 2022, arXiv 2210.13438). The defaults are the published model for 24 kHz, mono.

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

    def output_lengths(self, lengths: Tensor, sample_rate: int | None = None) -> Tensor:
        lengths = self._at_own_rate(lengths, sample_rate)
        if self.chunk_length is None or self.chunk_stride is None:
            return self._frames(lengths)
        before = (lengths + self.chunk_stride - 1) // self.chunk_stride - 1  # chunks but the last
        last = lengths - before * self.chunk_stride
        # Where the last chunk lies within the overlap, the one before it is not whole either.
        second = (last + self.chunk_stride).clamp(max=self.chunk_length) * (before > 0)
        whole = (before - 1).clamp(min=0) * (self.chunk_length // self.hop_length)
        return (whole + self._frames(second) + self._frames(last)).clamp(min=0)

    # Codes

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

    def _levels(self, rows: Tensor) -> Tensor | float:
        return torch.stack([self._scale(row) for row in rows]).view(-1, 1, 1) if self.normalise else 1.0

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
        card = super().card()
        return Card(card.kind, {**card.values, "chunk_length": self.chunk_length})

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
            decoder = in_float32(self.decoder)
            latents = self.quantizer.decode(codes.flatten(0, 1)).reshape(*codes.shape[:2], self.dim)
            assert isinstance(decoder.layers, nn.ModuleList)
            samples, state = stream_through(decoder.layers, latents.transpose(1, 2), state, last)
        return (samples[:, 0] if self.channels == 1 else samples.transpose(1, 2)), state

    def _chunks(self, row: Tensor) -> list[Tensor]:
        if self.chunk_length is None or self.chunk_stride is None:
            return [row] if row.shape[-1] else []
        return [row[:, at : at + self.chunk_length] for at in range(0, row.shape[-1], self.chunk_stride)]

    def _scale(self, chunk: Tensor) -> Tensor:
        """(C, N) -> () loudness."""
        mono = chunk.sum(0) / len(chunk)
        return mono.square().mean().sqrt() + _QUIET


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
