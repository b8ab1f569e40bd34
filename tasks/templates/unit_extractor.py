"""A unit extractor. Letters: B batch, N samples, U units, F features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from voxzoo.components.layers.kmeans import kmeans, nearest
from voxzoo.components.roles import UnitExtractor
from voxzoo.components.types import Padded


class MineUnits(UnitExtractor):
    """Clusters of the log power of short stretches of speech, in bands of equal width.

    Args:
        num_units: clusters.
        num_bands: F.
        hop_length: samples of a unit.
        sample_rate: Hz of the speech.
        max_frames: `fit` looks at so many stretches.
    """

    centroids: Tensor
    fitted: Tensor

    def __init__(
        self,
        num_units: int = 64,
        num_bands: int = 20,
        hop_length: int = 320,
        sample_rate: int = 16000,
        max_frames: int = 50000,
    ) -> None:
        super().__init__()
        self.num_units, self.num_bands, self.hop_length = num_units, num_bands, hop_length
        self.sample_rate, self.max_frames = sample_rate, max_frames
        self.frame_rate = sample_rate / hop_length
        self.register_buffer("centroids", torch.zeros(num_units, num_bands))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 samples -> (B,) int64 units: every started stretch is one."""
        return torch.div(lengths + self.hop_length - 1, self.hop_length, rounding_mode="floor")

    @torch.no_grad()
    def features(self, speech: Padded) -> Padded:
        """(B, N) samples -> (B, U, F) features that are clustered."""
        samples = F.pad(speech.zeroed().data.float(), (0, -speech.data.shape[1] % self.hop_length))
        power = torch.fft.rfft(samples.unflatten(1, (-1, self.hop_length))).abs().square()  # (B, U, bins)
        bands = F.adaptive_avg_pool1d(power, self.num_bands)
        return Padded((bands + 1e-5).log(), self.output_lengths(speech.lengths))

    @torch.no_grad()
    def fit(self, batches: Iterable[Padded], seed: int = 0) -> dict[str, float]:
        """Fit the centroids on batches of (B, N) samples; return statistics."""
        kept: list[Tensor] = []
        for batch in batches:
            kept.extend(self.features(batch).unpad())
            if sum(map(len, kept)) >= self.max_frames:
                break
        points = torch.cat(kept)[: self.max_frames] if kept else torch.zeros(0, self.num_bands)
        centroids, inertia = kmeans(points, self.num_units, seed)
        self.centroids.copy_(centroids)
        self.fitted.fill_(True)
        used = nearest(points, self.centroids)[0].unique()
        return {"inertia": inertia, "frames": float(len(points)), "used_clusters": float(len(used))}

    @torch.no_grad()
    def forward(self, speech: Padded) -> Padded:
        """(B, N) samples -> (B, U) int64 units, one per stretch."""
        if not speech.data.is_meta and not bool(self.fitted):
            raise RuntimeError("MineUnits has no centroids yet: fit it, or load a state_dict of a fitted one")
        features = self.features(speech)
        labels, _ = nearest(features.data.flatten(0, 1), self.centroids)
        return features.with_data(labels.view(features.data.shape[:2])).zeroed()
