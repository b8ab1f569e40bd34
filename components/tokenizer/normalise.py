"""Text as transformers' tokenizers prepare it before they look for pieces. It differs from what SentencePiece does with
the same model: white space at the end, control characters, some combining characters.

Letters: none; text in, text out. The word mark is U+2581, SentencePiece's lower one eighth block.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from functools import cache

MARK = "\u2581"
_SMALL = 6  # bytes of a cluster that is looked up as a whole
_SIGNS = re.compile("[\u0600-\u0605\u06dd\u070f]")
_NO_BASE = ("Cc", "Cf", "Zl", "Zp", "Cs")


def seamless_m4t(text: str) -> str:
    """SeamlessM4T: white space to spaces, NFKC, runs of spaces to one word mark, a mark in front of the first word."""
    text = unicodedata.normalize("NFKC", re.sub(r"[\n\r\t]", " ", text)).rstrip(_WHITE)
    text = re.sub(f"^{MARK}+$", "", re.sub(f" +{MARK}", MARK, text))
    return marked(re.sub(" {2,}", MARK, text))


def nllb(text: str, charsmap: Charsmap | None) -> str:
    """NLLB: the model's own character map, runs of spaces to one, a mark in front of the first word. Nothing is
    stripped: a space at the end becomes a piece of its own."""
    if charsmap is not None:
        text = re.sub(" {2,}", " ", charsmap(text))
    return marked(text)


def marked(text: str) -> str:
    """Spaces as word marks, with one in front; nothing stays nothing."""
    text = text.replace(" ", MARK)
    return text if not text or text.startswith(MARK) else MARK + text


# What Rust calls white space; Python's strip takes the separators U+001C to U+001F too.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Charsmap:
    """The character map of a SentencePiece model, applied as the `tokenizers` library does: a cluster (a character and
    what combines with it) of less than six bytes is looked up as a whole, and the *shortest* entry that begins it
    stands for all of it; anything else character by character. SentencePiece itself takes the longest entry, so the
    two differ where two marks stand on one letter.

    Args:
        blob: `precompiled_charsmap`: the size of a double array, the array, replacements that end in a zero byte.
    """

    def __init__(self, blob: bytes) -> None:
        (size,) = struct.unpack_from("<I", blob)
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._texts = blob[4 + size :]
        self._found: dict[str, str | None] = {}
        self._characters = _Characters(self)

    def __call__(self, text: str) -> str:
        if text.isascii() and text.isprintable():
            return text.translate(self._characters)
        pieces, end = [], 0
        for match in _clusters().finditer(text):
            cluster = match.group()
            control = unicodedata.category(cluster[0]) in _NO_BASE and not _SIGNS.match(cluster)
            if control or len(cluster.encode()) >= _SMALL:
                continue
            replacement = self.shortest(cluster)
            if replacement is not None:
                pieces += [text[end : match.start()].translate(self._characters), replacement]
                end = match.end()
        return "".join([*pieces, text[end:].translate(self._characters)])

    def shortest(self, text: str) -> str | None:
        """Replacement of the shortest entry that `text` begins with, or None."""
        if text not in self._found:
            self._found[text] = self._search(text.encode("utf-8", "surrogatepass"))
        return self._found[text]

    def _search(self, key: bytes) -> str | None:
        unit = self._units[0]
        place = _offset(unit)
        for byte in key:
            place ^= byte
            unit = self._units[place]
            if unit & (1 << 31 | 0xFF) != byte:
                return None
            place ^= _offset(unit)
            if unit >> 8 & 1:  # an entry ends here
                start = self._units[place] & ~(1 << 31)
                return self._texts[start : self._texts.index(0, start)].decode()
        return None


class _Characters(dict[int, str]):
    """For `str.translate`, filled as characters are met."""

    def __init__(self, charsmap: Charsmap) -> None:
        super().__init__()
        self._charsmap = charsmap

    def __missing__(self, code: int) -> str:
        found = self._charsmap.shortest(chr(code))
        self[code] = chr(code) if found is None else found
        return self[code]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


@cache
def _clusters() -> re.Pattern[str]:
    """A character with the marks and joiners behind it and the number signs in front of it (Unicode's extended grapheme
    clusters, as far as they fit in less than six bytes), or a line break of two characters."""
    marks = [c for c in range(0x300, 0xE01F0) if unicodedata.category(chr(c)) in ("Mn", "Me", "Mc")]
    ranges = []
    for code in sorted([*marks, 0x200C, 0x200D, 0xFF9E, 0xFF9F, *range(0x1F3FB, 0x1F400)]):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    joined = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return re.compile(f"\r\n|{_SIGNS.pattern}.[{joined}]*|.[{joined}]+", re.DOTALL)
