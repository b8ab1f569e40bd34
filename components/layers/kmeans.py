"""k-means on frames of features. Letters: P points, K clusters, F features."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(points: Tensor, centroids: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """(P, F), (K, F) -> (P,) int64 index of the nearest centroid by squared distance, and (P,) that distance.

    Exact in float32, in blocks of `chunk` points; ties go to the lower index.
    """
    points, centroids = points.float(), centroids.float()
    squares = centroids.square().sum(1)
    labels, distances = [], []
    for block in points.split(chunk) if len(points) else [points]:
        scores = torch.addmm(squares, block, centroids.T, alpha=-2.0)  # |x|^2 is the same for every centroid
        best = scores.min(1)
        labels.append(best.indices)
        distances.append((best.values + block.square().sum(1)).clamp(min=0))
    return torch.cat(labels), torch.cat(distances)


def plus_plus(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): (P, F) -> (K, F), each drawn by squared distance to those before."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    centroids = [points[first]]
    squares = points.square().sum(1)
    closest = (squares - 2 * points @ centroids[0] + centroids[0].square().sum()).clamp(min=0)
    for _ in range(num_clusters - 1):
        total = closest.double().cumsum(0)
        share = torch.rand(1, generator=generator, dtype=torch.float64).to(total.device)  # the generator is of the CPU
        # Few distinct points: nothing is left to draw by distance, so draw any.
        drawn = (
            torch.searchsorted(total, share * total[-1])
            if float(total[-1]) > 0
            else torch.randint(len(points), (1,), generator=generator)
        )
        centroids.append(points[int(drawn.clamp(max=len(points) - 1))])
        new = squares - 2 * points @ centroids[-1] + centroids[-1].square().sum()
        closest = torch.minimum(closest, new.clamp(min=0))
    return torch.stack(centroids)


def lloyd(points: Tensor, centroids: Tensor, iterations: int, tolerance: float = 1e-4) -> tuple[Tensor, float]:
    """Lloyd's algorithm: (P, F) points, (K, F) start -> (K, F) centroids and the mean squared distance before the last
    move. Empty clusters move to the points that fit worst. Stops once the inertia falls by less than `tolerance` of it.
    """
    inertia = float("inf")
    for _ in range(iterations):
        labels, distances = nearest(points, centroids)
        counts = torch.bincount(labels, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            worst = distances.topk(min(len(empty), len(points))).indices
            centroids[empty[: len(worst)]] = points[worst]
        now = float(distances.mean())
        if not len(empty) and inertia - now <= tolerance * now:
            inertia = now
            break
        inertia = now
    return centroids, inertia


def kmeans(
    points: Tensor, num_clusters: int, seed: int = 0, iterations: int = 30, restarts: int = 2, sample: int = 20000
) -> tuple[Tensor, float]:
    """Fit on (P, F) float32 points -> (K, F) centroids and their mean squared distance.

    The best of `restarts` short runs on `sample` points goes on to Lloyd on all points. The same seed and the same
    points give the same centroids.

    Raises:
        ValueError: fewer points than clusters.
    """
    if len(points) < num_clusters:
        raise ValueError(
            f"k-means with {num_clusters} clusters needs at least as many frames; got {len(points)}: "
            "fit on more audio or ask for fewer units"
        )
    generator = torch.Generator().manual_seed(seed)
    few = points[torch.randperm(len(points), generator=generator)[: max(sample, num_clusters)]]
    starts = [lloyd(few, plus_plus(few, num_clusters, generator), 5) for _ in range(max(restarts, 1))]
    centroids, _ = lloyd(points, min(starts, key=lambda start: start[1])[0], iterations)
    return centroids, float(nearest(points, centroids)[1].mean())
