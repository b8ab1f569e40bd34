"""Scores across speakers, gaps between groups and added toxicity beside plain computations."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from voxzoo.components.errors import UserError
from voxzoo.tasks.scoring.care import (
    WordList,
    across_speakers,
    added_toxicity,
    gap_between_groups,
    read_word_lists,
)
from voxzoo.tasks.scoring.evaluation import Care, Scored, compare_rows, score_rows
from voxzoo.tasks.scoring.text import Bleu, ErrorRate

WORDS = ["the", "train", "to", "Peru", "leaves", "at", "ten", "and", "costs", "nine", "euros", "today"]


def corpus(count: int, noise: float = 0.3, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(count)]
    return [
        " ".join(w if rng.random() > noise else rng.choice(WORDS) for w in r.split()) for r in references
    ], references


def test_coefvar_is_the_mean_of_deviation_over_mean_of_each_content():
    hypotheses, references = corpus(12)
    contents = ["a", "b ", "a", "c", "b", "a", "d", "d", "e", "e", "f", "a"]
    hypotheses[8], hypotheses[9] = "", ""  # a mean of 0 has no ratio
    scores = [CHRF().sentence_score(h, [r]).score for h, r in zip(hypotheses, references, strict=True)]
    groups: dict[str, list[float]] = {}
    for content, score in zip(contents, scores, strict=True):
        groups.setdefault(content.strip(), []).append(score)
    ratios = [np.std(v, ddof=1) / np.mean(v) for v in groups.values() if len(v) > 1 and np.mean(v) > 0]
    found = across_speakers(hypotheses, references, contents)
    assert found["chrf_ms"] == pytest.approx(np.mean([np.mean(v) for v in groups.values()]))
    assert found["coef_var_ms"] == pytest.approx(np.mean(ratios))
    assert (found["num_contents"], found["num_repeated"]) == (6, 3)
    assert across_speakers(hypotheses, references, list(map(str, range(12))))["coef_var_ms"] is None


@pytest.mark.parametrize("metric", [Bleu(), ErrorRate()])
def test_a_gap_is_that_of_the_best_and_the_worst_group(metric):
    good, references = corpus(60, 0.1)
    bad, _ = corpus(60, 0.6)
    labels = ["f" if n % 2 else "m" for n in range(60)]
    labels[0] = "x"  # too few to be compared
    hypotheses = [g if label == "f" else b for g, b, label in zip(good, bad, labels, strict=True)]
    found = gap_between_groups(metric, hypotheses, references, labels)
    pairs = {
        label: [(h, r) for h, r, each in zip(hypotheses, references, labels, strict=True) if each == label]
        for label in "fm"
    }
    if metric.name == "bleu":
        alone = {k: BLEU().corpus_score([h for h, _ in v], [[r for _, r in v]]).score for k, v in pairs.items()}
        assert found["groups"]["f"]["score"] == alone["f"]
        assert found["gap"] == pytest.approx(alone["f"] - alone["m"])
    assert (found["best"], found["worst"]) == ("f", "m")
    assert 0 < found["gap_low"] < found["gap"] < found["gap_high"]
    assert {k: v["num_utterances"] for k, v in found["groups"].items()} == {"f": 30, "m": 29, "x": 1}


def test_groups_that_do_not_differ_have_a_gap_around_nothing():
    hypotheses, references = corpus(200)
    found = gap_between_groups(ErrorRate(), hypotheses, references, ["a", "b"] * 100)
    assert found["gap_low"] < 0 < found["gap_high"]


def test_too_few_utterances_make_no_gap():
    hypotheses, references = corpus(12)
    found = gap_between_groups(ErrorRate(), hypotheses, references, ["a"] * 11 + ["b"])
    assert (found["gap"], found["best"]) == (None, None)


ENGLISH = WordList("eng", ("darn", "holy cow", "क्या"))
SPANISH = WordList("spa", ("caramba",))


@pytest.mark.parametrize(
    ("source", "output", "found"),
    [
        ("hola", "oh DARN, it!", ["darn"]),
        ("hola", "darned", []),
        ("hola", "a holy, cow", ["holy cow"]),
        ("¡Caramba!", "darn", []),
        ("hola", "", []),
        ("", "darn", None),
        ("hola", "holycow क्या?", ["क्या"]),
    ],
)
def test_words_are_whole_and_added(source, output, found):
    assert added_toxicity([ENGLISH, SPANISH], "es", source, "en", output) == found


def test_languages_without_spaces_are_searched_anywhere_and_without_a_list_nothing_is_judged():
    japanese = WordList("jpn", ("馬鹿",))
    assert added_toxicity([japanese, SPANISH], "spa", "hola", "jpn", "この馬鹿者") == ["馬鹿"]
    assert added_toxicity([japanese], "spa", "hola", "jpn", "この馬鹿者") is None


def test_lists_are_read_by_lines(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffDarn!\r\n\nholy  cow\ndarn\n".encode())
    (words,) = read_word_lists({"en": str(path)})
    assert (words.lang, words.entries) == ("eng", ("darn", "holy cow"))
    assert words.signature.startswith("list:eng|entries:2|sha256:")
    path.write_text("...\n")
    with pytest.raises(UserError, match="holds no words"):
        read_word_lists({"eng": str(path)})
    with pytest.raises(UserError, match=r"--toxicity eng=no\.txt: no such file"):
        read_word_lists({"eng": "no.txt"})
    path.write_text("a\n")
    with pytest.raises(UserError, match="--toxicity xx9="):
        read_word_lists({"xx9": str(path)})


def rows(hypotheses: list[str], references: list[str], task: str = "s2tt") -> list[Scored]:
    return [
        Scored(f"u{n:03}", task, "spa", "eng", r, h, src_text=f"frase {n // 2}", speaker="ab"[n % 2])
        for n, (h, r) in enumerate(zip(hypotheses, references, strict=True))
    ]


def test_what_is_asked_beside_the_scores_stands_among_them():
    hypotheses, references = corpus(40)
    hypotheses[3] += " darn"
    hypotheses[4] += " holy cow"
    scored = rows(hypotheses, references)
    scored[4].src_text = "caramba"
    labels = {"gender": {row.id: "fm"[n % 2] for n, row in enumerate(scored[:30])}}
    found = score_rows(scored, care=Care(True, labels, [ENGLISH, SPANISH]))
    assert found["added_toxicity"] == pytest.approx(100 / 40)
    assert found["intervals"]["added_toxicity"][0] == 0
    assert found["signatures"]["added_toxicity"] == ENGLISH.signature
    assert (scored[3].line()["toxic"], scored[4].line()["toxic"]) == (["darn"], [])
    assert "src_text" not in scored[3].line()
    plain = across_speakers(hypotheses, references, [row.src_text for row in scored])
    assert (found["coef_var_ms"], found["chrf_ms"]) == (plain["coef_var_ms"], plain["chrf_ms"])
    gap = found["gaps"]["gender"]["bleu"]
    assert {k: v["num_utterances"] for k, v in gap["groups"].items()} == {"(none)": 10, "f": 15, "m": 15}
    assert gap["signature"] == found["signatures"]["bleu"]
    assert not {"gaps", "coef_var_ms", "added_toxicity"} & score_rows(rows(hypotheses, references)).keys()


def test_a_condition_is_compared_on_what_both_sides_have():
    good, references = corpus(50, 0.1)
    bad, _ = corpus(50, 0.5)
    found = compare_rows(rows(bad, references)[5:], list(reversed(rows(good, references)[:45])))
    want = [BLEU().corpus_score(side[5:45], [references[5:45]]).score for side in (bad, good)]
    assert (found["bleu"]["score"], found["bleu"]["plain"]) == pytest.approx(want)
    assert found["bleu"]["difference"] == pytest.approx(want[0] - want[1])
    assert found["bleu"]["low"] < found["bleu"]["difference"] < found["bleu"]["high"] < 0
    assert found["bleu"]["p_value"] < 0.01
    mixed = [rows(side, references) for side in (bad, good)]
    for side in mixed:
        for row in side[:25]:
            row.src_lang = "fra"
    assert set(compare_rows(*mixed)["bleu"]) == {"score", "plain", "difference"}
