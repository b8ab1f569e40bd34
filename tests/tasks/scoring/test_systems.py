"""`voxzoo score` beside the command lines of sacrebleu and jiwer, and files that are matched by id or refused."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from voxzoo.components.errors import UserError
from voxzoo.datamodules.selection import LONGEST_TEXT, MOST_CHARACTERS
from voxzoo.tasks.commands import cli
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.scoring.outputs import LONGEST, matched, read_rows
from voxzoo.tasks.scoring.systems import Normaliser, files_of_systems, read_corpus

WORDS = [
    "the", "The", "train", "to", "Peru", "leaves", "on", "15th", "August,", "at", "10:15", ".", "costs", "(really)",
    "9,300", "!", "no-one's", "café", "¿qué?", "l’été", "“so”",
]  # fmt: skip


def sentences(seed: int, noise: float, count: int = 50) -> list[str]:
    rng = random.Random(0)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(2, 14))) for _ in range(count)]
    rng = random.Random(seed)
    return [" ".join(w if rng.random() > noise else rng.choice(WORDS) for w in r.split()) for r in references]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """ref.txt, a.txt and b.txt; the same as .tsv and .jsonl with ids."""
    monkeypatch.chdir(tmp_path)
    references = sentences(0, 0.0)
    for name, texts in {"ref": references, "a": sentences(1, 0.3), "b": sentences(2, 0.4)}.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
        rows = [{"id": f"u{n}", "text": text, "gender": "fm"[n % 2]} for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = ["id\ttext\tgender", *("\t".join(row.values()) for row in rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def score(*words: str) -> dict:
    """What `voxzoo score --json` prints."""
    arguments = cli._parse(cli._parser("score"), ["score", *words, "--json"])
    return json.loads(json.dumps(cli._module("score").run(arguments)))


def peer(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True)
    return done.stdout


SACREBLEU = {"bleu": ["bleu"], "chrf2": ["chrf"], "chrf2++": ["chrf", "--chrf-word-order", "2"], "ter": ["ter"]}


def normalised(folder: Path) -> None:
    """As the authors of GMU's systems at IWSLT 2025 say that they do it: no punctuation, then lower case."""
    for name in ("ref", "a", "b"):
        text = (folder / f"{name}.txt").read_text()
        plain = "".join(one for one in text if not unicodedata.category(one).startswith("P")).lower()
        (folder / f"{name}.iwslt.txt").write_text(plain)


@pytest.mark.parametrize("normalise", ["none", "iwslt"])
@pytest.mark.parametrize("name", SACREBLEU)
def test_scores_intervals_and_signatures_are_those_that_sacrebleu_prints(folder, name, normalise):
    how = ["--normalise", normalise, "--metrics", name]
    found = score("a.jsonl", "--reference", "ref.tsv", *how, "--resamples", "200")
    metric = found["metrics"][name]
    words, end, prefix = SACREBLEU[name], "", ""
    if normalise == "iwslt":
        normalised(folder)
        end, prefix = ".iwslt", "norm:iwslt|"
        words = [*words, *{"bleu": ["-lc"], "ter": []}.get(name, ["--chrf-lowercase"])]
    printed = json.loads(
        peer("sacrebleu", f"ref{end}.txt", "-i", f"a{end}.txt", "-m", *words, "-ci", "-cin", "200", "-w", "9")
    )
    row = metric["systems"]["a.jsonl"]
    assert metric["signature"] == prefix + printed["signature"]
    assert f"{row['score']:.9f}" == f"{printed['score']:.9f}"
    assert f"{row['mean']:.9f}" == f"{printed['confidence_mean']:.9f}"
    assert f"{row['half_width']:.9f}" == f"{printed['confidence_var']:.9f}"
    plain = score("a.txt", "--reference", "ref.txt", *how, "--resamples", "0")
    assert "bs:" not in plain["metrics"][name]["signature"]
    assert plain["metrics"][name]["systems"]["a.txt"]["score"] == row["score"]
    assert "half_width" in row


METRICS = ("--metrics", "bleu,ter")


@pytest.mark.parametrize(
    ("words", "key"), [(["-par", "-parn", "500"], "randomisation"), (["-pbs", "-pbsn", "200"], "bootstrap")]
)
def test_paired_tests_are_those_that_sacrebleu_prints(folder, words, key):
    found = score("a.txt", "b.txt", "--reference", "ref.txt", "--trials", "500", "--resamples", "200", *METRICS)
    printed = peer("sacrebleu", "ref.txt", "-i", "a.txt", "b.txt", "-m", "bleu", "ter", *words, "-w", "4", "-f", "text")
    for name, label in (("bleu", "BLEU"), ("ter", "TER")):
        metric = found["metrics"][name]
        row = metric["systems"]["b.txt"]
        assert f"(p = {row[f'p_{key}_sacrebleu']:.4f})" in printed
        assert f"{row['score']:.4f}" in printed
        if key == "bootstrap":
            assert f"({row['mean']:.4f} ± {row['half_width']:.4f})" in printed
        signature = metric["signature_randomisation" if key == "randomisation" else "signature"]
        assert re.search(rf"- {label} +{re.escape(signature)}$", printed, re.MULTILINE)


@pytest.mark.parametrize("normalise", ["none", "iwslt"])
@pytest.mark.parametrize(("name", "words"), [("wer", []), ("cer", ["-c"])])
def test_error_rates_are_those_that_jiwer_prints(folder, name, words, normalise):
    normalised(folder)
    end = ".iwslt" if normalise == "iwslt" else ""
    how = ["--normalise", normalise, "--metrics", name]
    found = score("a.tsv", "--reference", "ref.jsonl", *how)["metrics"][name]
    row = found["systems"]["a.tsv"]
    printed = peer("jiwer.cli", "-r", f"ref{end}.txt", "-h", f"a{end}.txt", *words)
    assert repr(row["errors"] / row["length"]) == printed.strip()
    assert row["score"] == pytest.approx(100 * float(printed), rel=1e-15)
    assert found["signature"].startswith(f"{'norm:iwslt|' if end else ''}{name}|unit:")
    assert f"|jiwer:{version('jiwer')}|" in found["signature"]


def test_white_space_inside_a_sentence_is_as_jiwer_takes_it(folder):
    (folder / "r.txt").write_text("a  b c\nd e\tf\n")
    (folder / "h.txt").write_text("a b  c\nd e f\n")
    found = score("h.txt", "--reference", "r.txt", "--metrics", "wer,cer")["metrics"]
    for name, words in (("wer", []), ("cer", ["-c"])):
        row = found[name]["systems"]["h.txt"]
        assert repr(row["errors"] / row["length"]) == peer("jiwer.cli", "-r", "r.txt", "-h", "h.txt", *words).strip()


def test_sentences_of_one_character_count_though_the_command_line_of_jiwer_leaves_them_out(folder):
    (folder / "r.txt").write_text("a b\n.\nc d e\n")
    (folder / "h.txt").write_text("a b\n!\nc d\n")
    row = score("h.txt", "--reference", "r.txt", "--metrics", "wer")["metrics"]["wer"]["systems"]["h.txt"]
    assert (row["errors"], row["length"]) == (2, 6)
    assert peer("jiwer.cli", "-r", "r.txt", "-h", "h.txt").strip() == repr(1 / 5)


def test_what_iwslt_keeps_is_in_the_signature():
    keeping = Normaliser("iwslt", keep="'")
    assert keeping("L'Été, c'est -- bon!") == "l'été c'est  bon"
    assert keeping.prefix == "norm:iwslt[keep:']|"
    assert Normaliser("iwslt")("Ça va?") == "ça va"


def test_groups_are_scored_as_if_they_were_alone(folder):
    found = score("a.jsonl", "b.jsonl", "--reference", "ref.tsv", "--by", "gender", "--metrics", "bleu,wer")
    assert list(found["groups"]["gender"]) == ["f", "m"]
    hypotheses, references = ((folder / f"{name}.txt").read_text().splitlines() for name in ("a", "ref"))
    group = found["groups"]["gender"]["m"]
    assert group["num_utterances"] == 25
    want = BLEU().corpus_score(hypotheses[1::2], [references[1::2]]).score
    assert group["metrics"]["bleu"]["a.jsonl"]["score"] == want
    (folder / "who.tsv").write_text("id\taccent\n" + "".join(f"u{n}\t{n % 3 or ''}\n" for n in range(50)))
    found = score("a.jsonl", "--reference", "ref.tsv", "--by", "accent,gender", "--manifest", "who.tsv")  # fmt: skip
    assert {value: each["num_utterances"] for value, each in found["groups"]["accent"].items()} == {
        "(none)": 17, "1": 17, "2": 16,
    }  # fmt: skip


def test_hypotheses_of_evaluate_bring_their_references(folder):
    texts = zip(sentences(1, 0.3), sentences(0, 0.0), strict=True)
    rows = [
        {"id": f"u{n}", "task": "s2tt", "tgt_lang": "jpn", "reference": r if n else "", "hypothesis": h}
        for n, (h, r) in enumerate(texts)
    ]
    translated = list(rows)
    rows.append({"id": "u1", "task": "asr", "tgt_lang": "jpn", "reference": "so", "hypothesis": "so"})
    (folder / "t.hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score("t.hypotheses.jsonl", "--task", "s2tt")
    assert found["num_utterances"] == 49
    assert found["notes"] == ["1 without a reference left out: u0"]
    assert "tok:char" in found["metrics"]["bleu"]["signature"]
    beside = score("t.hypotheses.jsonl", "b.jsonl", "--task", "s2tt", "--metrics", "wer")  # which has no references
    want = score("b.jsonl", "--reference", "t.hypotheses.jsonl", "--task", "s2tt", "--metrics", "wer")
    rows = [each["metrics"]["wer"]["systems"]["b.jsonl"] for each in (beside, want)]
    assert rows[0]["errors"] == rows[1]["errors"]
    with pytest.raises(UserError, match=r"rows of several tasks \(s2tt, asr\): choose one by --task"):
        read_corpus(["t.hypotheses.jsonl"])
    other = [{**row, "reference": row["reference"] + "!"} for row in translated]
    (folder / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    with pytest.raises(UserError, match=r"o\.jsonl: another reference of 'u0' than t\.hyp"):
        read_corpus(["t.hypotheses.jsonl", "o.jsonl"], task="s2tt")


def seeds_of(folder: Path, system: str, noise: float, task: str = "s2tt") -> list[str]:
    """Hypotheses files of three seeds, as `voxzoo evaluate` writes them, in an order of their own each."""
    paths = []
    for seed in range(3):
        path = folder / f"{system}{seed}.hypotheses.jsonl"
        texts = zip(sentences(0, 0.0), sentences(10 * seed + len(system), noise + 0.02 * seed), strict=True)
        rows = [
            {"id": f"u{n}", "task": task, "src_lang": "spa", "tgt_lang": "eng", "reference": r, "hypothesis": h}
            for n, (r, h) in enumerate(texts)
        ]
        random.Random(seed).shuffle(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path.name)
    return paths


def test_seeds_of_a_system_are_compared_as_ablate_compares_them(folder):
    """The same hypotheses as runs of an ablation and as files: each number that ablate has is the one of score."""
    from voxzoo.tasks.ablation.results import Run, compare, read_hypotheses

    files = {"conformer": seeds_of(folder, "conformer", 0.3), "none": seeds_of(folder, "none", 0.45)}
    runs = {
        name: [Run(name, str(n), rows=read_hypotheses(Path(p))) for n, p in enumerate(own)]
        for name, own in files.items()
    }
    want = compare(runs, "conformer")["scores"]["bleu"]["systems"]
    words = [f"{name}={path}" for name, own in files.items() for path in own]
    found = score(*words, "--metrics", "bleu")["metrics"]["bleu"]
    assert list(found["systems"]) == ["conformer", "none"]
    assert found["systems"] == want
    row = found["systems"]["none"]
    assert (row["num_runs"], row["p_randomisation"], row["mean"]) == (3, None, None)
    assert row["spread"] > 0
    assert row["p_bootstrap_holm"] < 0.05
    assert found["signature_randomisation"] is None
    other = score(*words, "--metrics", "bleu", "--base", "none")["metrics"]["bleu"]["systems"]["conformer"]
    assert other["difference"] == pytest.approx(-row["difference"])


def test_one_run_and_several_stand_in_one_table(folder, capsys):
    several = [f"ours={path}" for path in seeds_of(folder, "ours", 0.3)]
    words = [*several, "theirs=b.tsv", "a.tsv", "--base", "a.tsv", "--metrics", "bleu,wer", "--by", "gender"]
    found = score(*words)
    rows = found["metrics"]["wer"]["systems"]
    assert {name: row["num_runs"] for name, row in rows.items()} == {"ours": 3, "theirs": 1, "a.tsv": 1}
    singles = [score(word.partition("=")[2], "--metrics", "wer")["metrics"]["wer"]["systems"] for word in several]
    alone = [next(iter(one.values())) for one in singles]
    assert rows["ours"]["score"] == pytest.approx(sum(one["score"] for one in alone) / 3)
    assert "errors" not in rows["ours"]
    assert rows["theirs"]["errors"] > 0
    assert rows["theirs"]["p_randomisation"] is not None
    assert rows["ours"]["p_randomisation"] is None
    assert found["metrics"]["wer"]["signature_randomisation"]
    assert found["groups"]["gender"]["f"]["metrics"]["bleu"]["ours"]["num_runs"] == 3
    assert main(["score", *words]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"ours +3 +[\d.]+ ", shown)
    assert "paired bootstrap over runs and utterances" in shown
    assert main(["score", *words, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["num_runs"] for row in table[:3]] == ["3", "1", "1"]
    assert main(["score", *words, "--format", "markdown"]) == 0
    assert "several runs" in capsys.readouterr().out


def test_a_text_that_is_no_sentence_is_refused(tmp_path, monkeypatch):
    assert LONGEST == MOST_CHARACTERS * LONGEST_TEXT
    monkeypatch.chdir(tmp_path)
    Path("l.txt").write_text(f"one\n{'a ' * (LONGEST // 2)}bc\n")
    # White space at the end is left off before it is counted.
    Path("h.txt").write_text(f"one\n{'a ' * (LONGEST // 2)}   \n")
    said = r"l\.txt, line 2: a text of 131,074 characters; at most 131,072 are scored"
    for words in (["l.txt", "h.txt"], ["h.txt", "l.txt"]):
        with pytest.raises(UserError, match=said):
            read_corpus(words[:1], words[1])
    assert score("h.txt", "--reference", "h.txt", "--metrics", "bleu,wer", "--resamples", "0")["num_utterances"] == 2
    with pytest.raises(UserError, match=r"h\.txt: '2' has 65,536 words, and TER is of 4,096 at most; leave it out"):
        score("h.txt", "--reference", "h.txt")
    rows = [{"id": "a", "text": "x" * (LONGEST + 1)}]
    Path("l.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match=r"l\.jsonl, line 1: a text of 131,073 characters"):
        read_corpus(["l.jsonl"], "l.jsonl")


def test_a_file_whose_name_has_the_sign_is_a_file(folder):
    (folder / "lr=0.1.txt").write_text((folder / "a.txt").read_text())
    assert files_of_systems(["lr=0.1.txt", "b=b.txt", "runs/lr=0.1/x.txt", "b=a.txt"]) == {
        "lr=0.1.txt": ["lr=0.1.txt"], "b": ["b.txt", "a.txt"], "runs/lr=0.1/x.txt": ["runs/lr=0.1/x.txt"],
    }  # fmt: skip


TSV = "id\ttext\nu0\tone two\nu1\tthree\nu2\tfour\n"

MATCHED: dict[str, tuple[str, bytes, list[str]]] = {
    "reordered": ("h.tsv", b"id\ttext\nu2\tfour\nu0\tone two\nu1\tthree\n", ["one two", "three", "four"]),
    "columns in another order": ("h.tsv", b"text\tid\nfour\tu2\none\tu0\nx\tu1\n", ["one", "x", "four"]),
    "CRLF": ("h.tsv", TSV.replace("\n", "\r\n").encode(), ["one two", "three", "four"]),
    "BOM before a header": ("h.tsv", b"\xef\xbb\xbf" + TSV.encode(), ["one two", "three", "four"]),
    "BOM before JSON": ("h.jsonl", b'\xef\xbb\xbf{"id": "u0", "text": "a"}\n{"id": "u1", "text": "b"}\n'
                        b'{"id": "u2", "text": "c"}\n', ["a", "b", "c"]),
    "BOM before text": ("h.txt", b"\xef\xbb\xbfone\ntwo\nthree\n", ["one", "two", "three"]),
    "CRLF in text": ("h.txt", b"one\r\ntwo\r\nthree\r\n", ["one", "two", "three"]),
    "no line end at the end": ("h.txt", b"one\ntwo\nthree", ["one", "two", "three"]),
    "an empty line": ("h.txt", b"one\n\nthree\n", ["one", "", "three"]),
    "an empty column": ("h.tsv", b"id\ttext\nu0\t\nu1\tx\nu2\ty\n", ["", "x", "y"]),
    "line ends of Unicode": ("h.txt", "one\u2028two\x0bthree\x85\x1cfour\nb\nc\n".encode(),
                             ["one\u2028two\x0bthree\x85\x1cfour", "b", "c"]),
    "U+2028 in JSON": ("h.jsonl", '{"id": "u0", "text": "a\u2028b"}\n{"id": "u1", "text": "b"}\n'
                       '{"id": "u2", "text": "c\\u2028d\\ne"}\n'.encode(), ["a\u2028b", "b", "c\u2028d e"]),
    "a lone CR": ("h.txt", b"one\rtwo\nb\nc\n", ["one two", "b", "c"]),
    "ids that are numbers": ("h.jsonl", b'{"id": 2, "text": "c"}\n{"id": 0, "text": "a"}\n{"id": "1", "text": "b"}\n',
                             ["a", "b", "c"]),
    "quotes": ("h.tsv", b'id\ttext\nu0\t"one\nu1\t"two"\nu2\t3\n', ['"one', '"two"', "3"]),
    "utt_id and empty lines": ("h.tsv", b"utt_id\ttext\n\nu0\ta\nu1\tb\n\nu2\tc\n\n", ["a", "b", "c"]),
}  # fmt: skip

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "missing": ("h.tsv", b"id\ttext\nu0\ta\n", r"h.tsv: 2 ids of ref.tsv missing: u1, u2\. Scores are of the same"),
    "extra": ("h.tsv", TSV.encode() + b"u7\tseven\n", "h.tsv: 1 id not in ref.tsv: u7"),
    "doubled": ("h.tsv", TSV.encode() + b"u1\tagain\n", "h.tsv: 1 id used more than once: u1"),
    "a column too many": ("h.tsv", b"id\ttext\nu0\ta\tb\n", "h.tsv, line 2: 3 columns where the header has 2"),
    "a column too few": ("h.tsv", b"id\ttext\nu0\n", "h.tsv, line 2: 1 columns where the header has 2"),
    "a doubled column": ("h.tsv", b"id\ttext\ttext\nu0\ta\tb\n", "line 1: the header has column 'text' twice"),
    "no header": ("h.tsv", b"u0\ta\nu1\tb\nu2\tc\n", "line 1: the header has no column 'id'; it has 'u0', 'a'"),
    "no text": ("h.tsv", b"id\tsaid\nu0\ta\nu1\tb\nu2\tc\n", "no field 'hypothesis' or 'translation' or 'text'"),
    "NUL": ("h.txt", b"one\ntw\0o\nthree\n", "h.txt, line 2: has a NUL byte"),
    "NUL in JSON": ("h.jsonl", b'{"id": "u0", "text": "a\\u0000"}\n{"id": "u1", "text": "b"}\n'
                    b'{"id": "u2", "text": "c"}\n', "h.jsonl, line 1, text: has a NUL character"),
    "UTF-16": ("h.txt", "one\ntwo\nthree\n".encode("utf-16"), "h.txt, line 1: not UTF-8 text: byte 0xff at column 1"),
    "latin-1": ("h.txt", "one\ndeux\nété\n".encode("latin-1"), "h.txt, line 3: not UTF-8 text: byte 0xe9 at column 1"),
    "a line too few": ("h.txt", b"one\ntwo\n", "h.txt has 2 lines and ref.tsv 3: plain text is matched by line"),
    "an empty line at the end": ("h.txt", b"one\ntwo\nthree\n\n", "The last line of h.txt is empty: does it stand"),
    "line ends of old Macs": ("h.txt", b"one\rtwo\rthree\r", "h.txt has 1 lines and ref.tsv 3"),
    "broken JSON": ("h.jsonl", b'{"id": "u0", "text": "a"}\n{"id": "u1", \n', "h.jsonl, line 2: not JSON"),
    "a list": ("h.jsonl", b'["u0", "a"]\n', "h.jsonl, line 1: expected a JSON object, got list"),
    "no id": ("h.jsonl", b'{"text": "a"}\n', "h.jsonl, line 1: no id; the row has text"),
    "an id that is no name": ("h.jsonl", b'{"id": null, "text": "a"}\n', "line 1, id: None: expected a name"),
    "ids that are the same name": ("h.jsonl", b'{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', "than once: 1"),
    "null": ("h.jsonl", b'{"id": "u0", "text": null}\n{"id": "u1", "text": "b"}\n{"id": "u2", "text": "c"}\n',
             "h.jsonl, line 1, text of 'u0': expected text, got None"),
    "a text that is missing": ("h.jsonl", b'{"id": "u0", "text": "a"}\n{"id": "u1"}\n{"id": "u2", "text": "c"}\n',
                               "h.jsonl, line 2, text of 'u1': missing"),
    "an empty file": ("h.txt", b"", "h.txt: empty"),
    "a header alone": ("h.tsv", b"id\ttext\n", "h.tsv: empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", MATCHED)
def test_files_that_are_matched(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, content, texts = MATCHED[name]
    reference = TSV.replace("\nu", "\n") if "numbers" in name else TSV
    Path("ref.tsv").write_text(reference)
    Path(file).write_bytes(content)
    corpus = read_corpus([file], "ref.tsv")
    assert corpus.references == ["one two", "three", "four"]
    assert corpus.systems == {file: [texts]}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, content, message = REFUSED[name]
    Path("ref.tsv").write_text(TSV)
    Path(file).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_corpus([file], "ref.tsv")
    assert "\n" not in str(raised.value)
    assert main(["score", file, "--reference", "ref.tsv"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


TO_REF = ("--reference", "ref.txt")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_corpus(["a.txt", "a.txt"], "ref.txt"), "a.txt: given twice"),
        (lambda: read_corpus(["x=a.txt", "y=a.txt"], "ref.txt"), "a.txt: given twice: each run of a system has a file"),
        (lambda: read_corpus(["x="], "ref.txt"), r"x=: expected FILE or NAME=FILE"),
        (lambda: read_corpus(["=a.txt"], "ref.txt"), r"=a\.txt: expected FILE or NAME=FILE"),
        (lambda: read_corpus(["x=a.txt", "x=no.txt"], "ref.txt"), "no.txt: no such file"),
        (lambda: read_corpus(["a.txt"]), "a.txt: has no references: give them by --ref"),
        (lambda: read_corpus(["a.tsv"]), "a.tsv: has no references: give them by --ref"),
        (lambda: read_corpus(["no.txt"], "ref.txt"), "no.txt: no such file"),
        (lambda: read_corpus(["."], "ref.txt"), "a folder; expected a file"),
        (
            lambda: read_corpus(["a.tsv"], "ref.tsv", by=["accent"]),
            "--by accent: no row has this field; there are id, t",
        ),
        (lambda: read_corpus(["a.tsv"], "ref.tsv", field="said"), "no field 'said'; the rows have id, text, gender"),
        (lambda: read_corpus(["a.txt"], "ref.txt", by=["g"], manifest="ref.tsv"), "matched by id, and plain text has"),
        (lambda: score("a.txt", "b.txt", *TO_REF, "--base", "x"), "--base x: no such system; there are a.txt"),
        (
            lambda: score("a.txt", "b.txt", *TO_REF, "--metrics", "blue"),
            "--metrics blue: no such score; there are bleu, chrf2",
        ),
        (lambda: score("a.txt", "b.txt", *TO_REF, "--resamples", "1"), "--resamples 1: expected at least 2"),
    ],
)
def test_calls_that_are_refused(call: Callable[[], object], message: str, folder):
    with pytest.raises(UserError, match=message):
        call()


def test_tables_of_all_forms_hold_the_scores(folder, capsys):
    words = ["score", "a.txt", "b.txt", "--reference", "ref.tsv", "--by", "gender", "--metrics", "bleu,ter"]
    want = score(*words[1:])
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{want['metrics']['bleu']['systems']['b.txt']['score']:.2f}" in shown
    assert want["metrics"]["ter"]["signature"] in shown
    assert main([*words, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2 * 2 * 3
    assert float(rows[1]["score"]) == want["metrics"]["bleu"]["systems"]["b.txt"]["score"]
    assert rows[0]["p_bootstrap"] == ""
    assert main([*words, "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| system | BLEU | TER |"
    assert {line.count("|") for line in lines[:4]} == {4}


def test_a_name_or_value_from_a_file_cannot_move_the_terminal(folder, capsys):
    rows = [{"id": f"u{n}", "text": "x", "gender": "\x1b[2J[red]"} for n in range(50)]
    (folder / "evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "evil.jsonl", "--reference", "ref.txt", "--by", "gender", "--metrics", "wer"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "[red]" in shown
    doubled = [*rows, {"id": "u\x1b[2J", "text": "x"}, {"id": "u\x1b[2J", "text": "x"}]
    (folder / "evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in doubled))
    assert main(["score", "evil.jsonl", "--reference", "ref.txt"]) == 1
    assert "\x1b[2J" not in capsys.readouterr().err


def test_places_are_those_of_the_reference(folder):
    (folder / "h.tsv").write_text("id\ttext\nu1\tb\nu0\ta\n")
    (folder / "r.tsv").write_text("id\ttext\nu0\tA\nu1\tB\n")
    assert matched(read_rows("r.tsv"), read_rows("h.tsv")) == [1, 0]


def test_scoring_needs_no_torch(folder):
    code = (
        "import sys; from voxzoo.tasks.commands.cli import main; "
        "failed = main(['score', 'a.txt', 'b.txt', '--reference', 'ref.tsv', '--by', 'gender']); "
        "sys.exit(failed or 'torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("normalise", [lambda text: text, Normaliser("iwslt")])
def test_several_references_count_as_sacrebleu_counts_them(folder, normalise):
    """In a manifest, and in what `evaluate` wrote; rows may have unequal numbers of them."""
    ours, first, second = sentences(1, 0.3), sentences(0, 0.0), sentences(3, 0.2)
    several = [[one, two] if place % 3 else [one] for place, (one, two) in enumerate(zip(first, second, strict=True))]
    manifest = [{"id": f"u{n}", "tgt_text": [*texts, ""] if n % 2 else texts} for n, texts in enumerate(several)]
    manifest[0]["tgt_text"] = several[0][0]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
    written = [
        {"id": f"u{n}", "hypothesis": text, "reference": refs[0], **({"references": refs} if len(refs) > 1 else {})}
        for n, (text, refs) in enumerate(zip(ours, several, strict=True))
    ]
    (folder / "run.hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    words = ["--metrics", "bleu,chrf2,ter,wer", "--normalise", "none" if normalise("A") == "A" else "iwslt"]
    there = score("a.jsonl", "--reference", "rows.jsonl", *words)["metrics"]
    found = score("run.hypotheses.jsonl", *words)["metrics"]
    columns = [[normalise(texts[place]) if place < len(texts) else None for texts in several] for place in range(2)]
    cleaned = [normalise(text) for text in ours]
    folds = normalise("A") == "a"
    peers = {"bleu": BLEU(lowercase=folds), "chrf2": CHRF(lowercase=folds), "ter": TER()}
    for key, peer in peers.items():
        want = peer.corpus_score(cleaned, columns).score
        for answer, name in ((there, "a.jsonl"), (found, "run.hypotheses.jsonl")):
            assert answer[key]["systems"][name]["score"] == pytest.approx(want, abs=1e-9)
            assert "nrefs:var" in answer[key]["signature"]
    assert "refs:first" in found["wer"]["signature"]
    assert found["wer"]["systems"]["run.hypotheses.jsonl"]["score"] == there["wer"]["systems"]["a.jsonl"]["score"]
    silent = [{**row, "tgt_text": ["", None]} if n == 4 else row for n, row in enumerate(manifest)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in silent))
    corpus = read_corpus(["a.jsonl"], "rows.jsonl")
    assert "u4" not in corpus.ids
    assert len(corpus.references) == 49
    manifest[5]["tgt_text"] = ["x", 5]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
    with pytest.raises(UserError, match=r"rows\.jsonl, line 6, .*expected text, got 5"):
        read_corpus(["a.jsonl"], "rows.jsonl")
