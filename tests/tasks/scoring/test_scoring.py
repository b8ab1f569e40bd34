"""Scores against sacrebleu and jiwer, bootstrap intervals, normalisers, and the scores of a split."""

from __future__ import annotations

import random
import subprocess
import sys

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from voxzoo.components.errors import UserError
from voxzoo.tasks.scoring import ngrams, significance
from voxzoo.tasks.scoring.counted import Counted, Metric
from voxzoo.tasks.scoring.evaluation import Scored, score_rows
from voxzoo.tasks.scoring.normalise import normalise, normalise_basic, normalise_english
from voxzoo.tasks.scoring.significance import bootstrap, comparison
from voxzoo.tasks.scoring.speech import cut_at_quiet, write_wav
from voxzoo.tasks.scoring.text import (
    Bleu,
    Chrf,
    ErrorRate,
    Ter,
    error_rate_for,
    evaluate_corpus,
)

WORDS = [
    "the",
    "The",
    "train",
    "to",
    "Peru",
    "leaves",
    "on",
    "the",
    "15th",
    "of",
    "August,",
    "at",
    "10:15",
    ".",
    "costs",
    "€",
    "9,300",
    "!",
    "no-one's",
    "café",
]


def corpus(count: int = 60, seed: int = 0, noise: float = 0.3) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(count)]
    hypotheses = [" ".join(w if rng.random() > noise else rng.choice(WORDS) for w in r.split()) for r in references]
    hypotheses[3] = ""
    return hypotheses, references


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Bleu(), BLEU()),
        (Bleu(lowercase=True), BLEU(lowercase=True)),
        (Bleu("jpn"), BLEU(tokenize="char")),
        (Chrf(), CHRF()),
        (Chrf(word_order=2), CHRF(word_order=2)),
    ],
)
def test_point_estimate_and_signature_are_those_of_sacrebleu(ours, theirs):
    hypotheses, references = corpus()
    expected = theirs.corpus_score(hypotheses, [references])
    found = evaluate_corpus(ours, hypotheses, references)
    assert found["score"] == expected.score
    assert found["signature"] == str(theirs.get_signature())
    assert found["num_sentences"] == 60


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Bleu(), BLEU()),
        (Bleu(lowercase=True), BLEU(lowercase=True)),
        (Bleu("jpn"), BLEU(tokenize="char")),
        (Chrf(), CHRF()),
        (Chrf(word_order=2), CHRF(word_order=2)),
        (Ter(), TER()),
    ],
)
@pytest.mark.parametrize("counts", [(2,), (1, 3, 2)], ids=["two each", "from one to three"])
def test_several_references_count_as_sacrebleu_counts_them(ours, theirs, counts):
    hypotheses, first = corpus()
    others = [corpus(noise=noise, seed=0)[0] for noise in (0.1, 0.7)]
    several = [list(group)[: counts[place % len(counts)]] for place, group in enumerate(zip(first, *others))]
    several[5] = [several[5][0], ""][: len(several[5])]
    padded = [[row[place] if place < len(row) else None for row in several] for place in range(max(counts))]
    expected = theirs.corpus_score(hypotheses, padded)
    found = evaluate_corpus(ours, hypotheses, several)
    assert found["score"] == pytest.approx(expected.score, abs=1e-9)
    assert found["score"] != pytest.approx(evaluate_corpus(ours, hypotheses, first)["score"], abs=1e-3)
    assert found["low"] < found["score"] < found["high"]
    assert found["signature"] == str(theirs.get_signature())
    assert ("nrefs:var" if len(counts) > 1 else "nrefs:2") in found["signature"]
    alone = evaluate_corpus(ours, hypotheses, [[text] for text in first])
    assert alone == evaluate_corpus(ours, hypotheses, first)


def test_error_rates_take_the_first_of_several_references_and_say_so():
    found = evaluate_corpus(ErrorRate(), ["one two", "three"], [["one too", "one two"], "three"])
    assert found["score"] == pytest.approx(100 / 3)
    assert found["signature"].startswith("wer|unit:word|refs:first|jiwer:")
    with pytest.raises(ValueError, match="sentence 2 has no reference"):
        evaluate_corpus(ErrorRate(), ["one", "two"], ["one", []])


def test_a_split_with_several_references_is_scored_on_all_of_them():
    def row(name: str, hypothesis: str, *references: str, **more) -> Scored:
        several = list(references) if len(references) > 1 else None
        return Scored(name, "s2st", "spa", "eng", references[0], hypothesis, references=several, duration=1.0, **more)

    later = "the train leaves at ten"
    same = "seven chairs in france today"
    rows = [
        row("a", later, "the bus goes at ten", later, heard="The train leaves at 10"),
        row("b", same, same, heard=same),
    ]
    found = score_rows(rows, "whisper:fake")
    for name in ("bleu", "chrf", "asr_bleu"):
        assert found[name] == pytest.approx(100)
    assert found["asr_wer"] > 0
    assert "nrefs:var" in found["signatures"]["bleu"]
    assert "nrefs:var" in found["signatures"]["asr_bleu"]
    assert "refs:first" in found["signatures"]["asr_wer"]
    assert rows[0].line()["references"] == ["the bus goes at ten", "the train leaves at ten"]
    assert "references" not in rows[1].line()


@pytest.mark.parametrize("lang", ["cmn", "jpn", "tha", "lao", "mya", "yue", "zho", "zho_Hans", "cmn_Hant", "jpn_Jpan"])
def test_languages_without_spaces_are_scored_by_character(lang):
    assert "tok:char" in Bleu(lang).signature
    assert error_rate_for(lang).name == "cer"
    hypotheses, references = ["我喜欢 苹果"], ["我 喜欢苹果"]
    assert evaluate_corpus(error_rate_for(lang), hypotheses, references)["score"] == 0


@pytest.mark.parametrize(("unit", "reference"), [("word", jiwer.wer), ("char", jiwer.cer)])
def test_error_rates_are_those_of_jiwer(unit, reference):
    hypotheses, references = corpus()
    found = evaluate_corpus(ErrorRate(unit), hypotheses, references)
    assert found["score"] == pytest.approx(100 * reference(references, hypotheses), abs=1e-9)
    assert found["low"] < found["score"] < found["high"]


def test_error_rate_counts_insertions_on_an_empty_reference():
    assert evaluate_corpus(ErrorRate(), ["one two", "three"], ["", "three"])["score"] == 200.0
    assert evaluate_corpus(ErrorRate(), [""], [""])["score"] == 0.0
    assert evaluate_corpus(ErrorRate(), ["so"], [""])["score"] == 100.0


def test_bootstrap_is_seeded_and_agrees_with_resampling_by_hand():
    hypotheses, references = corpus()
    first, second = (evaluate_corpus(Bleu(), hypotheses, references, seed=3) for _ in range(2))
    assert first == second
    assert first["low"] < first["score"] < first["high"]
    rng, metric, scores = np.random.default_rng(0), BLEU(), []
    for _ in range(200):
        rows = rng.integers(0, 60, 60)
        scores.append(metric.corpus_score([hypotheses[r] for r in rows], [[references[r] for r in rows]]).score)
    low, high = np.percentile(scores, [2.5, 97.5])
    assert first["low"] == pytest.approx(low, abs=2.0)
    assert first["high"] == pytest.approx(high, abs=2.0)


def test_bootstrap_of_a_large_corpus_is_narrow():
    hypotheses, references = corpus(count=2000)
    found = evaluate_corpus(Bleu(), hypotheses, references)
    assert found["high"] - found["low"] < 5


# Spaces of many kinds, punctuation that chrF++ takes off, half a surrogate pair, more than one plane, combining marks.
ODD = [
    "", " ", "a", "(hi)", "-\n", "&amp;", "\u3000", "\x1c", "\ud800", "\U0001f600", "e\u0301", "1,200.5", "'tis",
    "ab ab",
]  # fmt: skip


def odd_corpus(seed: int, alphabet: str, longest: int, count: int = 80) -> tuple[list[str], list[str]]:
    """Pairs of characters drawn from an alphabet, some of them empty, equal, repeated or odd."""
    rng = random.Random(seed)
    references = ["".join(rng.choices(alphabet, k=rng.randint(0, longest))) for _ in range(count)]
    hypotheses = [
        "".join(c if rng.random() > 0.3 else rng.choice([*alphabet, "", *ODD]) for c in text) for text in references
    ]
    hypotheses[5], references[6], hypotheses[7] = "", "", references[7]
    hypotheses[8] = references[8] = "abc" * longest
    return hypotheses, [*references[:9], *ODD, *references[9 + len(ODD) :]]


LETTERS = "aab cd e.F,'-)1 "
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))  # six of these do not fit in one number


@pytest.mark.parametrize(
    ("alphabet", "longest"),
    [(LETTERS, 90), (HAN, 40), (HAN + " ", 3), ("a", 12)],
    ids=["letters", "han", "spaced-han", "a"],
)
@pytest.mark.parametrize(
    "metric",
    [Bleu(), Bleu("zho", lowercase=True), Chrf(), Chrf(2, lowercase=True)],
    ids=["bleu", "bleu-zho", "chrf", "chrf-2"],
)
@pytest.mark.parametrize("characters", [300, ngrams.SLICE_CHARACTERS])
def test_counts_are_those_of_sacrebleu(alphabet, longest, metric, characters, monkeypatch):
    monkeypatch.setattr(ngrams, "SLICE_CHARACTERS", characters)
    hypotheses, references = odd_corpus(longest, alphabet, longest)
    expected = metric.metric._extract_corpus_statistics(hypotheses, [references])
    assert metric.statistics(hypotheses, references).tolist() == expected


def scores_by_plain_resampling(metric: Metric, statistics: np.ndarray, resamples: int, seed: int) -> list[float]:
    """One metric, all draws at once, in integers."""
    count = len(statistics)
    places = np.random.default_rng(seed).choice(count, size=(resamples, count))
    return metric.scores(statistics[places].sum(axis=1).astype(metric.precision)).tolist()


@pytest.mark.parametrize("at_once", [1, 700, significance._DRAWN_AT_ONCE])
def test_resamples_are_the_same_for_all_metrics_and_in_any_slices(at_once, monkeypatch):
    monkeypatch.setattr(significance, "_DRAWN_AT_ONCE", at_once)
    short, long = corpus(count=60), corpus(count=83, seed=1)
    tables = [
        Counted.of(metric, *pairs)
        for metric, pairs in [(Bleu(), short), (Chrf(), long), (ErrorRate(), short), (Chrf(2), short), (Bleu(), long)]
    ]
    found = bootstrap(tables, resamples=50, seed=7)
    for table, scores in zip(tables, found, strict=True):
        assert scores.tolist() == scores_by_plain_resampling(table.metric, table.statistics, 50, 7)


def test_what_is_held_at_once_does_not_grow_with_the_corpus(monkeypatch):
    """Tokens counted at once, and numbers drawn at once; all metrics of a corpus share the draws."""
    tokens, drawn, default_rng = [], [], np.random.default_rng

    class Generator:
        def __init__(self, seed):
            self.given = default_rng(seed)

        def choice(self, *args, **options):
            found = self.given.choice(*args, **options)
            drawn.append(found.size)
            return found

    def count_matches(pairs, orders, given=ngrams.count_matches):
        tokens.append(len(pairs.tokens))
        return given(pairs, orders)

    monkeypatch.setattr(np.random, "default_rng", Generator)
    monkeypatch.setattr(ngrams, "count_matches", count_matches)
    monkeypatch.setattr(ngrams, "SLICE_CHARACTERS", 2000)
    monkeypatch.setattr(significance, "_DRAWN_AT_ONCE", 10_000)
    for count in (120, 240):
        tokens.clear()
        drawn.clear()
        rows = [
            scored("s2st", "spa", "eng", r, h, heard=h, heard_reference=r, heard_resynthesis=h)
            for h, r in zip(*corpus(count), strict=True)
        ]
        assert "asr_bleu_ratio" in score_rows(rows, "whisper:x")
        assert max(tokens) <= 2000
        assert max(drawn) <= 10_000
        assert sum(drawn) == 1000 * count


def test_a_ratio_needs_the_same_utterances_on_both_sides():
    rows = [
        scored("s2st", "spa", "eng", f"one two three four {n}", "", heard="one two three four five") for n in range(4)
    ]
    for row in rows[:2]:
        row.heard_reference = row.reference
    for row in rows[2:]:
        row.heard_resynthesis = row.reference
    found = score_rows(rows, "whisper:x")
    assert found["asr_bleu_ceiling"] == found["asr_bleu_resynthesis"] == pytest.approx(100)
    assert "asr_bleu_ratio" not in found
    assert "resynthesis_ratio" not in found


def compared(metric: Metric, system: list[str], baseline: list[str], references: list[str]) -> dict:
    tables = [Counted.of(metric, hypotheses, references) for hypotheses in (system, baseline)]
    return comparison(*tables, *bootstrap(tables))


def test_paired_bootstrap_tells_a_better_system_from_an_equal_one():
    better, references = corpus(count=200, noise=0.1)
    worse, _ = corpus(count=200, noise=0.4)
    found = compared(Bleu(), better, worse, references)
    assert found["low"] > 0
    assert found["p_value"] < 0.01
    assert found["ratio_low"] < found["ratio"] < found["ratio_high"]
    equal = compared(Bleu(), better, better, references)
    assert (equal["difference"], equal["low"], equal["high"], equal["ratio"]) == (0, 0, 0, 1)
    assert equal["p_value"] == 1
    # Paired: the interval of the difference is narrower than what two separate intervals would allow.
    one, other = evaluate_corpus(Bleu(), better, references), evaluate_corpus(Bleu(), worse, references)
    assert found["high"] - found["low"] < (one["high"] - one["low"]) + (other["high"] - other["low"])


def test_ratio_to_a_baseline_of_zero_is_none():
    assert compared(Bleu(), ["a b c d e"], [""], ["a b c d e"])["ratio"] is None


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [(["a"], ["a", "b"], "1 hypotheses but 2 references"), ([], [], "empty"), ("a b", ["a b"], "one string")],
)
def test_bad_corpora_are_refused(hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        evaluate_corpus(Bleu(), hypotheses, references)


ENGLISH = {
    # money
    "$9,300": "nine thousand three hundred dollars",
    "It costs $3.50.": "it costs three dollars fifty cents",
    "€1.5 million": "one point five million euros",
    "45€": "forty five euros",
    "1 EUR": "one euro",
    "$0.50": "fifty cents",
    "$1": "one dollar",
    "£2.01": "two pounds one penny",
    "$1,234.56": "one thousand two hundred thirty four dollars fifty six cents",
    "ten dollars and five cents": "ten dollars five cents",
    "845 phones cost 7,755 euros": "eight hundred forty five phones cost seven thousand seven hundred fifty five euros",
    # times
    "5:30": "five thirty",
    "5:05": "five oh five",
    "five o five": "five oh five",
    "5:00": "five",
    "five o'clock": "five",
    "5 o'clock": "five",
    "at 10.15": "at ten fifteen",
    "10.15": "ten point one five",
    "10.15 a.m.": "ten fifteen am",
    "5pm": "five pm",
    "The plane arrived at 1225.": "the plane arrived at twelve twenty five",
    "at 220": "at two twenty",
    "at 1225 people": "at one thousand two hundred twenty five people",
    "at 1000": "at one thousand",
    "0830 hours": "eight thirty hours",
    # ordinals and dates
    "21st": "twenty first",
    "August 15": "august fifteenth",
    "august fifteen": "august fifteenth",
    "August the 15th": "august fifteenth",
    "the 15th of August": "fifteenth august",
    "the fifteenth of august": "fifteenth august",
    "15 August": "fifteenth august",
    "august twenty one": "august twenty first",
    "august twenty five thousand": "august twenty five thousand",
    "on October 18 at 325": "on october eighteenth at three twenty five",
    "may 20 people come": "may twenty people come",
    "20th century": "twentieth century",
    # years
    "in 1995": "in nineteen ninety five",
    "August 15, 1998": "august fifteenth nineteen ninety eight",
    "since 1905,": "since nineteen oh five",
    "in 2005": "in two thousand five",
    "1990s": "nineteen nineties",
    "'90s": "nineties",
    "in 1200 books": "in one thousand two hundred books",
    # numbers
    "1,225,300": "one million two hundred twenty five thousand three hundred",
    "two hundred and five": "two hundred five",
    "a hundred": "one hundred",
    "three hundred sixty-five": "three hundred sixty five",
    "3.14": "three point one four",
    "1/2": "one half",
    "3/4": "three quarters",
    "2½": "two point five",
    "two and a half": "two point five",
    "10-15": "ten to fifteen",
    "1-2-3": "one hundred twenty three",
    "extension 1, 2, 3, 4.": "extension one thousand two hundred thirty four",
    "dial five zero zero or 5-0-0": "dial five hundred or five hundred",
    "three point one four one": "three point one four one",
    "press 1, 2 or 3": "press one two or three",
    "007": "zero zero seven",
    "B12": "b twelve",
    "M I S D N, mISDN, m-i-s-d-n": "misdn misdn misdn",
    "the N.A.T.O. treaty": "the nato treaty",
    "may a a a a a a a a a go": "may a a a a a a a a a go",
    "-5 degrees": "minus five degrees",
    "30°C": "thirty degrees celsius",
    "100%": "one hundred percent",
    # words
    "bread and butter": "bread and butter",
    "won't, it's John's": "will not it is johns",
    "café Ångström Curaçao Łódź": "cafe angstrom curacao lodz",
    "Hello, Mr. Smith!": "hello mister smith",
    "[Music] hello (sighs)": "hello",
    "um, well": "well",
    "": "",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_normaliser(text):
    pytest.importorskip("num2words", reason="the English normaliser spells numbers with num2words (voxzoo[eval])")
    once = normalise_english(text)
    assert once == ENGLISH[text]
    assert normalise_english(once) == once


def test_spelled_out_and_written_numbers_meet_in_the_middle():
    num2words = pytest.importorskip("num2words").num2words
    for number in [*range(130), 999, 1000, 1100, 1234, 9300, 54321, 100_000, 999_999]:
        spelled = normalise_english(f"we saw {num2words(number)} books")
        assert spelled == normalise_english(f"we saw {number:,} books")
        assert spelled == normalise_english(f"We saw {number} books.")
    for hour in range(1, 13):
        for minute in range(1, 60):
            spoken = f"at {num2words(hour)} {'oh ' if minute < 10 else ''}{num2words(minute)}"
            for written in (f"at {hour}:{minute:02d}", f"at {hour}.{minute:02d}", f"at {hour}{minute:02d}."):
                assert normalise_english(written) == normalise_english(spoken), written
    for day in range(1, 32):
        spoken = normalise_english(f"on august {num2words(day, to='ordinal')} at noon")
        assert spoken == normalise_english(f"on August {day} at noon")


def test_english_normaliser_says_what_it_lacks(monkeypatch):
    from voxzoo.tasks.scoring import normalise as module

    module._num2words.cache_clear()
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert normalise_english("No digits.") == "no digits"
    with pytest.raises(UserError, match=r"pip install voxzoo\[eval\]"):
        normalise_english("5 books")
    module._num2words.cache_clear()


def test_letters_are_never_cut():
    """Joiners are part of a word, marks of layout no space, and Turkish has two letters i."""
    assert normalise("\u0645\u06cc\u200c\u0631\u0648\u0645.", "fas") == "\u0645\u06cc\u200c\u0631\u0648\u0645"
    assert normalise("Do\u00adnau\u200edampf\ufeff", "deu") == "donaudampf"
    assert normalise("down\u00adload it", "en") == "download it"
    assert normalise("ISPARTA \u0130zmir", "tr") == normalise("\u0131sparta izmir", "tur_Latn")
    assert normalise("ISPARTA", "az") != normalise("isparta", "az")
    assert normalise("TITO \u0130", "spa") == normalise("tito i\u0307", "spa")


def test_basic_normaliser_keeps_vowel_signs_and_drops_punctuation():
    assert normalise_basic("¿Cómo está, señor (risas)?") == "cómo está señor"
    assert normalise_basic("नमस्ते, दुनिया!") == "नमस्ते दुनिया"
    assert normalise("ÜBER—alles…", "deu") == "über alles"


def test_cuts_fall_into_silence_and_lose_nothing():
    generator = torch.Generator().manual_seed(0)
    speech = 0.3 * torch.randn(75 * 16000, generator=generator)
    for second in (24, 50):
        speech[second * 16000 : second * 16000 + 8000] = 0
    pieces = list(cut_at_quiet(speech, 16000, 30.0))
    assert torch.equal(torch.cat([piece for _, piece in pieces]), speech)
    assert all(len(piece) <= 30 * 16000 for _, piece in pieces)
    starts = [start / 16000 for start, _ in pieces]
    assert starts[0] == 0
    assert 24 < starts[1] < 24.5
    assert 50 < starts[2] < 50.5
    assert list(cut_at_quiet(torch.zeros(0), 16000)) == []
    assert [len(p) for _, p in cut_at_quiet(torch.ones(16000), 16000, 1.0)] == [16000]


@pytest.mark.parametrize("block", [1000, 16000, 7 * 16000 + 3, 40 * 16000])
def test_cuts_of_blocks_are_those_of_the_whole(block):
    speech = torch.randn(95 * 16000, generator=torch.Generator().manual_seed(1))
    want = list(cut_at_quiet(speech, 16000, 11.0))
    found = list(cut_at_quiet(speech.split(block), 16000, 11.0))
    assert [start for start, _ in found] == [start for start, _ in want]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, want, strict=True))
    assert list(cut_at_quiet(iter([]), 16000)) == []


def test_a_wav_of_parts_is_the_file_that_soundfile_writes(tmp_path):
    wave = 1.5 * torch.randn(20001, generator=torch.Generator().manual_seed(1))
    wave[7] = float("nan")
    write_wav(tmp_path / "whole.wav", wave, 22050)
    write_wav(tmp_path / "parts.wav", wave.split(777), 22050)
    soundfile.write(tmp_path / "peer.wav", wave.nan_to_num(0.0).clamp(-1, 1).numpy(), 22050, subtype="PCM_16")
    whole, parts, peer = ((tmp_path / f"{name}.wav").read_bytes() for name in ("whole", "parts", "peer"))
    assert whole == parts == peer


def test_wav_is_16_bit_and_whole(tmp_path):
    import soundfile

    path = tmp_path / "deep" / "a.wav"
    write_wav(path, torch.tensor([0.0, 0.5, -2.0, float("nan")]), 16000)
    info = soundfile.info(str(path))
    assert (info.subtype, info.samplerate, info.frames) == ("PCM_16", 16000, 4)
    samples, _ = soundfile.read(str(path))
    assert samples == pytest.approx([0.0, 0.5, -1.0, 0.0], abs=1e-4)
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]


def scored(task: str, src: str, tgt: str, reference: str, hypothesis: str, **more) -> Scored:
    return Scored(f"{task}-{src}-{reference}", task, src, tgt, reference, hypothesis, **more)


def test_scores_of_translation_and_of_recognition():
    rows = [
        scored("s2tt", "spa", "eng", f"The train to Peru leaves at {n}.", f"The train to Peru leaves at {n}.")
        for n in range(9)
    ]
    found = score_rows(rows)
    assert found["bleu"] == pytest.approx(100)
    assert found["intervals"]["bleu"] == pytest.approx([100, 100])
    assert "tok:13a" in found["signatures"]["bleu"]
    heard = score_rows(
        [scored("asr", "spa", "spa", "Hola, mundo", "hola mundo"), scored("asr", "spa", "spa", "uno dos", "uno")]
    )
    assert heard["wer"] == 25.0
    assert heard["signatures"]["wer"].startswith("norm:basic")
    assert "bleu" not in heard


def test_several_directions_are_scored_apart_and_averaged():
    good = [scored("s2tt", "spa", "eng", "one two three four five", "one two three four five")]
    bad = [scored("s2tt", "fra", "eng", "one two three four five", "none of it is here")]
    found = score_rows(good + bad)
    assert found["directions"]["spa-eng"]["bleu"] == pytest.approx(100)
    assert found["bleu"] == pytest.approx((100 + found["directions"]["fra-eng"]["bleu"]) / 2)
    assert found["num_utterances"] == 2


def test_speech_is_judged_relative_to_its_ceiling():
    rows = []
    for n in range(20):
        reference = f"the train leaves at {n + 1} with many people on board"
        heard = reference if n % 2 else "something else was said"
        rows.append(
            scored(
                "s2st", "spa", "eng", reference, reference, duration=2.0, reference_duration=1.0 if n % 2 else 4.0,
                silent=n == 0, clipped=False, heard=heard, heard_reference=reference.upper() + ".",
                heard_resynthesis=reference,
            )
        )  # fmt: skip
    found = score_rows(rows, recogniser="whisper:x")
    assert found["asr_bleu_ceiling"] == pytest.approx(100)
    assert found["asr_bleu_resynthesis"] == pytest.approx(100)
    assert found["asr_bleu"] < 80
    assert found["asr_bleu_ratio"] == pytest.approx(found["asr_bleu"] / 100)
    assert found["intervals"]["asr_bleu_ratio"][0] < found["asr_bleu_ratio"] < found["intervals"]["asr_bleu_ratio"][1]
    assert found["duration_ratio"] == pytest.approx((2.0 + 0.5) / 2)
    assert (found["silent"], found["clipped"]) == (1, 0)
    assert "whisper:x" in found["signatures"]["asr_bleu"]
    assert "case:lc" in found["signatures"]["asr_bleu"]


def test_scores_of_text_need_no_torch():
    code = "import sys, voxzoo.tasks.scoring.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
