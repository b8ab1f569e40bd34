"""Which language a code means: the one place that knows. Manifests, tokenizers, scores and recognisers ask it.

ISO 639-1 (`zh`), 639-2 (`chi`) and 639-3 (`cmn`), BCP 47 (`zh-TW`), codes with a script as NLLB writes them
(`zho_Hant`), Whisper's codes and English names (`jw`, `chinese`). In voxzoo a language has a code of three letters,
with a script where one was said: `eng`, `cmn_Hant`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

# What CLDR does not call one language of its macrolanguage, but published vocabularies and test sets do.
_MACRO = {"quy": "que", "pbt": "pus", "zlm": "msa", "nob": "nor"}

# Names in English, as Whisper takes them; the rest of its table follows from the codes.
_NAMES = """
english:eng chinese:zho mandarin:cmn cantonese:yue german:deu spanish:spa castilian:spa russian:rus korean:kor
french:fra japanese:jpn portuguese:por turkish:tur polish:pol catalan:cat valencian:cat dutch:nld flemish:nld
arabic:ara swedish:swe italian:ita indonesian:ind hindi:hin finnish:fin vietnamese:vie hebrew:heb ukrainian:ukr
greek:ell malay:msa czech:ces romanian:ron moldovan:ron danish:dan hungarian:hun tamil:tam norwegian:nor thai:tha
urdu:urd croatian:hrv bulgarian:bul lithuanian:lit latin:lat maori:mri malayalam:mal welsh:cym slovak:slk telugu:tel
persian:fas latvian:lav bengali:ben serbian:srp azerbaijani:aze slovenian:slv kannada:kan estonian:est macedonian:mkd
breton:bre basque:eus icelandic:isl armenian:hye nepali:nep mongolian:mon bosnian:bos kazakh:kaz albanian:sqi
swahili:swa galician:glg marathi:mar punjabi:pan panjabi:pan sinhala:sin sinhalese:sin khmer:khm shona:sna yoruba:yor
somali:som afrikaans:afr occitan:oci georgian:kat belarusian:bel tajik:tgk sindhi:snd gujarati:guj amharic:amh
yiddish:yid lao:lao uzbek:uzb faroese:fao haitian:hat pashto:pus pushto:pus turkmen:tuk nynorsk:nno maltese:mlt
sanskrit:san luxembourgish:ltz letzeburgesch:ltz myanmar:mya burmese:mya tibetan:bod tagalog:tgl malagasy:mlg
assamese:asm tatar:tat hawaiian:haw lingala:lin hausa:hau bashkir:bak javanese:jav sundanese:sun quechua:que
"""
LANGUAGE_NAMES: dict[str, str] = {name: code for name, _, code in (pair.partition(":") for pair in _NAMES.split())}
"""English names to ISO 639-3 codes."""

SPACELESS = frozenset({"zho", "yue", "jpn", "tha", "lao", "mya"})
"""Written without spaces between words: the five of SeamlessM4T (Barrault et al. 2023, section 4), and Cantonese."""


@dataclass(frozen=True)
class Language:
    """What a code means.

    Attributes:
        code: three letters of ISO 639-3 (639-2/T), as they were said or what a shorter code stands for.
        macro: the macrolanguage that it is the usual member of (`cmn` is of `zho`, `arb` of `ara`), or `code`.
        script: ISO 15924, as said (`Hant`) or as the territory implies it (`zh-TW`); None where nothing was said.
        usual_script: what it is written in where nothing is said.
    """

    code: str
    macro: str
    script: str | None
    usual_script: str | None

    @property
    def name(self) -> str:
        """As voxzoo writes it: `eng`, `cmn_Hant`."""
        return self.code if self.script is None else f"{self.code}_{self.script}"

    def is_written_as(self, other: Language) -> bool:
        """Whether both are in one script."""
        return (self.script or self.usual_script) == (other.script or other.usual_script)


@lru_cache(maxsize=4096)
def language(code: str) -> Language:
    """What a code means.

    Raises:
        ValueError: no language has this code; says which were near.
    """
    import langcodes

    text = code.strip()
    text = LANGUAGE_NAMES.get(text.lower(), text).replace("_", "-")
    try:
        tag = langcodes.Language.get(text)
        # An extended language is what is left of a cut script (`eng_Lat`); `zh-yue` is read as `yue`.
        private = tag.private or tag.extensions or text.lower().startswith("x-")
        valid = tag.language is not None and tag.is_valid() and not (tag.extlangs or private)
    except ValueError:
        tag, valid = None, False
    if tag is None or tag.language is None or not valid:
        raise ValueError(f"no language has the code {code!r}{_near(code)}")
    letters = text.partition("-")[0].lower()
    three = _three(tag)
    # A library may know a better code (`tgl` is `fil` to CLDR): what was said in three letters stays, but for 639-2/B.
    if len(letters) == 3 and letters != _three(tag, "B"):
        three = letters
    macro = _MACRO.get(three) or _three(langcodes.Language.get(langcodes.standardize_tag(tag.language, macro=True)))
    usual = langcodes.Language.get(macro).maximize().script
    script = tag.script
    if script is None and tag.territory is not None:
        implied = tag.maximize().script
        script = implied if implied != usual else None
    return Language(three, macro, script, usual)


@lru_cache(maxsize=4096)
def language_name(code: str) -> str:
    """A code as voxzoo writes it (`en`, `English` and `eng` are `eng`; `zh-TW` is `zho_Hant`; `cmn_Hant` stays).

    Raises:
        ValueError: no language has this code.
    """
    return language(code).name


def is_language(code: str) -> bool:
    """Whether a code means a language."""
    try:
        language(code)
    except ValueError:
        return False
    return True


def match(code: str, there: Iterable[str]) -> str | None:
    """The one of several codes that means the same language, however each is written; None where there is none.

    The same spelling wins; then the same language and script; then the usual member of a macrolanguage for the whole,
    or the whole for it (`zh`, `zho_Hans` and `cmn` find each other; `zh-TW` finds `cmn_Hant`, never `cmn`).
    """
    there = tuple(there)
    if code in there:
        return code
    try:
        wanted = language(code)
    except ValueError:
        return None
    found = None
    for each in there:
        try:
            other = language(each)
        except ValueError:  # a name of the vocabulary's own
            continue
        if not wanted.is_written_as(other):
            continue
        if other.code == wanted.code:
            return each
        if other.macro == wanted.macro and found is None:
            found = each
    return found


def is_spaceless(code: str | None) -> bool:
    """Whether a language is written without spaces between words: BLEU counts characters, and the error rate is CER."""
    return code is not None and is_language(code) and language(code).macro in SPACELESS


def is_same(code: str, other: str) -> bool:
    """Whether two codes mean one language, in whatever script."""
    if code == other:
        return True
    if not (is_language(code) and is_language(other)):
        return False
    return language(code).macro == language(other).macro


def _three(tag: Any, variant: str = "T") -> str:
    try:
        return tag.to_alpha3(variant=variant)
    except LookupError:
        return tag.language


def _near(code: str) -> str:
    known = dict.fromkeys([*LANGUAGE_NAMES, *LANGUAGE_NAMES.values()])
    near = get_close_matches(code.lower().partition("_")[0].partition("-")[0], known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else " (ISO 639 or BCP 47, such as 'spa' or 'es')"
