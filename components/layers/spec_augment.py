"""Masking of features and states while training. Letters: B batch, T frames, F features, D model dim, M masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..limits import at_least, share
from ..types import Padded


class SpecAugment(nn.Module):
    """Time and frequency masks (Park et al. 2019, arXiv 1904.08779, section 2), filled with 0, the mean of standardised
    features, and before them voices of other sizes: vocal tract length perturbation (Jaitly and Hinton 2013, ICML
    workshop on deep learning for audio) by a stretch of the frequency axis. Training only; every row draws its own,
    from torch's global generator, without a device sync.

    Args:
        time_masks: masks over time per utterance.
        time_width: longest mask in steps; widths are uniform over 0..time_width.
        time_fraction: no mask is longer than this fraction of the real steps.
        freq_masks: masks over frequency per utterance.
        freq_width: widest mask in bins; widths are uniform over 0..freq_width.
        stack: frames per step of the front end: a band is masked in all of them.
        freq_warp: most by which the bins of an utterance are stretched about the lowest one: by a factor from
            1 / (1 + freq_warp) to 1 + freq_warp, its logarithm uniform. Values between bins are interpolated; beyond
            the highest one its value goes on.
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 20,
        time_fraction: float = 0.2,
        freq_masks: int = 2,
        freq_width: int = 15,
        stack: int = 1,
        freq_warp: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(0, time_masks=time_masks, time_width=time_width, freq_masks=freq_masks, freq_width=freq_width)
        at_least(0, freq_warp=freq_warp)
        share(time_fraction=time_fraction)
        at_least(1, stack=stack)
        self.time_masks = time_masks
        self.time_width = time_width
        self.time_fraction = time_fraction
        self.freq_masks = freq_masks
        self.freq_width = freq_width
        self.stack = stack
        self.freq_warp = freq_warp

    def forward(self, features: Padded) -> Padded:
        """(B, T, F) -> (B, T, F), warped and masked; unchanged outside training."""
        if not self.training:
            return features
        data = features.data
        if data.shape[-1] % self.stack:
            raise ValueError(
                f"features of width {data.shape[-1]} are not {self.stack} stacked frames; set stack to the front end's"
            )
        lengths = features.lengths.to(data.device)
        if self.freq_warp:
            data = self._warp(data)
        if self.time_masks and self.time_width:
            widest = (lengths * self.time_fraction).long().clamp(max=self.time_width)
            spans = _spans(lengths, widest, self.time_masks, data.shape[1])
            data = data.masked_fill(spans[..., None], 0)
        if self.freq_masks and self.freq_width:
            bins = data.shape[-1] // self.stack
            size = lengths.new_full(lengths.shape, bins)
            spans = _spans(size, size.clamp(max=self.freq_width), self.freq_masks, bins)
            data = data.masked_fill(spans.repeat(1, self.stack)[:, None], 0)
        return features.with_data(data)

    def _warp(self, data: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F), the bins of each row stretched by a factor of its own."""
        frames = data.unflatten(-1, (self.stack, -1)).flatten(1, 2)
        bins = frames.shape[-1]
        factor = (1 + self.freq_warp) ** (2 * torch.rand(len(data), 1, 1, device=data.device) - 1)
        place = (torch.arange(bins, device=data.device) / factor).clamp(max=bins - 1)
        below = place.long()
        above = (below + 1).clamp(max=bins - 1)
        low, high = (frames.gather(2, index.expand_as(frames)) for index in (below, above))
        return low.lerp(high, (place - below).to(data.dtype)).reshape(data.shape)


class SpanMasking(nn.Module):
    """Masking of projected features as wav2vec 2.0 does it (Baevski et al. 2020, arXiv 2006.11477, section 3.1 and
    appendix B; the front half of HuBERT and w2v-BERT 2.0): spans of steps become one learned vector, spans of channels
    become 0. Training only, from torch's global generator, without a device sync.

    Spans begin at distinct places, may overlap and lie wholly within the real steps of a row (the published models'
    own masking does not look at the padding of the batch everywhere). A row draws p T / length spans, rounded up or
    down at random, at least the minimum, and fewer where it is too short.

    Args:
        time_prob: p, the share of steps that would be masked if no spans overlapped.
        time_length: steps of a span.
        time_min: spans that a row has at least.
        feature_prob, feature_length, feature_min: the same over channels.
    """

    def __init__(
        self,
        time_prob: float = 0.0,
        time_length: int = 10,
        time_min: int = 2,
        feature_prob: float = 0.0,
        feature_length: int = 10,
        feature_min: int = 0,
    ) -> None:
        super().__init__()
        share(mask_time_prob=time_prob, mask_feature_prob=feature_prob)
        at_least(1, mask_time_length=time_length, mask_feature_length=feature_length)
        at_least(0, mask_time_min=time_min, mask_feature_min=feature_min)
        self.time_prob = time_prob
        self.time_length = time_length
        self.time_min = time_min
        self.feature_prob = feature_prob
        self.feature_length = feature_length
        self.feature_min = feature_min

    def forward(self, x: Tensor, lengths: Tensor, embedding: Tensor | None) -> Tensor:
        """Mask (B, T, D) with rows of `lengths` (B,) real steps; `embedding` (D,) is the learned vector. Unchanged
        outside training. While training `embedding` always has a gradient (zero where nothing is masked), because DDP
        waits for it."""
        if not self.training:
            return x
        batch, steps, dim = x.shape
        if embedding is not None:
            masked = self.steps(lengths.to(x.device), steps)
            x = torch.where(masked[..., None], embedding.to(x.dtype), x)
        if self.feature_prob > 0:
            size = torch.full((batch,), dim, device=x.device)
            channels = span_mask(size, dim, self.feature_prob, self.feature_length, self.feature_min)
            x = x.masked_fill(channels[:, None], 0)
        return x

    def steps(self, lengths: Tensor, total: int) -> Tensor:
        """The steps to mask in rows of `lengths` (B,): (B, total) bool."""
        if self.time_prob == 0:
            return torch.zeros(len(lengths), total, dtype=torch.bool, device=lengths.device)
        return span_mask(lengths, total, self.time_prob, self.time_length, self.time_min)


def mask_vector(dim: int, wanted: bool, time_prob: float) -> nn.Parameter | None:
    """The learned vector (D,) that masked steps become, where an encoder has one. It is the encoder's own parameter, as
    in published checkpoints.

    Raises:
        ValueError: steps are to be masked (`time_prob` of `SpanMasking`) and there is none.
    """
    if wanted:
        return nn.Parameter(nn.init.uniform_(torch.empty(dim)))
    if time_prob > 0:
        raise ValueError(f"mask_time_prob={time_prob} needs mask_embedding=true: masked steps become that vector")
    return None


def span_mask(lengths: Tensor, total: int, prob: float, width: int, least: int) -> Tensor:
    """Spans of `width` steps with distinct beginnings inside 0..length of each row: (B,) -> (B, total) bool."""
    draws = torch.rand(len(lengths), total + 1, device=lengths.device)
    places = (lengths - width + 1).clamp(min=0)
    count = (prob * lengths / width + draws[:, 0]).long().clamp(min=least)
    # The places with the largest draws. Ties only make a row differ by a span.
    steps = torch.arange(total, device=lengths.device)
    order = draws[:, 1:].masked_fill(steps >= places[:, None], -1.0)
    rank = order.argsort(dim=1, descending=True).argsort(dim=1)
    begins = (rank < torch.minimum(count, places)[:, None]).long().cumsum(1)
    ended = nn.functional.pad(begins, (width, 0))[:, :total]
    return begins > ended


def _spans(size: Tensor, widest: Tensor, masks: int, total: int) -> Tensor:
    """Union of `masks` random spans inside 0..size of each row: (B,) and (B,) -> (B, total) bool, True = masked."""
    draws = torch.rand(2, len(size), masks, device=size.device)
    width = (draws[0] * (widest[:, None] + 1)).long()
    start = (draws[1] * (size[:, None] - width + 1)).long()
    steps = torch.arange(total, device=size.device)
    return ((steps >= start[..., None]) & (steps < (start + width)[..., None])).any(1)
