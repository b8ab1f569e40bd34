"""Sequences of a speech LM as text: `<bos> <lang:src> S_src <trans> <lang:tgt> | S_tgt <eos>`.

Letters: U units, T frames, P tokens before the bar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..joint_vocabulary import Block, JointVocabulary

PIECES = {"S_src": "units", "S_tgt": "units", "A_prompt": "codes", "A_tgt": "codes"}
"""What a template puts in, and the block of its ids: semantic units of source and target, the first codec stream of the
acoustic prompt and of the target."""
_BAR = "|"


@dataclass(frozen=True)
class Segment:
    """Something that is generated.

    Attributes:
        piece: `S_tgt` or `A_tgt`.
        block: the ids that may come out.
        end: id of the token behind it, which ends it.
    """

    piece: str
    block: Block
    end: int


class Template:
    """One sequence.

    Args:
        name: of its task, such as `trans`.
        text: specials (`<trans>`), language tags (`<lang:src>`, `<lang:tgt>`), pieces (`PIECES`) and one bar, between
            spaces. The bar says where the target begins: it is what is learned (`loss_on=target`) and generated. Of
            each piece behind it the token that follows is the end.
        vocabulary: of the model.

    Attributes:
        pieces: those that it puts in, in order.
        segments: those behind the bar.

    Raises:
        UserError: a token that is not there, no bar or two, or a target that does not end.
    """

    def __init__(self, name: str, text: str, vocabulary: JointVocabulary) -> None:
        self.name, self.vocabulary = name, vocabulary
        where = f"task.templates.{name}"
        words = text.split()
        if words.count(_BAR) != 1:
            raise UserError(f"{where}: expected one bar | between what is given and what is learned; got {text!r}")
        self._bar = words.index(_BAR)
        self._words = [word for word in words if word != _BAR]
        self._ids: dict[str, int] = {}
        for word in self._words:
            if word in PIECES:
                if PIECES[word] == "codes" and not vocabulary.codes.size:
                    raise UserError(f"{where}: {word} needs codes, but speech_lm.codebook_size is 0")
            elif word.startswith("<lang:"):
                if word not in ("<lang:src>", "<lang:tgt>"):
                    raise UserError(f"{where}: {word} is no language; write <lang:src> or <lang:tgt>")
            elif word.startswith("<"):
                self._ids[word] = vocabulary.special_id(word, where)
            else:
                raise UserError(f"{where}: there is no piece {word!r}; there are: {', '.join(PIECES)}, and <tokens>")
        self.pieces = tuple(word for word in self._words if word in PIECES)
        self.segments: list[Segment] = []
        behind = self._words[self._bar :]
        if not self._bar or not behind or behind[0] not in PIECES:
            raise UserError(f"{where}: expected tokens before the bar and S_tgt or A_tgt right behind it; got {text!r}")
        for place, word in enumerate(behind):
            if word in PIECES:
                end = behind[place + 1] if place + 1 < len(behind) else None
                if end not in self._ids or word not in ("S_tgt", "A_tgt"):
                    raise UserError(
                        f"{where}: behind the bar stand S_tgt and A_tgt, each with a token that ends it, such as "
                        f"<eos>; got {' '.join(behind)!r}"
                    )
                self.segments.append(Segment(word, vocabulary.blocks[PIECES[word]], self._ids[end]))
            elif not place or behind[place - 1] not in PIECES:
                raise UserError(f"{where}: {word} behind the bar would be generated alone; put it before the bar")

    def pack(self, pieces: Mapping[str, Tensor], src_lang: str, tgt_lang: str, whose: str) -> tuple[Tensor, int]:
        """The whole sequence, and P.

        Args:
            pieces: name -> (U,) units or (T,) codes, 0-based.
            src_lang, tgt_lang: codes of the languages.
            whose: utterance, for messages.

        Raises:
            UserError: a language without a tag, a unit or code that is outside of the vocabulary, or a piece that is
                empty.
        """
        parts = [self._part(word, pieces, src_lang, tgt_lang, whose) for word in self._words]
        return torch.cat(parts), sum(len(part) for part in parts[: self._bar])

    def prompt(
        self, pieces: Mapping[str, Tensor], src_lang: str, tgt_lang: str, whose: str, segment: int = 0
    ) -> Tensor:
        """(P,) what is read before a segment is generated: all that stands before it. Arguments and errors as of
        `pack`."""
        before = self._words[: self._words.index(self.segments[segment].piece, self._bar)]
        return torch.cat([self._part(word, pieces, src_lang, tgt_lang, whose) for word in before])

    def _part(self, word: str, pieces: Mapping[str, Tensor], src_lang: str, tgt_lang: str, whose: str) -> Tensor:
        some = next(iter(pieces.values()))
        if word in PIECES:
            if not len(pieces[word]):
                raise UserError(
                    f"{whose}: {_NAMES[word]} {'is' if word == 'A_prompt' else 'are'} empty, too short for one step; "
                    "leave the utterance out, or give longer speech"
                )
            return self.vocabulary.blocks[PIECES[word]].ids(pieces[word], f"{whose}, {_NAMES[word]}")
        number = self._ids.get(word)
        if number is None:
            number = self.vocabulary.lang_id(src_lang if word == "<lang:src>" else tgt_lang)
        return some.new_full((1,), number, dtype=torch.int64)


_NAMES = {
    "S_src": "units of the source",
    "S_tgt": "units of the target",
    "A_prompt": "the acoustic prompt",
    "A_tgt": "codes of the target",
}

LossOn = Literal["target", "all"]


def label_mask(lengths: Tensor, starts: Tensor, size: int, loss_on: LossOn) -> Tensor:
    """(B, size) bool: which labels count. Label i is token i + 1; `starts` (B,) is P of each row, `lengths` (B,) the
    tokens of each."""
    place = torch.arange(size, device=starts.device)
    mask = place < (lengths.to(starts.device) - 1)[:, None]
    return mask if loss_on == "all" else mask & (place >= (starts - 1)[:, None])
