"""A stream LM. Letters: B batch, U units, P prompt frames, T frames, K streams, D width, V codes of a stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.losses.cross_entropy import token_loss
from voxzoo.components.roles import StreamLM
from voxzoo.components.types import Loss, Padded, Statistic


class MineStreamLM(StreamLM):
    """Convolutions over frames write streams 2 to K, each at once: from the units stretched to the frames, the mean of
    the prompt, and the streams before.

    Args:
        num_units: the YAML takes it from `unit_extractor.num_units`.
        codebook_size: V; the YAML takes it from `speech_lm.codebook_size`.
        num_streams: K, of the codec.
        dim: D.
        kernel_size: frames that a frame's codes depend on; odd.
    """

    pattern = "ar_nar"
    given_streams = 1

    def __init__(
        self, num_units: int, codebook_size: int, num_streams: int = 8, dim: int = 128, kernel_size: int = 5
    ) -> None:
        super().__init__()
        self.num_units, self.codebook_size, self.num_streams, self.dim = num_units, codebook_size, num_streams, dim
        self.unit_embedding = nn.Embedding(num_units, dim)
        self.code_embedding = nn.Embedding(num_streams * codebook_size, dim)  # one stream below the other
        self.mix = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.heads = nn.Embedding((num_streams - 1) * codebook_size, dim)  # output layers of all streams but the first
        nn.init.normal_(self.heads.weight, std=dim**-0.5)

    def forward(
        self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor | None = None
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses, and accuracies by stream, of (B, U) units and a (B, P, K) prompt against (B, T, K) codes. `stage`
        (B,): the stream that each row learns, 1..K-1 counted from 0; None draws one for each."""
        if stage is None:
            stage = torch.randint(1, self.num_streams, (len(codes),), device=codes.data.device)
        logits = codes.with_data(self._logits(units, codes, prompt, stage))
        labels = codes.data.gather(2, stage[:, None, None].expand(-1, codes.data.shape[1], 1))[..., 0]
        loss, _ = token_loss(lambda logits: logits, logits, labels, mask=codes.mask)
        right = (logits.data.argmax(-1) == labels) & codes.mask
        accuracies = {}
        for j in range(1, self.num_streams):
            rows = (stage == j)[:, None]
            accuracies[f"stream_{j + 1}"] = Statistic((right & rows).sum().float(), (codes.mask & rows).sum())
        return {"streams": loss}, accuracies

    @torch.no_grad()
    def generate(self, units: Padded, prompt: Padded, first: Padded | None = None, **options: Any) -> Padded:
        """(B, U) units, (B, P, K) prompt, (B, T) codes of the first stream -> (B, T, K) codes."""
        if first is None:
            raise ValueError("this stream LM writes all streams but the first: give `first`")
        codes = first.with_data(F.pad(first.data[..., None], (0, self.num_streams - 1)))
        for j in range(1, self.num_streams):
            stage = torch.full((len(first),), j, device=first.data.device)
            codes.data[:, :, j] = self._logits(units, codes, prompt, stage).argmax(-1)
        return codes.zeroed()

    def _logits(self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor) -> Tensor:
        """(B, T, V) of the stream that each row is at, from the streams before it."""
        x = self.unit_embedding(_stretched(units, codes)) + self._voice(prompt)[:, None]
        for k in range(self.num_streams - 1):
            x = x + self._embed(codes.data[:, :, k], k) * (stage > k)[:, None, None]
        states = codes.with_data(x).zeroed()
        states = x + F.gelu(self.mix(states.data.transpose(1, 2)).transpose(1, 2))
        heads = self.heads.weight.view(self.num_streams - 1, self.codebook_size, self.dim)[stage - 1]  # (B, V, D)
        return states @ heads.transpose(1, 2)

    def _voice(self, prompt: Padded) -> Tensor:
        """(B, P, K) -> (B, D): the mean of the frames."""
        frames = torch.stack([self._embed(prompt.data[:, :, k], k) for k in range(self.num_streams)]).sum(0)
        count = prompt.lengths.to(frames.device).clamp(min=1)
        return prompt.with_data(frames).zeroed().data.sum(1) / count[:, None]

    def _embed(self, codes: Tensor, k: int) -> Tensor:
        """(B, T) codes of stream k -> (B, T, D)."""
        return self.code_embedding(codes + k * self.codebook_size)


def _stretched(units: Padded, codes: Padded) -> Tensor:
    """(B, T) the unit that is spoken in each frame, all of a row as long as each other."""
    place = torch.arange(codes.data.shape[1], device=units.data.device)
    counts, frames = (lengths.to(place.device).clamp(min=1)[:, None] for lengths in (units.lengths, codes.lengths))
    at = torch.minimum(torch.div(place * counts, frames, rounding_mode="floor"), counts - 1)
    return units.data.gather(1, at)
