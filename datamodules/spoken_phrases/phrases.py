"""Template sentences in English, Spanish, French, Italian, Portuguese and German that say the same thing.

A `Phrase` is the meaning (template and slots); `Language.say` puts it into words: lower case, no punctuation, numbers
spelled out with the agreement that the noun asks for.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ...components.errors import UserError

CURATED = (
    *("MX", "ES", "FR", "IT", "PT", "DE", "GR", "JP", "CN", "IN", "BR", "AR", "CL", "PE", "CO", "VE", "BO", "EC", "UY"),
    *("PY", "CU", "PA", "CR", "NI", "HN", "GT", "CA", "EG", "MA", "DZ", "TN", "LY", "KE", "NG", "GH", "SN", "ET", "AO"),
    *("MZ", "MG", "TH", "VN", "ID", "KR", "MY", "AU", "NZ", "PL", "HU", "RO", "BG", "SE", "NO", "FI", "DK", "IE", "IS"),
    *("RU", "AT", "IL"),
)
"""Countries whose article and preposition are known in every language below."""

SPOKEN = ("es", "en", "fr", "de", "it", "pt", "ru", "zh", "ja", "ar")
TEMPLATES = ("train", "arrival", "meeting", "people", "cost", "payment")
WITH_COUNTRY = frozenset({"train", "arrival", "meeting", "people"})
MAX_THINGS, MAX_PRICE, MAX_PEOPLE, MAX_HOURS = 99, 199, 999, 48
DAYS, MONTHS, HOURS, MINUTES = range(2, 29), range(1, 13), range(1, 13), range(10, 60, 5)
NUM_THINGS = 12


@dataclass(frozen=True)
class Phrase:
    """One meaning. Slots that its template does not use are zero or empty."""

    template: str
    country: str = ""
    count: int = 0
    price: int = 0
    thing: int = 0
    spoken: str = ""
    weekday: int = 0
    day: int = 0
    month: int = 0
    hour: int = 0
    minute: int = 0


@dataclass(frozen=True)
class Language:
    """How one language says a `Phrase`.

    Attributes:
        code: ISO 639-3.
        babel, num2words: what the two packages call it.
        templates: template name -> text with slots `to at date time things price people spoken hours`.
        things: noun and gender of each thing, in the order of the English list.
        people, hours, euros: noun (or "" where the template has it) and gender.
        date: (weekday, spelled day, ordinal day, month) -> text.
        time: (hour, minute, spell) -> text.
        agree: (spelled number, gender) -> the form before a noun.
        to, at: (country code, name) -> the country as a goal, as a place.
    """

    code: str
    babel: str
    num2words: str
    templates: dict[str, str]
    things: tuple[tuple[str, str], ...]
    people: tuple[str, str]
    hours: tuple[str, str]
    euros: tuple[str, str]
    date: Callable[[str, str, str, str], str]
    time: Callable[[int, int, Callable[[int], str]], str]
    agree: Callable[[str, str], str] = lambda words, gender: words
    to: Callable[[str, str], str] = lambda code, name: name
    at: Callable[[str, str], str] = lambda code, name: name
    any_country: bool = field(default=False)

    def number(self, value: int, gender: str = "m") -> str:
        """The number in words, as it stands before a noun of that gender."""
        return self.agree(_number(self.num2words, value), gender)

    def say(self, phrase: Phrase) -> str:
        """The phrase in words: lower case, no punctuation."""
        names = country_names(self.babel)
        weekdays, months = _calendar(self.babel)
        slots: dict[str, str] = {}
        if phrase.country:
            name = names[phrase.country]
            slots |= {"to": self.to(phrase.country, name), "at": self.at(phrase.country, name)}
        if phrase.day:
            spelled, ordinal = _number(self.num2words, phrase.day), _ordinal(self.num2words, phrase.day)
            slots["date"] = self.date(weekdays[phrase.weekday], spelled, ordinal, months[phrase.month - 1])
        if phrase.minute:
            slots["time"] = self.time(phrase.hour, phrase.minute, lambda value: _number(self.num2words, value))
        if phrase.price:
            slots["price"] = f"{self.number(phrase.price, self.euros[1])} {self.euros[0]}"
        if phrase.spoken:
            slots["spoken"] = _languages(self.babel)[phrase.spoken]
        if phrase.template in ("cost", "payment"):
            noun, gender = self.things[phrase.thing]
            slots["things"] = f"{self.number(phrase.count, gender)} {noun}"
        elif phrase.template == "people":
            slots["people"] = f"{self.number(phrase.count, self.people[1])} {self.people[0]}"
        elif phrase.template == "meeting":
            slots["hours"] = f"{self.number(phrase.count, self.hours[1])} {self.hours[0]}"
        return plain(self.templates[phrase.template].format(**slots))


def plain(text: str) -> str:
    """Lower case, letters and apostrophes only; hyphens become spaces.

    >>> plain("Twenty-one, Nouvelle-Zélande!")
    'twenty one nouvelle zélande'
    """
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w' ]+", " ", text).split())


@cache
def _packages() -> tuple[Any, Any]:
    try:
        from babel import Locale
        from num2words import num2words
    except ImportError as error:
        raise UserError(
            f"the spoken_phrases corpus needs the package {error.name!r}: pip install voxzoo[demo]"
        ) from None
    return num2words, Locale


@cache
def _number(lang: str, value: int) -> str:
    words = _packages()[0](value, lang=lang)
    return words.replace(" and ", " ").replace("-", " ") if lang == "en" else words.replace("-", " ")


@cache
def _ordinal(lang: str, value: int) -> str:
    return _packages()[0](value, lang=lang, to="ordinal").replace("-", " ")


@cache
def country_names(locale: str) -> dict[str, str]:
    """Territory code -> name, for the names that are plain words."""
    names = _packages()[1].parse(locale).territories
    return {
        code: name
        for code, name in names.items()
        if len(code) == 2 and code.isalpha() and code not in ("EU", "EZ", "UN", "QO", "XA", "XB", "ZZ")
        and all(char.isalpha() or char in " -'’" for char in name)
    }  # fmt: skip


@cache
def _languages(locale: str) -> dict[str, str]:
    return {code: _packages()[1].parse(locale).languages[code] for code in SPOKEN}


@cache
def _calendar(locale: str) -> tuple[list[str], list[str]]:
    parsed = _packages()[1].parse(locale)
    weekdays, months = parsed.days["format"]["wide"], parsed.months["format"]["wide"]
    return [weekdays[index] for index in range(7)], [months[index] for index in range(1, 13)]


def _spanish(words: str, gender: str) -> str:
    if gender == "f":
        words = words.replace("cientos", "cientas").replace("quinientos", "quinientas")
        return re.sub(r"uno$", "una", words)
    words = re.sub(r"veintiuno$", "veintiún", words)
    return re.sub(r"\buno$", "un", words)


def _french(words: str, gender: str) -> str:
    return re.sub(r"\bun$", "une", words) if gender == "f" else words


def _portuguese(words: str, gender: str) -> str:
    if gender == "m":
        return words
    words = re.sub(r"entos\b", "entas", words)
    return re.sub(r"\bdois$", "duas", re.sub(r"\bum$", "uma", words))


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FR_MASC = _codes("MX PT JP BR CL PE VE PY PA CR NI HN GT CA MA KE NG GH SN MZ VN DK")
_FR_VOWEL = _codes("ES IT DE IN AR EC UY EG DZ ET AO ID AU IE IS AT")
_FR_BARE = {"CU": "à", "MG": "à", "IL": "en"}
_IT_MASC = _codes("MX PT JP BR CL PE VE PY PA NI GT CA MA KE GH SN MZ MG VN")
_IT_VOWEL = _codes("IT IN AR EC UY HN EG DZ ET AO ID AU HU IE IS AT")
_IT_BARE = _codes("CU IL")
_PT_MASC = _codes("MX JP BR CL PE EC UY PY PA CA EG MA KE SN VN")
_PT_BARE = _codes("PT CU HN GH AO MZ MG IL")


def _french_to(code: str, name: str) -> str:
    if code in _FR_BARE:
        return name
    return f"l'{name}" if code in _FR_VOWEL else f"{'le' if code in _FR_MASC else 'la'} {name}"


def _french_at(code: str, name: str) -> str:
    return f"{_FR_BARE.get(code) or ('au' if code in _FR_MASC else 'en')} {name}"


def _italian_to(code: str, name: str) -> str:
    if code in _IT_BARE:
        return name
    return f"l'{name}" if code in _IT_VOWEL else f"{'il' if code in _IT_MASC else 'la'} {name}"


def _portuguese_to(code: str, name: str) -> str:
    return name if code in _PT_BARE else f"{'o' if code in _PT_MASC else 'a'} {name}"


def _portuguese_at(code: str, name: str) -> str:
    return f"{'em' if code in _PT_BARE else 'no' if code in _PT_MASC else 'na'} {name}"


def _nouns(text: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple((noun, gender) for noun, gender in (item.split(":") for item in text.split()))
    assert len(pairs) == NUM_THINGS
    return pairs


LANGUAGES = {
    language.code: language
    for language in (
        Language(
            code="eng",
            babel="en",
            num2words="en",
            templates={
                "train": "the train to {to} leaves on {date} at {time}",
                "arrival": "we arrive in {at} on {date}",
                "meeting": "the meeting in {at} starts in {hours}",
                "people": "{people} speak {spoken} in {at}",
                "cost": "{things} cost {price}",
                # "we bought": the recogniser behind ASR-BLEU loses "i bought" ("I'm at") ten times in eleven.
                "payment": "we paid {price} for {things}",
            },
            things=_nouns(
                "books:m hats:m watches:m phones:m tickets:m shirts:m apples:m bottles:m chairs:m"
                " bicycles:m flowers:m keys:m"
            ),
            people=("people", "m"),
            hours=("hours", "m"),
            euros=("euros", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} {month} {ordinal}",
            time=lambda hour, minute, spell: f"{spell(hour)} {spell(minute)}",
            any_country=True,
        ),
        Language(
            code="spa",
            babel="es",
            num2words="es",
            templates={
                "train": "el tren a {to} sale el {date} {time}",
                "arrival": "llegamos a {at} el {date}",
                "meeting": "la reunión en {at} empieza en {hours}",
                "people": "{people} hablan {spoken} en {at}",
                "cost": "{things} cuestan {price}",
                "payment": "pagamos {price} por {things}",
            },
            things=_nouns(
                "libros:m sombreros:m relojes:m teléfonos:m entradas:f camisas:f manzanas:f botellas:f"
                " sillas:f bicicletas:f flores:f llaves:f"
            ),
            people=("personas", "f"),
            hours=("horas", "f"),
            euros=("euros", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} {day} de {month}",
            time=lambda hour, minute, spell: f"{'a la una' if hour == 1 else 'a las ' + spell(hour)} y {spell(minute)}",
            agree=_spanish,
            any_country=True,
        ),
        Language(
            code="fra",
            babel="fr",
            num2words="fr",
            templates={
                "train": "le train pour {to} part {date} à {time}",
                "arrival": "nous arrivons {at} {date}",
                "meeting": "la réunion {at} commence dans {hours}",
                "people": "{people} parlent {spoken} {at}",
                "cost": "{things} coûtent {price}",
                "payment": "nous avons payé {price} pour {things}",
            },
            things=_nouns(
                "livres:m chapeaux:m montres:f téléphones:m billets:m chemises:f pommes:f bouteilles:f"
                " chaises:f bicyclettes:f fleurs:f clés:f"
            ),
            people=("personnes", "f"),
            hours=("heures", "f"),
            euros=("euros", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} {day} {month}",
            time=lambda hour, minute, spell: f"{'une heure' if hour == 1 else spell(hour) + ' heures'} {spell(minute)}",
            agree=_french,
            to=_french_to,
            at=_french_at,
        ),
        Language(
            code="ita",
            babel="it",
            num2words="it",
            templates={
                "train": "il treno per {to} parte {date} {time}",
                "arrival": "arriviamo {at} {date}",
                "meeting": "la riunione {at} comincia tra {hours}",
                "people": "{people} parlano {spoken} {at}",
                "cost": "{things} costano {price}",
                "payment": "abbiamo pagato {price} per {things}",
            },
            things=_nouns(
                "libri:m cappelli:m orologi:m telefoni:m biglietti:m camicie:f mele:f bottiglie:f"
                " sedie:f biciclette:f fiori:m chiavi:f"
            ),
            people=("persone", "f"),
            hours=("ore", "f"),
            euros=("euro", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} {day} {month}",
            time=lambda hour, minute, spell: (
                ("all'una" if hour == 1 else f"alle {spell(hour)}") + f" e {spell(minute)}"
            ),
            to=_italian_to,
            at=lambda code, name: f"{'a' if code == 'CU' else 'in'} {name}",
        ),
        Language(
            code="por",
            babel="pt_BR",
            num2words="pt_BR",
            templates={
                "train": "o trem para {to} sai {date} {time}",
                "arrival": "chegamos {at} {date}",
                "meeting": "a reunião {at} começa em {hours}",
                "people": "{people} falam {spoken} {at}",
                "cost": "{things} custam {price}",
                "payment": "pagamos {price} por {things}",
            },
            things=_nouns(
                "livros:m chapéus:m relógios:m telefones:m bilhetes:m camisas:f maçãs:f garrafas:f"
                " cadeiras:f bicicletas:f flores:f chaves:f"
            ),
            people=("pessoas", "f"),
            hours=("horas", "f"),
            euros=("euros", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} {day} de {month}",
            time=lambda hour, minute, spell: (
                f"{'à uma' if hour == 1 else 'às ' + _portuguese(spell(hour), 'f')} e {spell(minute)}"
            ),
            agree=_portuguese,
            to=_portuguese_to,
            at=_portuguese_at,
        ),
        Language(
            code="deu",
            babel="de",
            num2words="de",
            templates={
                "train": "der Zug nach {to} fährt am {date} um {time} ab",
                "arrival": "wir kommen am {date} in {at} an",
                "meeting": "die Besprechung in {at} beginnt in {hours}",
                "people": "{people} sprechen {spoken} in {at}",
                "cost": "{things} kosten {price}",
                "payment": "wir haben {price} für {things} bezahlt",
            },
            things=_nouns(
                "Bücher:n Hüte:m Uhren:f Telefone:n Karten:f Hemden:n Äpfel:m Flaschen:f Stühle:m"
                " Fahrräder:n Blumen:f Schlüssel:m"
            ),
            people=("Menschen", "m"),
            hours=("Stunden", "f"),
            euros=("Euro", "m"),
            date=lambda weekday, day, ordinal, month: f"{weekday} dem {ordinal}n {month}",
            time=lambda hour, minute, spell: f"{'ein' if hour == 1 else spell(hour)} Uhr {spell(minute)}",
        ),
    )
}  # fmt: skip


def choose(rng: random.Random, countries: tuple[str, ...]) -> Phrase:
    """Draw a template and its slots."""
    template = rng.choice(TEMPLATES)
    draw: dict[str, Any] = {"template": template}
    if template in WITH_COUNTRY:
        draw["country"] = rng.choice(countries)
    if template in ("train", "arrival"):
        draw |= {"weekday": rng.randrange(7), "day": rng.choice(DAYS), "month": rng.choice(MONTHS)}
    if template == "train":
        draw |= {"hour": rng.choice(HOURS), "minute": rng.choice(MINUTES)}
    if template in ("cost", "payment"):
        draw |= {"thing": rng.randrange(NUM_THINGS), "price": rng.randint(2, MAX_PRICE)}
    limits = {"people": MAX_PEOPLE, "cost": MAX_THINGS, "payment": MAX_THINGS, "meeting": MAX_HOURS}
    if template in limits:
        draw["count"] = rng.randint(2, limits[template])
    if template == "people":
        draw["spoken"] = rng.choice(SPOKEN)
    return Phrase(**draw)


def countries(number: int | None, languages: tuple[str, ...]) -> tuple[str, ...]:
    """The first `number` curated countries, or every country that all `languages` can name.

    Raises:
        UserError: more than the curated countries are asked for in a language whose articles are known for those only.
    """
    if number is not None and number <= len(CURATED):
        return CURATED[:number]
    limited = [code for code in languages if not LANGUAGES[code].any_country]
    if limited:
        raise UserError(
            f"corpus.countries={number}: {', '.join(limited)} can name {len(CURATED)} countries with their articles;"
            f" set countries to {len(CURATED)} or less, or use Spanish alone"
        )
    shared = set.intersection(*(set(country_names(LANGUAGES[code].babel)) for code in languages))
    ordered = [*CURATED, *sorted(shared - set(CURATED))]
    return tuple(ordered[:number])


def phrases(rng: random.Random, names: tuple[str, ...]) -> Iterator[Phrase]:
    """Phrases without end, none twice. Raises UserError when the templates seem used up."""
    seen: set[Phrase] = set()
    while True:
        for _ in range(1000):
            phrase = choose(rng, names)
            if phrase not in seen:
                break
        else:
            raise UserError(
                f"the templates are used up after {len(seen)} sentences; ask for fewer, or for more countries"
            )
        seen.add(phrase)
        yield phrase
