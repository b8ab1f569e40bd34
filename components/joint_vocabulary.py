"""One vocabulary for units and codes: what each id of a speech LM is.

Letters: U units, T frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from .cards import Card
from .errors import UserError, few
from .languages import match

PAD, BOS, EOS = range(3)
SPECIALS = ("<pad>", "<bos>", "<eos>")
"""First in each joint vocabulary."""


@dataclass(frozen=True)
class Block:
    """Ids that stand together.

    Attributes:
        name: `special`, `language`, `units` or `codes`.
        start: the first id.
        size: how many.
    """

    name: str
    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size

    def ids(self, values: Tensor, whose: str) -> Tensor:
        """Units or codes, 0-based, as ids. Nothing is looked at on the meta device.

        Args:
            values: int64, any shape.
            whose: what they are, for the message.

        Raises:
            UserError: a value that this block does not have.
        """
        if values.numel() and not values.is_meta:
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self.size:
                wrong = low if low < 0 else high
                raise UserError(
                    f"{whose}: {self.name} {wrong} is outside of the vocabulary, which has {self.size} (0 to "
                    f"{self.size - 1}); they are of another extractor or codec: prepare them again"
                )
        return values + self.start


class JointVocabulary:
    """Specials, one tag for each language, semantic units, codes of one codec stream, in this order.

    Ids follow from the arguments alone: further specials and languages are sorted, so that no order of keys or of a
    list in a YAML file changes an id.

    Args:
        num_units: semantic units.
        codebook_size: codes of a stream; 0 for none.
        languages: codes of the languages.
        specials: further specials, such as `<trans>`.

    Attributes:
        blocks: name -> block.
        size: V.
        languages, specials: in the order of their ids; specials with `<pad>`, `<bos>` and `<eos>` before them.

    Raises:
        UserError: no unit, no language, or a name that stands for two things.
    """

    def __init__(
        self,
        num_units: int,
        codebook_size: int,
        languages: Iterable[str],
        specials: Iterable[str] = ("<trans>", "<gen>"),
    ) -> None:
        languages, specials = list(languages), list(specials)
        twice = next((name for names in (languages, specials) for name in names if names.count(name) > 1), None)
        if twice is not None or set(specials) & set(SPECIALS):
            name = twice if twice is not None else next(name for name in specials if name in SPECIALS)
            raise UserError(f"joint vocabulary: {name!r} is named twice; each token has one id")
        if num_units < 1 or codebook_size < 0:
            raise UserError(
                f"joint vocabulary: num_units must be at least 1 and codebook_size at least 0; got {num_units} and "
                f"{codebook_size}"
            )
        if not languages:
            raise UserError(
                "joint vocabulary: no language; name those of the data, such as speech_lm.languages=[eng,spa]"
            )
        bare = [name for name in specials if not (name.startswith("<") and name.endswith(">"))]
        if bare:
            raise UserError(f"joint vocabulary: specials are written as <name>; got {few(bare)}")
        self.specials = (*SPECIALS, *sorted(specials))
        self.languages: tuple[str, ...] = tuple(sorted(languages))
        sizes = (len(self.specials), len(self.languages), num_units, codebook_size)
        self.blocks: dict[str, Block] = {}
        self.size = 0
        for name, size in zip(("special", "language", "units", "codes"), sizes, strict=True):
            self.blocks[name] = Block(name, self.size, size)
            self.size += size

    @property
    def units(self) -> Block:
        return self.blocks["units"]

    @property
    def codes(self) -> Block:
        return self.blocks["codes"]

    def special_id(self, name: str, where: str) -> int:
        """Id of a special. Raises UserError, which `where` begins, naming those there are."""
        if name not in self.specials:
            raise UserError(f"{where}: there is no token {name}; there are: {', '.join(self.specials)}")
        return self.specials.index(name)

    def lang_id(self, lang: str) -> int:
        """Id of a language's tag, however its code is written (`es`, `spa`). Raises UserError naming what there is."""
        found = self.find(lang)
        if found is None:
            raise UserError(f"the speech LM has no tag for the language {lang!r}; it has: {', '.join(self.languages)}")
        return self.blocks["language"].start + self.languages.index(found)

    def find(self, lang: str) -> str | None:
        """The language of the vocabulary that a code means; None where it has no tag."""
        return match(lang, self.languages)

    def outside(self, *allowed: int | Block) -> tuple[int, ...]:
        """All ids but these: what `SearchOptions.suppress` takes so that nothing else comes out."""
        kept: set[int] = set()
        for one in allowed:
            kept |= set(range(one.start, one.stop)) if isinstance(one, Block) else {one}
        return tuple(number for number in range(self.size) if number not in kept)

    def card(self, units: Card | None = None, codec: Card | None = None) -> Card:
        """What the ids are: blocks with their offsets, specials and languages in order, what made units and codes."""
        return Card(
            "vocabulary",
            {
                "size": self.size,
                "specials": self.specials,
                "languages": self.languages,
                "blocks": {block.name: {"start": block.start, "size": block.size} for block in self.blocks.values()},
                "units": units,
                "codec": codec,
            },
        )

    def name(self, number: int) -> str:
        """What an id is, for messages and tables: `<trans>`, `<eng>`, `unit 7`, `code 12`."""
        for block in self.blocks.values():
            if block.start <= number < block.stop:
                place = number - block.start
                if block.name == "special":
                    return self.specials[place]
                if block.name == "language":
                    return f"<{self.languages[place]}>"
                return f"{block.name.removesuffix('s')} {place}"
        raise UserError(f"id {number} is outside of the joint vocabulary of {self.size}")
