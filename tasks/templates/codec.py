"""A codec. Letters: B batch, N samples, T frames, H samples of a frame, K codebooks, D width of a latent, P points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.cards import Card, weights_hash
from voxzoo.components.errors import UserError
from voxzoo.components.layers.precision import full_float32
from voxzoo.components.layers.resampling import resampled
from voxzoo.components.layers.residual_quantizer import ResidualQuantizer
from voxzoo.components.roles import Codec
from voxzoo.components.types import Loss, Padded, Reconstruction


class MineCodec(Codec):
    """Frames of H samples, each by itself: two layers to a latent, residual vector quantisation, two layers back.

    Rows are coded one by one and in float32, so that a code never depends on what comes beside it.

    Args:
        sample_rate: Hz.
        hop_length: H.
        num_codebooks: K.
        codebook_size: entries of a codebook.
        dim: D.
        width: of the layers between.
        decay: of the moving averages that the codebooks are.
        dead_share: entries that are used less than this part of an average one start anew.
    """

    channels = 1
    learns = True

    def __init__(
        self,
        sample_rate: int = 16000,
        hop_length: int = 320,
        num_codebooks: int = 8,
        codebook_size: int = 256,
        dim: int = 64,
        width: int = 256,
        decay: float = 0.99,
        dead_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.sample_rate, self.hop_length, self.frame_rate = sample_rate, hop_length, sample_rate / hop_length
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.decay, self.dead_share = decay, dead_share
        self.encoder = nn.ModuleList([nn.Linear(hop_length, width), nn.Linear(width, dim)])
        self.decoder = nn.ModuleList([nn.Linear(dim, width), nn.Linear(width, hop_length)])
        self.quantizer = ResidualQuantizer(num_codebooks, codebook_size, dim)

    def output_lengths(self, lengths: Tensor, sample_rate: int | None = None) -> Tensor:
        """(B,) int64 samples at `sample_rate` -> (B,) int64 frames: every started one counts."""
        rate = sample_rate or self.sample_rate
        own = torch.div(lengths * self.sample_rate + rate - 1, rate, rounding_mode="floor")
        return torch.div(own + self.hop_length - 1, self.hop_length, rounding_mode="floor")

    @torch.no_grad()
    def encode(self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None) -> Padded:
        """(B, N) samples at `sample_rate` -> (B, T, K) codes."""
        count = self._count(num_codebooks)
        rows = [self.quantizer.encode(self._encoded(row), count) for row in self._rows(speech, sample_rate)]
        return Padded(Padded.from_list(rows).data, self.output_lengths(speech.lengths, sample_rate))

    @torch.no_grad()
    def decode(self, codes: Padded, sample_rate: int | None = None, loudness: Padded | None = None) -> Padded:
        """(B, T, K) codes -> (B, N) samples at `sample_rate`."""
        self._refuse(codes)
        rate = sample_rate or self.sample_rate
        rows = [self._decoded(self.quantizer.decode(row)) for row in codes.unpad()]
        return Padded.from_list([resampled(row, self.sample_rate, rate) for row in rows])

    def card(self) -> Card:
        """The rates, and a hash of the weights that choose a code."""
        making = {name: value for name, value in self.state_dict().items() if not name.startswith("decoder.")}
        known = not any(value.is_meta for value in making.values())
        values = {name: getattr(self, name) for name in ("sample_rate", "frame_rate", "num_codebooks", "codebook_size")}
        return Card("codec", {**values, "codec": "MineCodec", "weights": weights_hash(making)[:16] if known else None})

    # Training

    def reconstruct(
        self, speech: Padded, num_codebooks: int | None = None, sample_rate: int | None = None
    ) -> Reconstruction:
        """Gradients pass the quantiser as if it were not there; `commitment` draws latents to their entries."""
        count, rows = self._count(num_codebooks), self._rows(speech, sample_rate)
        frames = self.output_lengths(torch.tensor([len(row) for row in rows]))
        points = torch.cat([self._encoded(row) for row in rows])  # (P, D)
        codes = self.quantizer.encode(points, count)
        left, whole, commitment, learned = points, torch.zeros_like(points), points.new_zeros(()), []
        for number, chosen in enumerate(codes.unbind(1)):
            entries = self.quantizer.entries(number)
            learned.append(self.quantizer.learned_from(left.detach(), chosen, number))
            left, whole = left - entries[chosen], whole + entries[chosen]
            commitment = commitment + left.square().mean(1).sum()
        passed = (points + (whole - points).detach()).split(frames.tolist())
        made = [self._decoded(part)[: len(row)] for part, row in zip(passed, rows, strict=True)]
        losses = {"commitment": Loss(commitment / count, frames.sum().to(points))}
        update = {name: torch.stack([one[name] for one in learned]) for name in learned[0]}
        return Reconstruction(Padded.from_list(made), Padded.from_list(rows), frames, losses, update)

    @property
    def begun(self) -> bool:
        """Whether the codebooks were set from data."""
        return all(bool(book.inited) for book in self.quantizer.books)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def latents(self, speech: Padded, sample_rate: int | None = None) -> Padded:
        """(B, T, D) what `begin` reads."""
        return Padded.from_list([self._encoded(row) for row in self._rows(speech, sample_rate)])

    @torch.no_grad()
    def begin(self, points: Tensor, seed: int = 0) -> None:
        """Set the codebooks from (P, D) latents."""
        self.quantizer.begin(points, seed)

    @torch.no_grad()
    def advance(self, update: Mapping[str, Tensor], seed: int = 0) -> None:
        """Move the codebooks."""
        self.quantizer.advance(update, self.decay, self.dead_share, seed)

    # Rows

    def _rows(self, speech: Padded, sample_rate: int | None) -> list[Tensor]:
        """(N,) float32 of each row at the codec's rate, without padding."""
        if speech.data.dim() != 2:
            raise UserError(f"codec: speech of shape {tuple(speech.data.shape)}, but this codec is mono: give (B, N)")
        rate = sample_rate or self.sample_rate
        return [resampled(row.float(), rate, self.sample_rate) for row in speech.unpad()]

    def _encoded(self, row: Tensor) -> Tensor:
        """(N,) -> (T, D)."""
        return _through(self.encoder, F.pad(row, (0, -len(row) % self.hop_length)).view(-1, self.hop_length))

    def _decoded(self, latents: Tensor) -> Tensor:
        """(T, D) -> (N,)."""
        return torch.tanh(_through(self.decoder, latents)).flatten()

    def _count(self, num_codebooks: int | None) -> int:
        count = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= count <= self.num_codebooks:
            raise UserError(f"num_codebooks={count}: this codec has 1 to {self.num_codebooks}")
        return count

    def _refuse(self, codes: Padded) -> None:
        if codes.data.dim() != 3 or not 1 <= codes.data.shape[2] <= self.num_codebooks:
            shape = tuple(codes.data.shape)
            raise UserError(f"codes of shape {shape}: this codec reads (B, T, K) with K from 1 to {self.num_codebooks}")
        if codes.data.numel() and not codes.data.is_meta:
            low, high = (int(bound) for bound in codes.zeroed().data.aminmax())
            if low < 0 or high >= self.codebook_size:
                wrong = low if low < 0 else high
                raise UserError(f"code {wrong} is outside of the codebooks: expected 0 to {self.codebook_size - 1}")


def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """(T, I) -> (T, O), in float32 whatever the layers are cast to."""
    with full_float32(x.device.type):
        for number, layer in enumerate(layers):
            assert isinstance(layer, nn.Linear)
            x = F.linear(F.gelu(x) if number else x, layer.weight.float(), layer.bias.float())
    return x
