"""Scores of any system's output beside others': the engine of `voxzoo score`, one call from Python. Needs no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.errors import UserError, few
from ...components.languages import is_spaceless, language_name
from .counted import Counted, Metric, References, each_of, first_of, how_many
from .normalise import normalise
from .normalise import signature as rules_of
from .outputs import HYPOTHESIS, REFERENCE, Rows, matched, read_rows
from .significance import RESAMPLES, SEED, TRIALS, compare_systems
from .text import Bleu, Chrf, ErrorRate, Ter

METRICS = {"bleu": "BLEU", "chrf2": "chrF2", "chrf2++": "chrF2++", "ter": "TER", "wer": "WER", "cer": "CER"}
"""Name -> how it is written in a table."""

_TER_WORDS = 4096  # of a text: measured, 24 to 50 s and 600 MB


@dataclass(frozen=True)
class Normaliser:
    """What is done to both sides before they are scored.

    Args:
        kind: `iwslt`: lower case and no punctuation, as the low-resource task of IWSLT is scored (characters of a
            Unicode category P are taken out, nothing is put in their place); `speech`: what `voxzoo evaluate` does
            before WER and ASR-BLEU; `none`.
        lang: of the text; `speech` alone depends on it.
        keep: punctuation that `iwslt` leaves, as the apostrophe of French.
    """

    kind: str = "none"
    lang: str = "eng"
    keep: str = ""

    @property
    def prefix(self) -> str:
        """Its part of a signature."""
        if self.kind == "speech":
            return f"{rules_of(self.lang)}|"
        return "" if self.kind == "none" else f"norm:iwslt{f'[keep:{self.keep}]' if self.keep else ''}|"

    def __call__(self, text: str) -> str:
        if self.kind == "speech":
            return normalise(text, self.lang)
        return text if self.kind == "none" else without_punctuation(text, self.keep).lower()


def without_punctuation(text: str, keep: str = "") -> str:
    """Without the characters of a Unicode category P, but those to keep."""
    return "".join(one for one in text if one in keep or unicodedata.category(one)[0] != "P")


@dataclass(frozen=True)
class Corpus:
    """Systems on the same N utterances.

    Attributes:
        ids: N names; numbers of lines where all files are plain text.
        references: N texts, or lists of them where there are several.
        systems: name (that was given, else the path) -> N texts of each of its files, such as one of each seed.
        lang: of the references.
        notes: what was left out, and why.
        labels: field -> N values of it, for groups.
    """

    ids: list[str]
    references: list[References]
    systems: dict[str, list[list[str]]]
    lang: str
    notes: list[str]
    labels: dict[str, list[str]]


def files_of_systems(words: Sequence[str]) -> dict[str, list[str]]:
    """System -> its files, of words FILE or NAME=FILE: files of one name are runs of one system, such as of several
    seeds.

    Raises:
        UserError: a file that is given twice, or a name without a file.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        name, sign, path = word.partition("=")
        if not sign or "/" in name or Path(word).exists():  # a file whose name has the sign
            name, path = word, word
        elif not name or not path:
            raise UserError(f"{word}: expected FILE or NAME=FILE")
        known = [each for files in found.values() for each in files]
        if path in known or (name == path and name in found):
            raise UserError(f"{path}: given twice: each run of a system has a file of its own")
        found.setdefault(name, []).append(path)
    return found


def read_corpus(
    words: Sequence[str], reference: str | None = None, *, manifest: str | None = None, task: str | None = None,
    field: str | None = None, reference_field: str | None = None, lang: str | None = None, by: Sequence[str] = (),
) -> Corpus:  # fmt: skip
    """Read systems and match them with their references.

    Args:
        words: one file a system, or several: `files_of_systems`.
        reference: file of the references; None: rows of a system hold them, the same in all that do.
        manifest: file with the fields of `by`, matched by id; None: they are in the rows.
        task: the rows of one task alone, where rows say theirs.
        field, reference_field: key of the text; None: `hypothesis`, `translation` or `text`; `reference`, `tgt_text` or
            `text`.
        lang: of the references; None: `tgt_lang` of the rows, or English.
        by: fields for groups.

    Raises:
        UserError: as `read_rows` and `matched`; references that differ; a field that no row has.
    """
    named = files_of_systems(words)
    files = [read_rows(path, task) for paths in named.values() for path in paths]
    known = read_rows(reference, task) if reference else files[0]
    places = {file.path: matched(known, file) for file in files}
    texts = {
        file.path: [own[place] for place in places[file.path]]
        for file in files
        for own in [file.texts(field, HYPOTHESIS)]
    }
    references = _references(known, files, places, bool(reference), reference_field)
    ids = known.ids or [str(line) for line in known.lines]
    labels = {name: _labels(name, known, files, places, manifest) for name in by}
    notes: list[str] = []
    if known.ids is not None and (silent := [p for p, text in enumerate(references) if not first_of(text).strip()]):
        # As in `voxzoo evaluate`. Plain text is scored as it stands, like sacrebleu's command line.
        kept = [place for place, text in enumerate(references) if first_of(text).strip()]
        if not kept:
            raise UserError(f"{known.path}: no row has a reference text")
        notes.append(f"{len(silent)} without a reference left out: {few([ids[place] for place in silent])}")
        ids, references = [ids[place] for place in kept], [references[place] for place in kept]
        texts = {path: [own[place] for place in kept] for path, own in texts.items()}
        labels = {name: [values[place] for place in kept] for name, values in labels.items()}
    for path, own in texts.items():
        if empty := sum(not text.strip() for text in own):
            notes.append(f"{path}: {empty} of {len(own)} hypotheses are empty")
    systems = {name: [texts[path] for path in paths] for name, paths in named.items()}
    return Corpus(ids, references, systems, _language(lang, [known, *files], notes), notes, labels)


def _references(
    known: Rows, files: Sequence[Rows], places: dict[str, list[int]], given: bool, field: str | None
) -> list[References]:
    if given:
        return known.references(field, REFERENCE)
    usual = (field,) if field else REFERENCE[:2]
    having = [file for file in files if file.ids is not None and any(key in row for row in file.rows for key in usual)]
    if not having:
        raise UserError(f"{known.path}: has no references: give them by --reference FILE")
    found: list[References] = []
    for file in having:
        texts = file.references(field, usual)
        texts = [texts[place] for place in places[file.path]]
        found = found or texts
        other = [place for place, (one, two) in enumerate(zip(found, texts, strict=True)) if one != two]
        if other:
            name = (known.ids or known.lines)[other[0]]
            raise UserError(
                f"{file.path}: another reference of {name!r} than {having[0].path}: they are no systems on one test set"
            )
    return found


def _labels(
    name: str, known: Rows, files: Sequence[Rows], places: dict[str, list[int]], manifest: str | None
) -> list[str]:
    """The value of a field for each row of the reference, from the first file that has it."""
    columns = [known.rows, *([file.rows[place] for place in places[file.path]] for file in files)]
    if manifest is not None:
        table = read_rows(manifest)
        if known.ids is None or table.ids is None:
            raise UserError(f"--manifest {manifest}: is matched by id, and plain text has none")
        rows = dict(zip(table.ids, table.rows, strict=True))
        if lost := [each for each in known.ids if each not in rows]:
            raise UserError(f"--manifest {manifest}: has no row of {few(lost)}")
        columns.insert(0, [rows[each] for each in known.ids])
    for column in columns:
        if any(name in row for row in column):
            return [str(row[name]) if row.get(name) not in (None, "") else "(none)" for row in column]
    keys = few(list(dict.fromkeys(key for column in columns for row in column for key in row)), 12)
    hint = "" if manifest else ". --manifest FILE names a file that has it"
    raise UserError(f"--by {name}: no row has this field; there are {keys}{hint}")


def _language(lang: str | None, files: Sequence[Rows], notes: list[str]) -> str:
    if lang is not None:
        return language_name(lang)
    found = list(dict.fromkeys(str(row["tgt_lang"]) for file in files for row in file.rows if row.get("tgt_lang")))
    if len(found) > 1:
        notes.append(f"texts of several languages ({few(found)}) are scored as one; --by tgt_lang scores each")
    spaceless = {is_spaceless(each) for each in found}
    return found[0] if len(spaceless) == 1 else "eng"


def metrics_of(
    names: Sequence[str], normaliser: Normaliser, lang: str = "eng", tokenize: str | None = None
) -> dict[str, Metric]:
    """The metrics of a table. Case is folded by BLEU and chrF where the normaliser folds it, and so their signatures
    say.

    Raises:
        UserError: an unknown name.
    """
    folds = normaliser.kind != "none"
    made: dict[str, Callable[[], Metric]] = {
        "bleu": lambda: Bleu(lang, folds, tokenize),
        "chrf2": lambda: Chrf(0, folds),
        "chrf2++": lambda: Chrf(2, folds),
        "ter": Ter,
        "wer": ErrorRate,
        "cer": lambda: ErrorRate("char", lang),
    }
    for name in names:
        if name not in made:
            raise UserError(f"--metrics {name}: no such score; there are {', '.join(made)}")
    return {name: made[name]() for name in dict.fromkeys(names)}


def score_systems(
    corpus: Corpus, metrics: dict[str, Metric], normaliser: Normaliser, *, base: str | None = None,
    resamples: int = RESAMPLES, trials: int = TRIALS, seed: int = SEED,
) -> dict[str, Any]:  # fmt: skip
    """Score systems, compare them with a base, and score each group of a field.

    Returns:
        Plain dict: `num_utterances`, `base`, `notes`; `metrics`: name -> `signature` (as sacrebleu prints it for the
        same draws), `signature_randomisation`, `higher_is_better`, and `systems`, the rows of
        `significance.compare_systems`, for error rates of one run with `errors` and `length`; `groups`: field -> value
        -> `num_utterances` and `metrics`, name -> system -> row. A row of a group has no tests.

    Raises:
        UserError: an unknown base, or texts that are too long for TER.
    """
    if base is not None and base not in corpus.systems:
        raise UserError(f"--base {base}: no such system; there are {', '.join(corpus.systems)}")
    references = [each_of(text, normaliser) for text in corpus.references]
    number = how_many(references)
    cleaned = {name: [[normaliser(text) for text in texts] for texts in runs] for name, runs in corpus.systems.items()}
    if "ter" in metrics:
        _require_short(corpus, cleaned, references)
    tables = {
        key: {name: [Counted.of(metric, texts, references) for texts in runs] for name, runs in cleaned.items()}
        for key, metric in metrics.items()
    }
    answer: dict[str, Any] = {"num_utterances": len(references), "base": base, "notes": corpus.notes, "metrics": {}}
    for key, metric in metrics.items():
        rows = _rows(tables[key], base, resamples, trials, seed)
        drawn = {"bs": resamples, "seed": seed} if resamples else {}
        exchanged = any(row.get("p_randomisation") is not None for row in rows.values())
        answer["metrics"][key] = {
            "signature": normaliser.prefix + metric.signature_on(number, **drawn),
            "signature_randomisation": (
                normaliser.prefix + metric.signature_on(number, ar=trials, seed=seed) if exchanged else None
            ),
            "higher_is_better": metric.higher_is_better,
            "systems": rows,
        }
    answer["groups"] = {
        name: {
            value: {
                "num_utterances": len(places),
                "metrics": {key: _rows(_at(found, places), None, resamples, 0, seed) for key, found in tables.items()},
            }
            for value, places in _groups(values).items()
        }
        for name, values in corpus.labels.items()
    }
    return answer


def _require_short(
    corpus: Corpus, systems: Mapping[str, Sequence[Sequence[str]]], references: Sequence[References]
) -> None:
    """Refuse what TER takes minutes and gigabytes for."""
    longest = [text if isinstance(text, str) else max(text, key=len) for text in references]
    sides = [*((name, texts) for name, runs in systems.items() for texts in runs), ("the reference", longest)]
    for name, texts in sides:
        for own, text in zip(corpus.ids, texts, strict=True):
            if len(text) > _TER_WORDS and (count := len(text.split())) > _TER_WORDS:
                raise UserError(
                    f"{name}: {own!r} has {count:,} words, and TER is of {_TER_WORDS:,} at most; leave it out, by "
                    "--metrics bleu,chrf2,chrf2++,wer,cer"
                )


def _at(tables: Mapping[str, Sequence[Counted]], places: Sequence[int]) -> dict[str, list[Counted]]:
    return {name: [run.at(places) for run in runs] for name, runs in tables.items()}


def _rows(
    tables: Mapping[str, Sequence[Counted]], base: str | None, resamples: int, trials: int, seed: int
) -> dict[str, dict[str, Any]]:
    rows = compare_systems(tables, base, resamples=resamples, trials=trials, seed=seed)
    for name, runs in tables.items():
        if len(runs) == 1 and isinstance(runs[0].metric, ErrorRate | Ter):
            errors, length = runs[0].statistics.sum(axis=0).tolist()
            rows[name] |= {"errors": errors, "length": length}
    return rows


def _groups(values: Sequence[str]) -> dict[str, list[int]]:
    """Places of each value, by name."""
    return {each: [p for p, value in enumerate(values) if value == each] for each in sorted(set(values))}
