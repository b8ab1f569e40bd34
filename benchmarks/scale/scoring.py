"""Rows about scores: scoring alone, and `evaluate` of text."""

from __future__ import annotations

import json
import random
from pathlib import Path

from .data import tiny_run
from .process import Work, apart
from .row import Costs, Row

_MB = 1e6


def score(sentences: int, folder: Path) -> Costs:
    cost = apart("scoring:scored", sentences, folder)
    return {"CPU s": cost["cpu"], "private MB": cost["peak"] / _MB}


def scored(sentences: int, _: Path) -> Work:
    """BLEU and chrF with their intervals, as `evaluate` gives them; twenty words a sentence."""
    from voxzoo.tasks.scoring.evaluation import Scored, score_rows

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    rows = []
    for number in range(sentences):
        reference = draw.choices(words, k=20)
        hypothesis = [word if draw.random() < 0.8 else draw.choice(words) for word in reference]
        texts = {"reference": " ".join(reference), "hypothesis": " ".join(hypothesis)}
        rows.append(Scored(id=str(number), task="t2tt", src_lang="spa", tgt_lang="eng", **texts))

    def work() -> None:
        score_rows(rows)

    return work


def evaluate(rows: int, folder: Path) -> Costs:
    text = ("task=text_to_text", "text_seq2seq=tiny", "tokenizer=tiny", "data.tasks={s2tt: false, t2tt: true}")
    tiny_run(folder, *text)
    cost = apart("scoring:evaluated", rows, folder)
    return {"CPU ms a row": 1000 * cost["cpu"] / rows, "CPU s": cost["cpu"]}


def evaluated(rows: int, folder: Path) -> Work:
    import lightning  # noqa: F401
    from voxzoo.tasks import evaluate_run

    draw = random.Random(0)
    words = ["uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez"]
    with (folder / "text.jsonl").open("w") as file:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=6))
            row = {"id": str(number), "src_lang": "spa", "tgt_lang": "eng", "src_text": text, "tgt_text": text}
            file.write(json.dumps(row) + "\n")
    options = {"manifest": str(folder / "text.jsonl"), "task": "t2tt", "recogniser": "none", "device": "cpu", "beam": 1}
    run = folder / "runs" / "tiny"
    evaluate_run(run, limit=2, **options)

    def work() -> None:
        evaluate_run(run, **options)

    return work


ROWS = (
    Row("score", "G8 scoring", score, "sentences", (1000, 4000, 16_000), (6250, 25_000, 100_000), 100_000,
        {"CPU s": 25, "private MB": 500}),
    Row("evaluate", "G9 evaluate, text alone", evaluate, "rows", (64, 128, 256), (500, 1000, 2000), 2000),
)  # fmt: skip
