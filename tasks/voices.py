"""Languages and speakers of a task: what second pass and vocoder are told of each row.

Letters: B batch, U units, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..components.errors import UserError
from ..components.languages import match
from ..components.roles import TextToUnit, UnitExtractor, UnitVocoder
from ..components.types import Batch


def require_languages(t2u: TextToUnit, languages: Sequence[str]) -> None:
    """Refuse `t2u_languages` of a task that are not those of its second pass. One that takes no `lang` may have any:
    the states that it reads bring the language.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    there = t2u.num_languages
    if languages and there is not None and there != len(languages):
        raise UserError(
            f"task.t2u_languages names {len(languages)}, but t2u.num_languages is {there}: name each, in the order of "
            "their tokens"
        )


def require_voices(vocoder: UnitVocoder, languages: Sequence[str], speaker: int | None) -> None:
    """Refuse `vocoder_languages` and `speaker` of a task that are beyond the vocoder's tables. One without a table may
    have any, so that one override swaps the vocoder.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    if vocoder.num_langs and len(languages) > vocoder.num_langs:
        raise UserError(
            f"task.vocoder_languages names {len(languages)}, but vocoder.num_langs is {vocoder.num_langs}: name each, "
            "in the order of its table"
        )
    if speaker is not None and vocoder.num_speakers and not 0 <= speaker < vocoder.num_speakers:
        raise UserError(
            f"task.speaker={speaker}: expected 0 to {vocoder.num_speakers - 1} (vocoder.num_speakers is "
            f"{vocoder.num_speakers}), or null for the vocoder's own choice"
        )


def told_to_t2u(
    t2u: TextToUnit, batch: Batch, languages: Sequence[str], device: torch.device, training: bool = False
) -> dict[str, Tensor]:
    """What a second pass is told of each row: `lang`, (B,) int64, unless it takes none or takes its default.

    Args:
        t2u: the second pass.
        batch: rows with their target languages.
        languages: `t2u_languages` of the task.
        device: of what is told.
        training: a default will not do, for rows in every language would train the same one.

    Raises:
        UserError: a language that it does not have, or that nobody named.
    """
    lang = _places(batch.tgt_lang, languages, "t2u_languages", device, training)
    if t2u.num_languages is None:
        return {}
    if lang is None:
        default = None if training else t2u.default_language
        _require_named("t2u_languages", "t2u.num_languages", t2u.num_languages, default, languages)
        return {}
    return {"lang": lang}


def told_to_vocoder(
    vocoder: UnitVocoder,
    batch: Batch,
    languages: Sequence[str],
    speaker: int | Tensor | None,
    device: torch.device,
    training: bool = False,
) -> dict[str, Tensor]:
    """What a vocoder is told of each row: `lang` and `speaker`, (B,) int64; what it chooses itself is left out.

    Args:
        vocoder: the vocoder.
        batch: rows with their target languages.
        languages: `vocoder_languages` of the task.
        speaker: one for all rows, or (B,) int64.
        device, training: as in `told_to_t2u`.

    Raises:
        UserError: a language that it does not have, or a language or speaker that nobody named.
    """
    told: dict[str, Tensor] = {}
    lang = _places(batch.tgt_lang, languages, "vocoder_languages", device, training)
    if lang is not None:
        told["lang"] = lang
    else:
        default = None if training else vocoder.default_language
        codes = vocoder.languages if len(vocoder.languages) == vocoder.num_langs else ()
        _require_named("vocoder_languages", "vocoder.num_langs", vocoder.num_langs, default, languages, codes)
    if isinstance(speaker, Tensor):
        told["speaker"] = speaker
    elif speaker is not None:
        told["speaker"] = torch.full((len(batch.ids),), speaker, device=device)
    elif vocoder.num_speakers > 1 and vocoder.default_speaker is None:
        raise UserError(
            f"task.speaker is null, but vocoder.num_speakers is {vocoder.num_speakers}: set it to one of 0 to "
            f"{vocoder.num_speakers - 1}"
        )
    return told


def resynthesise(
    vocoder: UnitVocoder,
    unit_extractor: UnitExtractor | None,
    batch: Batch,
    languages: Sequence[str],
    speaker: int | Tensor | None,
) -> list[Tensor] | None:
    """Reference units (given, or made from the target speech) through a vocoder: one (N,) waveform per row, or None.

    Args:
        vocoder, languages, speaker: as in `told_to_vocoder`.
        unit_extractor: makes the units where the batch brings none.
        batch: with units or target speech; neither gives None.
    """
    units = batch.units
    if units is None:
        if unit_extractor is None or batch.target_speech is None:
            return None
        units = unit_extractor(batch.target_speech)
    told = told_to_vocoder(vocoder, batch, languages, speaker, units.device)
    durations = units.with_data(torch.ones_like(units.data))
    return [audio.float().cpu() for audio in vocoder(units, durations=durations, **told).unpad()]


def made_up_languages(task: object, rows: int) -> tuple[str, ...]:
    """A target language for each row of a batch that is made up for a task: one that its second pass has or, without
    one, its vocoder. Empty where the task names none."""
    known = getattr(task, "t2u_languages", ()) or getattr(task, "vocoder_languages", ())
    return tuple(known[:1]) * rows


def _places(
    rows: Sequence[str], languages: Sequence[str], key: str, device: torch.device, training: bool
) -> Tensor | None:
    """(B,) place of each row's language in a table; None where no table is named, or the rows have no language."""
    if not languages or not rows:
        return None
    found = {lang: match(lang, languages) for lang in set(rows)}
    missing = sorted(lang for lang, there in found.items() if there is None)
    if missing:
        advice = "name it there, or leave its rows out of the data" if training else "for text use s2tt or t2tt"
        raise UserError(
            f"no speech output in {', '.join(missing)} (task.{key}): this run speaks {', '.join(languages)}; {advice}"
        )
    return torch.tensor([languages.index(found[lang]) for lang in rows], device=device)


def _require_named(
    key: str, size_key: str, size: int, default: int | None, languages: Sequence[str], codes: Sequence[str] = ()
) -> None:
    """Refuse rows without a place in a table of several languages, where no default stands in."""
    if size < 2 or default is not None:
        return
    if languages:
        raise UserError(f"{size_key} is {size}, but the batch has no languages: give tgt_lang, a code for each row")
    known = f": [{','.join(codes)}]" if codes else ""
    raise UserError(f"task.{key} names none, but {size_key} is {size}: name each, in the order of its table{known}")
