"""Digits in words for languages other than English: a recogniser writes "19 de agosto" for what a reference spells out.

Whole numbers, times of day and euros; no gender and no ordinals, which the digits do not say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from ...components.errors import UserError
from ...components.languages import is_same


@dataclass(frozen=True)
class _Way:
    """How a language says numbers.

    Attributes:
        code: of num2words.
        hours: what stands between hours and minutes.
        euros: several of them.
    """

    code: str
    hours: str
    euros: str


_WAYS = {
    "spa": _Way("es", "y", "euros"),
    "fra": _Way("fr", "heures", "euros"),
    "ita": _Way("it", "e", "euro"),
    "por": _Way("pt", "e", "euros"),
    "deu": _Way("de", "uhr", "euro"),
}
_DIGIT = re.compile(r"\d")
_TIME = re.compile(r"(?<![\d.,:])(2[0-4]|1\d|0?\d)[:.h]([0-5]\d)(?![\d:%]|[.,]\d)(\s?[Uu]hr\b)?")
_EUROS = re.compile(r"€\s?(\d[\d.,\s]*\d|\d)|(\d)\s?€")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[.\u00a0\u202f]\d{3})+(?![\d.,]\d)")
_NUMBER = re.compile(r"\d{1,15}")


def speaks_numbers(lang: str) -> bool:
    """Whether `spelled` knows how a language says numbers."""
    return _way(lang) is not None


def spelled(text: str, lang: str) -> str:
    """Text with its digits in words.

    Raises:
        UserError: there are digits and num2words is not installed.
    """
    way = _way(lang)
    if way is None or not _DIGIT.search(text):
        return text
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = _TIME.sub(partial(_time, way=way), text)
    text = _EUROS.sub(lambda match: f"{match[1] or match[2]} {way.euros} ", text)
    return _NUMBER.sub(lambda match: f" {_num2words()(int(match[0]), lang=way.code)} ", text)


def _time(match: re.Match[str], way: _Way) -> str:
    hour, minute, after = match.groups(default="")
    return f"{hour} {way.hours} {minute}" if int(minute) else hour + after


@cache
def _way(lang: str) -> _Way | None:
    return next((way for code, way in _WAYS.items() if is_same(lang, code)), None)


@cache
def _num2words() -> Callable[..., str]:
    try:
        from num2words import num2words
    except ImportError as error:
        raise UserError(
            "normalisers spell numbers out with the package num2words, which is not installed: pip install voxzoo[eval]"
        ) from error
    return num2words
