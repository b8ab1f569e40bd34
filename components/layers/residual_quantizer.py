"""Residual vector quantisation with codebooks that are moving averages.

Letters: P points, K codebooks, V entries of one, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .kmeans import kmeans, nearest

_EPSILON = 1e-5
"""Added to how often an entry is used (Laplace)."""
_ITERATIONS = 20
"""Of k-means."""


class Codebook(nn.Module):
    """Entries, and the moving averages that they follow while they learn.

    Attributes:
        embed: (V, D) the entries.
        embed_avg, cluster_size: (V, D) and (V,) moving averages of the points of each entry, and of how many those are.
        inited: (1,) 1 where the entries were set from data; 0: random ones.
    """

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    inited: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        entries = torch.randn(size, dim) / dim**0.5
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed", entries)
        self.register_buffer("embed_avg", entries.clone())


def _chosen(points: Tensor, entries: Tensor) -> Tensor:
    """(P, D), (V, D) -> (P,) nearest entries. The terms of the squared distance are added in the order of the published
    code: near ties then fall as they do there (`kmeans.nearest`, which leaves the first term out, rounds otherwise)."""
    columns = entries.T
    distances = points.square().sum(1, keepdim=True) - 2 * points @ columns + columns.square().sum(0, keepdim=True)
    return (-distances).max(1).indices


def perplexity(counts: Tensor) -> Tensor:
    """(..., V) how often each entry is chosen -> (...) how many entries in equal use would be as hard to predict; 1
    where nothing was counted."""
    shares = counts.double() / counts.double().sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(-1).exp()


class ResidualQuantizer(nn.Module):
    """Each codebook quantises what those before it left (Zeghidour et al. 2021, arXiv 2107.03312, section III-C)."""

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.books = nn.ModuleList(Codebook(codebook_size, dim) for _ in range(num_codebooks))

    def entries(self, number: int) -> Tensor:
        """(V, D) float32, of one codebook."""
        embed = self.books[number].embed
        assert isinstance(embed, Tensor)
        return embed.float()

    @torch.no_grad()
    def encode(self, points: Tensor, num_codebooks: int) -> Tensor:
        """(P, D) -> (P, K) int64 codes, in float32."""
        residual, codes = points.float(), []
        for number in range(num_codebooks):
            entries = self.entries(number)
            chosen = _chosen(residual, entries)
            residual = residual - entries[chosen]
            codes.append(chosen)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """(P, K) -> (P, D) float32 sums of entries."""
        total = torch.zeros((), device=codes.device)
        for number, chosen in enumerate(codes.unbind(1)):
            total = total + self.entries(number)[chosen]
        return total

    @torch.no_grad()
    def begin(self, points: Tensor, seed: int) -> None:
        """Set all codebooks from (P, D) points: k-means on what the books before leave, one book after the other."""
        generator = torch.Generator().manual_seed(seed)
        residual = points.float()
        for number, book in enumerate(self.books):
            assert isinstance(book, Codebook)
            size = len(book.embed)
            enough = residual
            if len(enough) < size:  # a small first batch: some points twice, a little to the side
                drawn = residual[torch.randint(len(residual), (size - len(residual),), generator=generator)]
                noise = torch.randn(drawn.shape, generator=generator).to(drawn)
                enough = torch.cat([residual, drawn + 0.1 * residual.std(0, unbiased=False) * noise])
            entries, _ = kmeans(enough, size, seed + number, iterations=_ITERATIONS, restarts=1)
            chosen = nearest(residual, entries)[0]
            counts = residual.new_zeros(size).index_add_(0, chosen, torch.ones_like(residual[:, 0]))
            # Each entry starts as if it had been used as it is now, an average one once, and no other less: light, so
            # that those that the first steps leave out start anew soon.
            counts = (counts * (size / len(residual))).clamp(min=1)
            book.embed.copy_(entries)
            book.cluster_size.copy_(counts)
            book.embed_avg.copy_(entries * counts[:, None])
            book.inited.fill_(1)
            residual = residual - entries[chosen]

    def learned_from(self, points: Tensor, chosen: Tensor, number: int) -> dict[str, Tensor]:
        """What a codebook learns of (P, D) points and the (P,) entries that they chose: sums over points."""
        entries = self.entries(number)
        ones = torch.ones_like(points[:, 0])
        off = (points - entries[chosen]).square().sum(1)
        return {
            "counts": torch.zeros_like(entries[:, 0]).index_add_(0, chosen, ones),
            "sums": torch.zeros_like(entries).index_add_(0, chosen, points),
            "errors": torch.zeros_like(entries[:, 0]).index_add_(0, chosen, off),
        }

    @torch.no_grad()
    def advance(self, update: Mapping[str, Tensor], decay: float, dead_share: float, seed: int) -> None:
        """Move the first K codebooks towards the points of a step (van den Oord et al. 2017, arXiv 1711.00937, A.1).

        An entry to which less than `dead_share` of an average one falls starts anew beside an entry that is used, drawn
        by the squared error of its points: where there are too few entries. It takes half of that entry's points or so
        (Linde, Buzo and Gray 1980, "An algorithm for vector quantizer design": splitting), and where it takes none it
        is given up again after ln(2) / (1 - decay) steps.

        Args:
            update: of `learned_from`, a row for each of the K codebooks: (K, V), (K, V, D), (K, V).
            decay: what is kept of the averages.
            dead_share: of the average use of an entry; 0 gives none up.
            seed: of the draws; the same on each process.
        """
        generator = torch.Generator().manual_seed(seed)
        for number, (counts, sums, errors) in enumerate(zip(update["counts"], update["sums"], update["errors"])):
            book = self.books[number]
            assert isinstance(book, Codebook)
            book.cluster_size.lerp_(counts.to(book.cluster_size), 1 - decay)
            book.embed_avg.lerp_(sums.to(book.embed_avg), 1 - decay)
            total = book.cluster_size.sum()
            smooth = (book.cluster_size + _EPSILON) / (total + len(counts) * _EPSILON) * total
            used = book.cluster_size > 0
            book.embed.copy_(torch.where(used[:, None], book.embed_avg / smooth.clamp(min=1e-12)[:, None], book.embed))
            average = total / len(counts)
            dead = (book.cluster_size < dead_share * average).nonzero()[:, 0]
            if not len(dead) or not bool(errors.sum() > 0):
                continue
            beside = torch.multinomial(errors.double().cpu(), len(dead), replacement=True, generator=generator)
            beside = beside.to(dead.device)
            width = book.embed.shape[1]
            spread = (errors[beside] / counts[beside].clamp(min=1) / width).sqrt()
            # As far from the mean of the points as they lie from it along one line. As far as they lie from it in all
            # `width` directions, it would be the nearest to none of them: the mean is nearer to each.
            noise = torch.randn(len(dead), width, generator=generator).to(book.embed) / width**0.5
            book.embed[dead] = sums[beside] / counts[beside].clamp(min=1)[:, None] + spread[:, None] * noise
            size = (
                min(2 * dead_share, 1.0) * average
            )  # long enough to be found, and light: it follows the points that find it
            book.cluster_size[dead] = size
            book.embed_avg[dead] = book.embed[dead] * size
