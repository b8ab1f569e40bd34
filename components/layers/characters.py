"""Tokens to characters: how many each token has, which they are, and states repeated to their rate.

Letters: B batch, S subwords, C characters of a row, W characters of the longest token, D model dim, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..types import Padded
from .runs import expand_runs

_WORD_MARK = "\u2581"
_PUNCTUATION, _OPENS = 1, 2


class CharacterTable:
    """The characters of every token, and how SeamlessM4T v2 shares them out among states.

    A token has as many characters as its piece, the word mark included (arXiv 2312.05187, section 3.3: subword to
    character up-sampling). One exception, as in the published code: the word mark behind punctuation sounds with the
    punctuation. A token of one character that is punctuation takes one more where the next token opens a word (begins
    with the word mark and is longer than that), and that token takes one less.

    It holds tables that come from the tokenizer, so no checkpoint has it; they follow the device of what is asked.

    Args:
        table: (V, W) int64 character ids, 0 beyond the end; a row of zeros has no character (languages, eos, padding).
        pieces: the text of each token with its word mark, "" for specials. None: no token counts as punctuation.
    """

    def __init__(self, table: Tensor, pieces: Sequence[str] | None = None) -> None:
        if pieces is not None and len(pieces) != table.shape[0]:
            raise ValueError(f"{len(pieces)} pieces for the {table.shape[0]} rows of the table: give one each")
        self._ids = table.to(torch.int32)
        self._sizes = (table > 0).sum(1)
        kinds = {piece: _kind(piece) for piece in dict.fromkeys(pieces or ())}  # where all are "", there is one
        self._kinds = torch.tensor([kinds[piece] for piece in pieces or ()], dtype=torch.uint8, device=table.device)

    def __len__(self) -> int:
        return self._ids.shape[0]

    @property
    def width(self) -> int:
        """W."""
        return self._ids.shape[1]

    @property
    def highest(self) -> int:
        """The largest character id."""
        return int(self._ids.max()) if self._ids.numel() else 0

    def counts(self, text: Padded) -> Tensor:
        """(B, S) tokens -> (B, S) int64, how many characters each state stands for; 0 beyond the length."""
        self._move(text.device)
        mask = text.mask
        counts = self._sizes[text.data]
        if len(self._kinds):
            kinds = self._kinds[text.data] * mask
            shift = ((kinds[:, :-1] == _PUNCTUATION) & (kinds[:, 1:] == _OPENS)).long()
            counts[:, :-1] += shift
            counts[:, 1:] -= shift
        return counts.masked_fill(~mask, 0)

    def ids(self, text: Padded, width: int) -> Tensor:
        """(B, S) tokens -> (B, width) int64, the characters of all tokens in order, 0 beyond the last."""
        self._move(text.device)
        found = self._ids[text.data].long().masked_fill(~text.mask[..., None], 0).flatten(1)
        there = found > 0
        # Each character goes where it stands among those of its row; what is none goes behind the end.
        place = (there.cumsum(1) - 1).masked_fill(~there, width)
        return found.new_zeros(len(text), width + 1).scatter_(1, place, found)[:, :width]

    def spell(self, states: Padded, text: Padded) -> tuple[Padded, Padded]:
        """(B, S, D) states and the (B, S) token of each -> (B, C, D) states and (B, C) ids, one for each character."""
        if text.data.is_meta:  # how long the pieces are is data: the shape check takes the longest
            data = states.data.repeat_interleave(self.width, 1)
            return Padded(data, states.lengths * self.width), Padded(
                text.data.repeat_interleave(self.width, 1), text.lengths * self.width
            )
        repeated = expand_runs(states.data, Padded(self.counts(text), text.lengths))
        return repeated, repeated.with_data(self.ids(text, repeated.data.shape[1]))

    def _move(self, device: torch.device) -> None:
        if self._ids.device != device:
            self._ids, self._sizes = self._ids.to(device), self._sizes.to(device)
            self._kinds = self._kinds.to(device)


def require_text(who: str, states: Padded, text: Padded | None) -> Padded:
    """`text`, which must give one token for each state.

    Args:
        who: needs it, for the message.
        states: (B, S, D).
        text: (B, S).

    Raises:
        ValueError: there is none, or another number of them.
    """
    if text is None:
        raise ValueError(f"{who} needs `text`, the token that each state stands for")
    if text.data.shape != states.data.shape[:2]:
        raise ValueError(
            f"text is {tuple(text.data.shape)} but the states are {tuple(states.data.shape[:2])}: "
            "give one token for each state"
        )
    return text


def require_rows(embedding: nn.Embedding, highest: int) -> None:
    """Raises ValueError: the largest character id has no row in the embedding of a text-to-unit model."""
    if highest >= embedding.num_embeddings:
        raise ValueError(
            f"t2u.num_characters={embedding.num_embeddings} but the tokenizer has {highest + 1} characters: "
            "raise t2u.num_characters"
        )


def _kind(piece: str) -> int:
    if len(piece) == 1:
        return 0 if piece == _WORD_MARK or piece.isalpha() or piece.isnumeric() else _PUNCTUATION
    return _OPENS if piece.startswith(_WORD_MARK) else 0
