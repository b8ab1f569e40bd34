"""Text normalisers: applied to both sides before WER and ASR-BLEU, so that only the words count.

A recogniser writes "$9,300", "5:30" or "August 21st" for what a reference spells out, so the English one spells numbers
out. It is voxzoo's own (Whisper's English normaliser goes the other way, from words to digits): the rules are below, in
the order in which they run. Other languages get case folding and punctuation off.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from ...components.errors import UserError
from ...components.languages import is_same

VERSIONS = {"english": 3, "basic": 3}
"""Raised with every change of a result; part of the signature of every normalised score."""


def normalise(text: str, lang: str = "eng") -> str:
    """English rules for English, basic rules for other languages. `lang` as in `components.languages`."""
    return normalise_english(text) if is_same(lang, "eng") else normalise_basic(text, lang)


def signature(lang: str = "eng") -> str:
    rules = "english" if is_same(lang, "eng") else "basic"
    return f"norm:{rules}-{VERSIONS[rules]}"


def normalise_basic(text: str, lang: str | None = None) -> str:
    """Lower case, remarks in brackets off, punctuation and symbols to spaces.

    Unlike Whisper's basic normaliser it keeps combining marks: they are vowels in many scripts of South and South-East
    Asia, and words fall apart without them. Joiners (U+200C, U+200D) are part of a word and stay; other characters that
    only say how to lay out text (soft hyphens, marks of direction) go without cutting it. Turkish and Azerbaijani have
    two letters i, each with its own capital.
    """
    text = unicodedata.normalize("NFKC", text)
    if lang is not None and any(is_same(lang, each) for each in _TWO_I):
        text = text.translate(_DOTTED)
    text = _REMARK.sub(" ", text.casefold())
    return " ".join("".join(map(_kept, text)).split())


def _kept(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf":
        return character if character in "\u200c\u200d" else ""
    return " " if kind[0] in "PSC" else character


_TWO_I = ("tur", "aze")
_DOTTED = str.maketrans({"I": "\u0131", "\u0130": "i"})


def normalise_english(text: str) -> str:
    """Lower case, accents and punctuation off; digits, times, dates, years and amounts of money spelled out.

    Three or more that are said one by one are what they write: "1, 2, 3, 4" and "five zero zero" numbers, "M-P-H" a
    word.

    Raises:
        UserError: there are digits and num2words is not installed.
    """
    text = _plain_letters(text).lower()
    text = _REMARK.sub(" ", text)
    text = _HESITATION.sub(" ", text)
    for pattern, replacement in _ABBREVIATIONS:
        text = pattern.sub(replacement, text)
    text = _LETTERED.sub(_spelled, text)
    text = _DICTATED.sub(_join, text)
    if _DIGIT.search(text):
        for pattern, spell in _SPELL:
            text = pattern.sub(spell, text)
    text = re.sub(r"[^a-z ]", " ", text)
    text = " ".join(text.split())
    for pattern, replacement in _AFTER:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


_REMARK = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
_HESITATION = re.compile(r"\b(?:uh|um|hmm|mm|mhm|uhm|er|erm)\b")
_DIGIT = re.compile(r"\d")

_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "ø": "o", "Ø": "o", "ł": "l", "Ł": "l", "đ": "d", "Đ": "d"}
    | {"ð": "d", "þ": "th", "Þ": "th", "ı": "i", "’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'", "−": "-", "–": "-"}
    | {"—": " - ", "…": " ", "\u00a0": " ", "\u202f": " ", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "º": "", "ª": ""}
)


def _plain_letters(text: str) -> str:
    """Accents and marks of layout (soft hyphens) off, letters that do not decompose by hand, superscripts and
    full-width forms to plain ones."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    kept = (c for c in decomposed if not unicodedata.combining(c))
    return "".join(c for c in kept if unicodedata.category(c) != "Cf")


_ABBREVIATIONS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\b([ap])\.\s?m\b\.?", r"\1m"),
        (r"\bmr\b\.?", "mister"),
        (r"\bmrs\b\.?", "missus"),
        (r"\bms\b\.?", "miss"),
        (r"\bdr\b\.?(?=\s[a-z])", "doctor"),
        (r"\bprof\.", "professor"),
        (r"\bst\.(?=\s[a-z])", "saint"),
        (r"\bvs\b\.?", "versus"),
        (r"\bu\.\s?s\.\s?a\b\.?", "usa"),
        (r"\bu\.\s?s\.", "us"),
        (r"\bu\.\s?k\b\.?", "uk"),
        # Contractions, apart from the possessive, which keeps its s.
        (r"\bwon't\b", "will not"),
        (r"\bcan't\b", "can not"),
        (r"\bcannot\b", "can not"),
        (r"\bshan't\b", "shall not"),
        (r"\blet's\b", "let us"),
        (r"n't\b", " not"),
        (r"'re\b", " are"),
        (r"'ll\b", " will"),
        (r"'ve\b", " have"),
        (r"\bi'm\b", "i am"),
        (r"\b(it|he|she|that|there|what|who|where|here|how|when)'s\b", r"\1 is"),
        (r"\b(i|you|he|she|it|we|they)'d\b", r"\1 would"),
        (r"\bo'clock\b", "oclock"),
        (r"(?<=[a-z])'(?=[a-z]|\s|$)", ""),
        (r"%|\bper cent\b", " percent "),
        (r"&", " and "),
        (r"(?<=\d)\s?°\s?c\b", " degrees celsius"),
        (r"(?<=\d)\s?°\s?f\b", " degrees fahrenheit"),
        (r"(?<=\d)\s?°", " degrees "),
        (r"(?<=\d)\s?km/h\b", " kilometers per hour"),
        (r"(?<=\d)\s?km\b", " kilometers"),
        (r"(?<=\d)\s?kg\b", " kilograms"),
        (r"(?<=\d)\s?cm\b", " centimeters"),
        (r"(?<=\d)\s?mm\b", " millimeters"),
    ]
]


@cache
def _num2words() -> Callable[..., str]:
    try:
        from num2words import num2words
    except ImportError as error:
        raise UserError(
            "the English normaliser spells numbers out with the package num2words, which is not installed: "
            "pip install voxzoo[eval]"
        ) from error
    return num2words


def _words(number: int, form: str = "cardinal") -> str:
    """Words without commas, hyphens and "and" (that one goes later, when the neighbours are words too)."""
    return " " + _num2words()(number, to=form).replace(",", "").replace("-", " ") + " "


def _digits(text: str) -> str:
    return "".join(_words(int(digit)) for digit in text)


def _integer(text: str) -> str:
    """Digits (with or without thousands commas) as a cardinal; telephone-like strings digit by digit."""
    plain = text.replace(",", "")
    if len(plain) > 15 or (len(plain) > 1 and plain[0] == "0") or (len(plain) >= 9 and "," not in text):
        return _digits(plain)
    return _words(int(plain))


def _decimal(text: str) -> str:
    whole, _, fraction = text.partition(".")
    spoken = _integer(whole or "0")
    return f"{spoken} point {_digits(fraction)}" if fraction else spoken


def _clock(hour: str, minute: str) -> str:
    """5, 05 -> five oh five; full hours are the hour alone, as "o'clock" is dropped on both sides."""
    spoken = _words(int(hour))
    if int(minute) == 0:
        return spoken
    return f"{spoken} {'oh' if int(minute) < 10 else ''} {_words(int(minute))}"


def _year(number: int) -> str:
    return _words(number, "year")


def _plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "es" if word.endswith("x") else word + "s"


_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "jan",
    "feb",
    "mar",
    "apr",
    "jun",
    "jul",
    "aug",
    "sep",
    "sept",
    "oct",
    "nov",
    "dec",
]
_MONTH = rf"(?:{'|'.join(_MONTHS)})\b\.?"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])"
_HOUR = r"(?:2[0-4]|1\d|0?\d)"
_MINUTE = r"[0-5]\d"
_NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"
_SCALE = r"hundred|thousand|million|billion|trillion"
_COINS = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
_COIN = "[" + "".join(_COINS) + "]"
_CODES = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹"}
# Words after which bare digits are a time of day, and those after a number that make it an amount after all.
_AT = r"(?:at|until|till|by|before|after|around|about|from|past|since)"
_COUNTED = (
    r"(?!\s*(?:,\d|\.\d|%|percent|degrees|" + _SCALE + r"|people|persons|men|women|children|students|times|things|"
    r"dollars?|euros?|pounds?|cents?|yen|meters?|metres?|kilomet(?:er|re)s?|miles?|feet|foot|grams?|kilograms?|years?|"
    r"months?|weeks?|days?|hours?|minutes?|seconds?)\b)"
)
# Whole numbers only: not a part of a longer number, of a decimal or of a word.
_L = r"(?<![\d.,:/a-z])"
_R = r"(?![\d:/]|[.,]\d)"


_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_CARDINAL = "|".join([*_UNITS, *_TEENS, *_TENS])
_DIGITS = {word: str(digit) for digit, word in enumerate(_UNITS)}
_ONE = rf"(?:\d|{'|'.join(_DIGITS)})"
_LONGEST_ACRONYM = 7  # more letters are no word: a recogniser that loses its way says "a a a a"
_LETTERED = re.compile(
    r"(?<![\w'.-])[a-z](?P<between>\.\s|[.\s-])[a-z](?:(?P=between)[a-z])+\b(?:\.(?=\s|$))?(?![\w'-])"
)
# Not those behind a decimal point, which are always said one by one.
_DICTATED = re.compile(
    rf"(?P<point>\bpoint\s+)?(?<![\w.,:/-])(?P<run>{_ONE}(?:(?:\s*[,-]\s*|\s+){_ONE}){{2,}})(?![\w:/-]|[.,]\d)"
)
_ORDINAL = {
    **dict(
        zip(
            _UNITS[1:],
            ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"],
            strict=True,
        )
    ),
    **dict(
        zip(
            _TEENS,
            [
                "tenth",
                "eleventh",
                "twelfth",
                "thirteenth",
                "fourteenth",
                "fifteenth",
                "sixteenth",
                "seventeenth",
                "eighteenth",
                "nineteenth",
            ],
            strict=True,
        )
    ),
    "twenty": "twentieth",
    "thirty": "thirtieth",
}
_FULL_MONTHS = "|".join(month for month in _MONTHS[:12] if month not in ("march", "may"))
_ORDINALS = "|".join([*_ORDINAL.values(), "fortieth", "fiftieth", "hundredth", "thousandth"])
_COIN_WORDS = "dollars?|euros?|pounds?"


def _spell_money(match: re.Match[str]) -> str:
    groups = match.groupdict()
    sign = groups.get("sign") or _CODES[groups["code"]]
    one, many, small, smalls = _COINS[sign]
    amount, scale = match["amount"], match["scale"]
    whole, _, fraction = amount.partition(".")
    if scale:
        return f"{_decimal(amount)} {scale} {many} "
    if len(fraction) == 2 and small:
        pence = int(fraction)
        units = f"{_integer(whole)} {one if whole == '1' else many}"
        rest = f"{_words(pence)} {small if pence == 1 else smalls}"
        return f" {units} {rest} " if pence and int(whole.replace(",", "")) else f" {rest if pence else units} "
    return f"{_decimal(amount)} {one if amount == '1' else many} "


def _spell_date(match: re.Match[str]) -> str:
    return f" {match['month']} {_words(int(match['day']), 'ordinal')} "


def _spell_date_day_first(match: re.Match[str]) -> str:
    return f" {_words(int(match['day']), 'ordinal')} {match['month']} "


def _spell_fraction(match: re.Match[str]) -> str:
    over, under = int(match[1]), int(match[2])
    names = {2: "half", 3: "third", 4: "quarter"}
    if over == 0 or over >= under or under not in names:
        return f"{_words(over)} {_words(under)}"
    name = names[under]
    return f"{_words(over)} {name if over == 1 else _plural(name)} "


def _spell_year(match: re.Match[str]) -> str:
    number = int(match[2])
    # "in 1200 books" counts, "in 1200" dates.
    if number % 100 == 0 and number != 2000 and re.match(r"\s[a-z]+s\b", match.string[match.end() :]):
        return match[0]
    return f"{match[1]} {_year(number)}"


def _spell_range(match: re.Match[str]) -> str:
    """10-15 is "ten to fifteen"; anything that does not rise is no range."""
    rises = int(match[1]) < int(match[2]) and not (len(match[1]) == 3 and len(match[2]) == 4)
    return f"{match[1]} {'to' if rises else ''} {match[2]}"


def _spell_decade(match: re.Match[str]) -> str:
    number = int(match[1])
    spoken = (_year(number) if number >= 1000 else _words(number)).rstrip()
    return f"{spoken[: -len(spoken.split()[-1])]}{_plural(spoken.split()[-1])} "


def _spelled(match: re.Match[str]) -> str:
    letters = re.sub(r"[^a-z]", "", match[0])
    return letters if len(letters) <= _LONGEST_ACRONYM else match[0]


def _join(match: re.Match[str]) -> str:
    found: list[str] = re.findall(_ONE, match["run"])
    return match[0] if match["point"] else "".join(_DIGITS.get(one, one) for one in found)


_SPELL: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), spell)
    for pattern, spell in [
        # Money: $9,300  $1.5 million  3.50 eur  45€
        (rf"(?P<sign>{_COIN})\s?(?P<amount>(?:{_NUMBER})(?:\.\d+)?)(?:\s?(?P<scale>{_SCALE})\b)?", _spell_money),
        (rf"{_L}(?P<amount>(?:{_NUMBER})(?:\.\d+)?)(?:\s?(?P<scale>{_SCALE})\b)?\s?(?P<sign>{_COIN})", _spell_money),
        (rf"{_L}(?P<amount>(?:{_NUMBER})(?:\.\d+)?)(?P<scale>\b)?\s?(?P<code>{'|'.join(_CODES)})\b", _spell_money),
        # Times: 5:30  17:05:10  10.15 am  at 10.15  at 1225  at 220  0830 hours
        (rf"{_L}({_HOUR}):({_MINUTE}):({_MINUTE}){_R}", lambda m: _clock(m[1], m[2]) + _words(int(m[3]))),
        (rf"{_L}({_HOUR}):({_MINUTE}){_R}", lambda m: _clock(m[1], m[2])),
        (rf"{_L}({_HOUR})\.?({_MINUTE})\s?([ap]m\b|oclock\b)", lambda m: f"{_clock(m[1], m[2])} {m[3]}"),
        (rf"{_L}(0\d|1\d|2[0-3])({_MINUTE})(?=\s(?:hours|hrs)\b)", lambda m: _clock(m[1], m[2])),
        (rf"\b({_AT})\s+({_HOUR})\.({_MINUTE}){_COUNTED}{_R}", lambda m: f"{m[1]} {_clock(m[2], m[3])}"),
        (rf"\b(at)\s+(0?[1-9]|1\d|2[0-3])(?!00)({_MINUTE}){_COUNTED}{_R}", lambda m: f"{m[1]} {_clock(m[2], m[3])}"),
        (rf"{_L}(\d{{1,2}})\s?([ap]m)\b", lambda m: f"{_words(int(m[1]))} {m[2]}"),
        # Ordinals and dates: 21st  August 15  15 August  July 4, 1776
        (rf"{_L}({_NUMBER})\s?(?:st|nd|rd|th)\b", lambda m: _words(int(m[1].replace(",", "")), "ordinal")),
        (rf"\b(?P<month>{_MONTH})\s+(?:the\s+)?(?P<day>{_DAY})\b{_COUNTED}{_R}", _spell_date),
        (rf"{_L}(?P<day>{_DAY})\s+(?:of\s+)?(?P<month>{_MONTH})", _spell_date_day_first),
        # Decades and years: 1990s  in 1995  March 2021
        (r"(?<![\d.,:/a-z])'?(\d{2}0|\d0|1[1-9]\d0|20\d0)s\b", _spell_decade),
        (
            rf"\b(in|since|of|year|until|till|by|before|after|during|from|to|around|circa|early|late|mid|{_MONTH}|"
            rf"(?:{_ORDINALS})\s*,?)\s+(1[1-9]\d\d|20\d\d)\b{_COUNTED}{_R}",
            _spell_year,
        ),
        # What is left: fractions, signed and decimal numbers, ranges, numbers glued to letters.
        (rf"{_L}(\d+)\s1/2{_R}", lambda m: f"{m[1]}.5"),
        (rf"{_L}(\d)/(\d){_R}", _spell_fraction),
        (r"(?<![\d.,-])(\d{1,4})\s?-\s?(\d{1,4})(?![\d-])", _spell_range),
        (r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.])", lambda m: _integer(m[0].replace(".", ","))),
        (r"(?:(?<=\s)|^)-(?=\d)", lambda m: " minus "),
        (r"\+(?=\s?\d)", lambda m: " plus "),
        (r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?\.\d+|\d{1,3}(?:,\d{3})+(?!\d)|\d+", lambda m: _decimal(m[0])),
    ]
]

_AFTER: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\bpounds sterling\b", "pounds"),
        (r"\bo ?clock\b", ""),
        (rf"\b({_CARDINAL}) o (?=(?:{'|'.join(_UNITS)})\b)", r"\1 oh "),
        (r"\b([ap]) m\b", r"\1m"),
        # "a hundred" is what people say for "one hundred", and digits cannot tell them apart.
        (r"\ba (?=(?:hundred|thousand|million|billion)\b)", "one "),
        (r"\b(\w+) and a half\b", lambda m: f"{m[1]} point five" if m[1] in _UNITS + _TEENS + _TENS else m[0]),
        # "and" inside numbers and amounts: two hundred and five, ten dollars and five cents.
        (rf"\b({_SCALE}|{_COIN_WORDS}) and (?=(?:{_CARDINAL}|{_ORDINALS}|one|a)\b)", r"\1 "),
        # "the fifteenth of august", "august the fifteenth": digits show neither the article nor the "of".
        (rf"\b({_FULL_MONTHS}|march|may) the (?=(?:(?:twenty|thirty) )?(?:{_ORDINALS})\b)", r"\1 "),
        (
            rf"\b(?:the )?((?:(?:twenty|thirty) )?(?:{_ORDINALS})) (?:of )?(?=(?:{_FULL_MONTHS}|march|may)\b)",
            r"\1 ",
        ),
        # "august fifteen" and "august fifteenth" are both written "August 15".
        (
            rf"\b({_FULL_MONTHS}) (?:the )?(twenty |thirty )?({'|'.join(_ORDINAL)})\b"
            rf"(?! (?:{_SCALE}|{_CARDINAL}|{_ORDINALS})\b)",
            lambda m: _ordinal_day(m),
        ),
    ]
]


def _ordinal_day(match: re.Match[str]) -> str:
    month, tens, last = match[1], match[2] or "", match[3]
    if tens and last not in _UNITS:
        return match[0]
    return f"{month} {tens}{_ORDINAL[last]}"
