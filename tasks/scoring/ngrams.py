"""How many n-grams two texts share, for many pairs of texts at once.

A Counter for each sentence and order costs ten times what a sort of numbers does, and that of BLEU and chrF is most of
what scoring a corpus costs. The counts are exact.

Letters: S sentence pairs, T tokens of all texts together, O orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_LARGEST = 2**62
SLICE_CHARACTERS = 2**17
"""Characters that are counted at once: all that counting holds is some arrays of 8 bytes for each."""


class Pairs(NamedTuple):
    """Tokens of sentence pairs, end to end: those of all hypotheses, then those of all references.

    Attributes:
        tokens: (T,) numbers of at least 0; equal tokens have equal numbers.
        lengths: (2, S) number of tokens of each hypothesis and each reference.
    """

    tokens: np.ndarray
    lengths: np.ndarray


def pair_words(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Pairs:
    """S lists of words on each side."""
    numbers: dict[str, int] = {}
    texts = [*hypotheses, *references]
    tokens = [numbers.setdefault(word, len(numbers)) for text in texts for word in text]
    return _pairs(np.asarray(tokens, dtype=np.int64), texts)


def pair_characters(hypotheses: Sequence[str], references: Sequence[str]) -> Pairs:
    """S texts on each side; tokens are code points."""
    texts = [*hypotheses, *references]
    # A hypothesis may hold half a surrogate pair, where a byte-level vocabulary was cut.
    tokens = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    # From code points to 0, 1, 2 ..., so that six of them fit in one number.
    known = np.zeros(int(tokens.max(initial=0)) + 1, dtype=bool)
    known[tokens] = True
    return _pairs((np.cumsum(known) - 1)[tokens], texts)


def _pairs(tokens: np.ndarray, texts: Sequence[Sequence[str]]) -> Pairs:
    return Pairs(tokens, np.fromiter(map(len, texts), np.int64, len(texts)).reshape(2, -1))


def slices(sizes: np.ndarray) -> Iterator[slice]:
    """Runs of (N,) sizes that add up to at most `SLICE_CHARACTERS`, or a single one that is larger."""
    ends = np.cumsum(sizes)
    start, done = 0, 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, done + SLICE_CHARACTERS, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def count_ngrams(lengths: np.ndarray, orders: int) -> np.ndarray:
    """(S,) numbers of tokens -> (S, O) numbers of n-grams of order 1, 2 ... O."""
    return np.maximum(lengths[:, None] - np.arange(orders), 0)


def count_matches(pairs: Pairs, orders: int) -> np.ndarray:
    """(S, O) n-grams of each order that both sides have, each as often as the side with fewer has it."""
    tokens, (hypotheses, references) = pairs
    num_pairs = len(hypotheses)
    lengths = np.concatenate([hypotheses, references])
    rest = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))  # tokens from here to the end of the text
    is_reference = np.arange(len(tokens)) >= hypotheses.sum()
    # An n-gram as one number: its sentence, then its tokens as digits. `span` is above all of them.
    grams = np.repeat(np.tile(np.arange(num_pairs), 2), lengths)
    base, span = int(tokens.max(initial=0)) + 1, num_pairs
    counts = (count_ngrams(hypotheses, orders), count_ngrams(references, orders))
    matches = np.zeros((num_pairs, orders), dtype=np.int64)
    places = np.arange(len(tokens))
    for order in range(1, orders + 1):
        longer = rest[places] >= order
        places, grams = places[longer], grams[longer]
        if 2 * span * base >= _LARGEST:
            # Counted anew in their order, the numbers are no more than the n-grams there are.
            found, grams = np.unique(grams, return_inverse=True)
            span = len(found)
        grams = grams * base + tokens[places + order - 1]
        span *= base
        ordered = np.sort(2 * grams + is_reference[places])
        kinds = ordered >> 1
        starts = np.flatnonzero(np.diff(kinds, prepend=-1))
        ends = np.append(starts, len(ordered))[1:]
        of_reference = np.append(0, np.cumsum(ordered & 1))
        in_references = of_reference[ends] - of_reference[starts]
        in_both = np.append(0, np.cumsum(np.minimum(ends - starts - in_references, in_references)))
        # Sentences come in order, each with its n-grams of both sides.
        bounds = np.append(0, np.cumsum(counts[0][:, order - 1] + counts[1][:, order - 1]))
        matches[:, order - 1] = np.diff(in_both[np.searchsorted(starts, bounds)])
    return matches
