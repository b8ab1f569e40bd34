"""One place knows what a language code means, and everything that compares codes asks it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.errors import UserError
from voxzoo.components.languages import is_spaceless, language, language_name, match
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.datamodules.manifest import read_manifest

# Six ways to write each: ISO 639-1 (or what stands for it), 639-2/B or T, 639-3, BCP 47, NLLB's, Whisper's name.
SPELLINGS = [
    line.split()
    for line in """
    es spa spa es-MX spa_Latn spanish
    en eng eng en-GB eng_Latn english
    zh chi cmn zh-CN zho_Hans chinese
    fr fre fra fr-CA fra_Latn french
    de ger deu de-AT deu_Latn german
    ar ara arb ar-EG arb_Arab arabic
    fa per pes fa-IR pes_Arab persian
    sw swa swh sw-KE swh_Latn swahili
    ms may zsm ms-MY zsm_Latn malay
    mn mon khk mn-MN khk_Cyrl mongolian
    ne nep npi ne-NP npi_Deva nepali
    ps pus pbt ps-AF pbt_Arab pashto
    qu que quy qu-PE quy_Latn quechua
    uz uzb uzn uz-UZ uzn_Latn uzbek
    az aze azj az-AZ azj_Latn azerbaijani
    lv lav lvs lv-LV lvs_Latn latvian
    sq alb als sq-AL als_Latn albanian
    mg mlg plt mg-MG plt_Latn malagasy
    yi yid ydd yi ydd_Hebr yiddish
    no nor nob nb-NO nob_Latn norwegian
    nl dut nld nl-BE nld_Latn dutch
    el gre ell el-GR ell_Grek greek
    cs cze ces cs-CZ ces_Latn czech
    sk slo slk sk-SK slk_Latn slovak
    ro rum ron ro-RO ron_Latn romanian
    mk mac mkd mk-MK mkd_Cyrl macedonian
    ka geo kat ka-GE kat_Geor georgian
    hy arm hye hy-AM hye_Armn armenian
    is ice isl is-IS isl_Latn icelandic
    cy wel cym cy-GB cym_Latn welsh
    eu baq eus eu-ES eus_Latn basque
    my bur mya my-MM mya_Mymr burmese
    bo tib bod bo-CN bod_Tibt tibetan
    mi mao mri mi-NZ mri_Latn maori
    ja jpn jpn ja-JP jpn_Jpan japanese
    th tha tha th-TH tha_Thai thai
    tr tur tur tr-TR tur_Latn turkish
    ru rus rus ru-RU rus_Cyrl russian
    jw jav jav jv-ID jav_Latn javanese
    iw heb heb he-IL heb_Hebr hebrew
    """.strip().splitlines()
]


@pytest.mark.parametrize("codes", SPELLINGS, ids=[codes[5] for codes in SPELLINGS])
def test_scorer_normaliser_tokenizer_and_recogniser_agree(codes: list[str]):
    from voxzoo.components.tokenizer.languages import WHISPER_LANGUAGES
    from voxzoo.tasks.scoring.normalise import normalise, signature
    from voxzoo.tasks.scoring.text import Bleu, error_rate_for

    text = "I\u0307stanbul'da 3 s\u0131n\u0131f IŞIK, \u0645\u06cc\u200c\u0631\u0648\u0645 (x)"
    assert len(SPELLINGS) == 40
    assert len({language(code).macro for code in codes}) == 1
    assert len({Bleu(code).signature for code in codes}) == len({error_rate_for(code).name for code in codes}) == 1
    assert len({(signature(code), normalise(text, code)) for code in codes}) == 1
    others = [code for line in SPELLINGS if line != codes for code in line]
    for code in codes:
        for vocabulary_writes in codes:
            assert match(code, [*others, vocabulary_writes]) == vocabulary_writes
    heard = {WHISPER_LANGUAGES.get(match(code, WHISPER_LANGUAGES) or "") for code in codes}
    assert len(heard) == 1
    assert heard != {None} or codes[0] == "qu"  # Whisper has no Quechua
    for model in ("base", "tiny.en"):
        prompts = {told_to_recogniser(model, code) for code in codes}
        assert len(prompts) == 1, prompts
        knows = heard != {None} if model == "base" else "eng" in codes
        told = [f"<|{code}|>" for code in heard] + ["<|transcribe|>"] if model == "base" else []
        assert prompts == ({("<|startoftranscript|>", *told, "<|notimestamps|>")} if knows else {None})


def told_to_recogniser(model: str, lang: str) -> tuple[str, ...] | None:
    """The tokens with which the recogniser of ASR-BLEU begins, of an object without weights; None where it refuses."""
    from voxzoo.tasks.scoring.recogniser import Recogniser

    recogniser = Recogniser.__new__(Recogniser)
    recogniser.model = model  # pyright: ignore[reportAttributeAccessIssue]
    recogniser._whisper = SimpleNamespace(is_multilingual=model == "base")
    recogniser._tokenizer = SimpleNamespace(token_to_id=str)
    try:
        recogniser.check_language(lang)
    except UserError:
        return None
    return tuple(map(str, recogniser._prompt(lang)))


def test_what_is_built_takes_every_spelling(tmp_path: Path):
    """A tokenizer with NLLB's codes, and a manifest, each by its own door."""
    vocabulary = train_sentencepiece(["two small trains stop here"] * 3, tmp_path / "m.model", 70, len(SPELLINGS))
    nllb = SentencePieceTokenizer(str(vocabulary), [codes[4] for codes in SPELLINGS], 70)
    for codes in SPELLINGS:
        assert all(map(nllb.knows, codes)), codes
        assert len({nllb.lang_id(code) for code in codes}) == 1, codes
        rows = [{"id": code, "src_lang": code, "src_text": "x"} for code in dict.fromkeys(codes)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert len({language(row.src_lang).macro for row in read_manifest(tmp_path / "rows.jsonl")}) == 1


def test_what_is_said_stays():
    """Codes of published vocabularies are voxzoo's own: only other ways to write them change."""
    for code in ("cmn", "cmn_Hant", "zho_Hans", "eng", "eng_Latn", "tgl", "quy", "arb", "nob", "hbs_Latn"):
        assert language_name(code) == code
    assert [language_name(code) for code in ("en", "zh-TW", "jw", "ger", "Spanish", "es_419")] == [
        *("eng", "zho_Hant", "jav", "deu", "spa", "spa"),
    ]


def test_scripts_and_neighbours_are_told_apart():
    assert match("zh-TW", ["cmn", "cmn_Hant"]) == "cmn_Hant"
    assert match("cmn", ["zho_Hant", "zho_Hans"]) == "zho_Hans"
    assert match("zh", ["yue", "zho_Hant"]) is None
    assert match("arz", ["arb", "ary"]) is None
    assert match("ara", ["arz", "ary", "arb"]) == "arb"
    assert match("nno", ["nob", "nor"]) is None
    assert match("sr-Latn", ["srp_Cyrl"]) is None
    assert match("my own", ["my own", "eng"]) == "my own"
    assert all(map(is_spaceless, ("zh", "zho_Hant", "ja-JP", "lao")))
    assert not any(map(is_spaceless, ("kor", "eng", "bo", None)))


@pytest.mark.parametrize("code", ["xx", "", "zzz", "foo_bar", "eng1", "en\x00g", "e" * 300, "-", "x-mine", "中文"])
def test_unknown_codes_are_refused(code: str):
    with pytest.raises(ValueError, match="no language has the code"):
        language(code)


def test_near_names_are_said():
    with pytest.raises(ValueError, match=r"did you mean .*'spa'"):
        language("spaa")
