"""Whether the codebooks of a codec stay in use while it trains. Letters: K codebooks, V entries of one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..components.layers.residual_quantizer import perplexity

_POINTS = 8
"""For each entry, before a book is judged: with fewer, entries that are in use may not have come up."""
_COLLAPSED, _RECOVERED = 0.1, 0.3
"""Of the entries, by perplexity."""


class CodebookUse:
    """Counts which entries the frames of training choose, and says where a book collapsed.

    Attributes:
        metrics: `codes_in_use/1` (share of the entries that occurred) and `perplexity/1` (of their frequencies: that of
            V entries in equal use is V) of each codebook, as it was judged last.
    """

    def __init__(self, num_codebooks: int, size: int) -> None:
        self.size = size
        self.counts = torch.zeros(num_codebooks, size)
        self.metrics: dict[str, float] = {}
        self._perplexities: dict[int, float] = {}
        self._shares: dict[int, float] = {}
        self._collapsed: set[int] = set()

    def add(self, counts: Tensor) -> None:
        """(k, V) how many frames chose each entry of the first k books, in a step."""
        self.counts[: len(counts)] += counts.detach().to("cpu", torch.float32)

    def judge(self) -> str | None:
        """Update `metrics` by what was counted since; a line of the books that collapsed since, without advice."""
        ready = self.counts.sum(1) >= _POINTS * self.size
        for book in ready.nonzero()[:, 0].tolist():
            self._perplexities[book] = float(perplexity(self.counts[book]))
            self._shares[book] = float((self.counts[book] > 0).float().mean())
            self.counts[book] = 0
        for name, values in (("codes_in_use", self._shares), ("perplexity", self._perplexities)):
            self.metrics |= {f"{name}/{book + 1}": value for book, value in sorted(values.items())}
        self._collapsed -= {book for book, value in self._perplexities.items() if value > _RECOVERED * self.size}
        fallen = [book for book, value in self._perplexities.items() if value < _COLLAPSED * self.size]
        new = sorted(set(fallen) - self._collapsed)
        self._collapsed.update(new)
        if not new:
            return None
        numbers = ", ".join(str(book + 1) for book in new)
        used = ", ".join(str(round(self._shares[book] * self.size)) for book in new)
        spread = ", ".join(f"{self._perplexities[book]:.1f}" for book in new)
        return (
            f"codebook {numbers} collapsed: {used} of {self.size} entries in use, perplexity {spread} "
            f"(above {_RECOVERED * self.size:.0f} is sound)"
        )

    @property
    def line(self) -> str:
        """For the progress line: `codes 98 97 % perplexity 201 190`; empty before the first books were judged."""
        if not self._shares:
            return ""
        shares = " ".join(f"{100 * share:.0f}" for _, share in sorted(self._shares.items()))
        return f"codes {shares} %  perplexity " + " ".join(
            f"{one:.0f}" for _, one in sorted(self._perplexities.items())
        )
