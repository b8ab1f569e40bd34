"""A vocabulary that is trained here writes its own texts: nothing is lost but white space at the ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.errors import UserError
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.components.tokenizer.vocabulary import lost_texts

SCRIPTS = {
    "Latin": "Ça coûte 10½ €, l'œuvre n° 3 ﬁne… x² ≠ ½",
    "Cyrillic": "Съешь ещё этих мягких французских булок",
    "Greek": "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "Arabic": "نصٌّ حكيمٌ لهُ سِرٌّ قاطِعٌ ـ ﷺ",
    "Persian": "می\u200cروم به کتاب\u200cخانه\u200cها",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה, בְּרֵאשִׁית",
    "Devanagari": "क\u094d\u200dष त्र ज्ञ श्री हिन्दी में लिखना",
    "Bengali": "র\u200d\u09cdয\u09beব বাংলা ভাষা",
    "Tamil": "தமிழ் மொழி அழகானது",
    "Telugu": "తెలుగు భాష",
    "Malayalam": "മലയാളം ന\u0d4d\u200d ചില്ല്",
    "Sinhala": "ශ\u0dca\u200dරී ලංකාව",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า น\u0e33\u0e49",
    "Khmer": "ភាសាខ្មែរ\u200bមាន",
    "Burmese": "မြန်မာဘာသာ",
    "Tibetan": "བོད་སྐད་ཡིག",
    "Georgian": "ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ",
    "Ethiopic": "አማርኛ ቋንቋ፡ ነው።",
    "Han": "中文ＡＢＣ，全形１２３　字㈱ ㎞ 﨑",
    "Kana": "カタカナ ｶﾀｶﾅ ゔ ㍻ か\u3099",
    "Hangul": "한국어 \u1112\u1161\u11ab 키스",
    "White space": "two  spaces, a\ttab, a\u00a0hard one and a\u2028line",
    "Emoji": "👩\u200d👩\u200d👧 ok 🏳\ufe0f\u200d🌈",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f" {text}\n" for text in SCRIPTS.values()] * 3
    return train_sentencepiece(texts, tmp_path_factory.mktemp("vocabulary") / "m.model", 900, 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_come_back(model: Path, script: str):
    tokenizer = SentencePieceTokenizer(str(model), ["eng"], 900)
    assert tokenizer.decode(tokenizer.encode(SCRIPTS[script])) == SCRIPTS[script]


def test_what_is_lost_is_counted_with_examples(model: Path, tmp_path: Path):
    texts = [f"{text} {number}" for number, text in enumerate(SCRIPTS.values())]
    assert lost_texts([*SCRIPTS.values(), " "], model) == (len(SCRIPTS), 0, [])
    usual = train_sentencepiece(texts, tmp_path / "m.model", 900, 1, normalisation="nmt_nfkc")
    total, lost, examples = lost_texts(texts, usual)
    assert total == len(SCRIPTS)
    assert 5 < lost < total
    assert len(examples) == 3
    assert examples[0][0] == texts[0] != examples[0][1]


def test_an_unknown_rule_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="none_such"):
        train_sentencepiece(["a b c"], tmp_path / "m.model", 20, 1, normalisation="none_such")  # pyright: ignore
