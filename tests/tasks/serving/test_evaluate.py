"""`voxzoo evaluate` on real manifests and audio files, with a task that answers from a table."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from voxzoo.components.errors import UserError
from voxzoo.components.types import Batch, Prediction
from voxzoo.datamodules import Collator, SpeechTranslationData, read_manifest, write_manifest
from voxzoo.tasks import evaluate_run
from voxzoo.tasks.ablation.results import compare, read_run
from voxzoo.tasks.ablation.table import cells, label
from voxzoo.tasks.commands import evaluate as command
from voxzoo.tasks.scoring.care import read_word_lists
from voxzoo.tasks.serving import evaluation as engine
from voxzoo.tasks.serving.evaluation import evaluate

TEXTS = [
    "the train to peru leaves at ten fifteen",
    "two hundred people speak spanish in chile",
    "i bought seven chairs in france today",
    "the meeting starts in nine long hours",
    "nine cars cost three thousand euros now",
]


class Samples:
    """A front end that hands the samples on."""

    sample_rate, output_dim, fingerprint = 16000, 1, "samples"

    def __call__(self, waveform):
        return waveform

    def output_length(self, num_samples):
        return num_samples


class Parrot(torch.nn.Module):
    """Says the right text except where it is told to be wrong, as a tone of one second."""

    modes = frozenset({"s2tt", "s2st", "asr"})
    unit_extractor = longest_seconds = None
    device = torch.device("cpu")

    def __init__(self, texts: dict[str, str], modes: frozenset[str] = modes):
        super().__init__()
        self.texts, self.modes, self.asked = texts, modes, []

    def serving_needs(self):
        return frozenset({"speech"})

    def collator(self):
        return Collator(Samples(), None, self.serving_needs())  # pyright: ignore[reportArgumentType]

    def predict(self, batch: Batch, *, task=None, options=None):
        assert batch.speech is not None
        self.asked.append((task, batch.ids, options.beam_size))
        tone = 0.1 * torch.sin(torch.arange(16000) * 0.1)
        return [
            Prediction(
                i, task, s, t, text=self.texts[f"{task}/{i}"], audio=tone if task == "s2st" else None, score=-1.0
            )
            for i, s, t in zip(batch.ids, batch.src_lang, batch.tgt_lang, strict=True)
        ]

    def resynthesise(self, batch: Batch):
        assert batch.target_speech is not None
        return [0.5 * wave for wave in batch.target_speech.unpad()]


class Judge:
    """Hears the reference from loud audio, and part of it from quiet audio."""

    signature = "whisper:fake"
    asked: ClassVar[list[int]] = []

    def __init__(self, *_):
        Judge.asked.clear()

    def check_language(self, lang):
        assert lang == "eng"

    def transcribe(self, audio, lang):
        Judge.asked.append(len(audio))
        return [
            "The train to Peru leaves at 10:15!" if float(a.abs().max()) > 0.3 else "the train to peru" for a in audio
        ]


@pytest.fixture
def data(tmp_path: Path) -> SpeechTranslationData:
    rows = []
    for n, text in enumerate(TEXTS):
        for name, loud in (("source", 0.2), ("target", 0.4)):
            wave = loud * torch.sin(torch.arange(8000 + 4000 * n) * 0.05)
            soundfile.write(tmp_path / f"{name}{n}.wav", wave.numpy(), 16000)
        rows.append(
            {
                "id": f"u{n}", "audio": f"source{n}.wav", "duration": 0.5 + 0.25 * n, "src_lang": "spa",
                "src_text": f"uno {n}", "tgt_lang": "eng", "tgt_text": text, "tgt_audio": f"target{n}.wav",
            }
        )  # fmt: skip
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SpeechTranslationData(test={"test": str(tmp_path / "test.jsonl")}, frontend=Samples(), batch_size=2)  # pyright: ignore


def answers(**wrong: str) -> dict[str, str]:
    table = {f"{task}/u{n}": text for n, text in enumerate(TEXTS) for task in ("s2tt", "s2st")}
    return table | {f"asr/u{n}": f"uno {n}" for n in range(5)} | {k.replace("__", "/"): v for k, v in wrong.items()}


def test_all_references_of_a_row_count(data, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    lines[1]["tgt_text"] = ["spanish is spoken by 200 in chile", lines[1]["tgt_text"]]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate(Parrot(answers(), frozenset({"s2tt"})), data, "test", tmp_path / "out")
    assert found["bleu"] == pytest.approx(100)
    assert "nrefs:var" in found["signatures"]["bleu"]
    second = json.loads((tmp_path / "out/test.hypotheses.jsonl").read_text().splitlines()[1])
    assert second["references"] == lines[1]["tgt_text"]
    assert second["reference"] == lines[1]["tgt_text"][0]


def test_text_scores_files_and_order(data, tmp_path):
    model = Parrot(answers(s2tt__u1="two hundred people speak spanish in peru"), frozenset({"s2tt"}))
    found = evaluate(model, data, "test", tmp_path / "out", batch_size=2, beam=3)
    assert 50 < found["bleu"] < 100
    assert 50 < found["chrf"] < 100
    assert found["intervals"]["bleu"][0] <= found["bleu"] <= found["intervals"]["bleu"][1]
    assert found["signatures"]["bleu"].startswith("nrefs:1|case:mixed")
    assert (found["num_utterances"], found["num_dropped"], found["recogniser"]) == (5, 0, None)
    assert [len(ids) for _, ids, _ in model.asked] == [2, 2, 1]
    assert {beam for *_, beam in model.asked} == {3}
    lines = [json.loads(line) for line in (tmp_path / "out" / "test.hypotheses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["u0", "u1", "u2", "u3", "u4"]
    assert lines[1]["hypothesis"].endswith("in peru")
    assert lines[1]["reference"].endswith("in chile")
    assert json.loads((tmp_path / "out" / "test.json").read_text()) == json.loads(json.dumps(found))


class Mimic(Parrot):
    """Says its units in the voice of a prompt: as loud as it is."""

    takes_prompts = True

    def predict(self, batch: Batch, *, task=None, options=None, prompts: Batch | None = None):
        voice = batch if prompts is None else prompts
        assert voice.speech is not None
        found = super().predict(batch, task=task, options=options)
        return [
            replace(one, units=[1, 2, 3, 3, 4, int(one.id[1])], audio=one.audio * float(row.abs().max()))  # pyright: ignore
            for one, row in zip(found, voice.speech.unpad(), strict=True)
        ]

    def reference_units(self, batch: Batch):
        assert batch.target_speech is not None
        return [torch.tensor([1, 2, 3, 4, min(int(name[1]), 3)]) for name in batch.ids]


def test_units_are_scored_beside_what_was_heard(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "open_recogniser", lambda name, notes: Judge())
    found = evaluate(Mimic(answers()), data, "test", tmp_path, task="s2st", quality="none")
    assert found["unit_exact"] == 80.0  # all but the last; repetitions are one
    assert 0 < found["unit_bleu"] < 100
    assert found["signatures"]["unit_bleu"].startswith("units:merged|")
    assert len(found["intervals"]["unit_exact"]) == 2
    line = json.loads((tmp_path / "test.hypotheses.jsonl").read_text().splitlines()[4])
    assert (line["units"], line["reference_units"]) == ([1, 2, 3, 3, 4, 4], [1, 2, 3, 4, 3])
    assert "asr_wer_own" not in found


@pytest.mark.parametrize("prompts", ["shuffled", "other"])
def test_another_prompt_changes_the_voice_and_is_compared_with_its_own(prompts: str, data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "open_recogniser", lambda name, notes: Judge())
    manifest = tmp_path / "test.jsonl"  # which `data` has written
    lines = [json.loads(line) | {"speaker": "ab"[n % 2]} for n, line in enumerate(manifest.read_text().splitlines())]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = SpeechTranslationData(test={"test": str(manifest)}, frontend=Samples(), batch_size=2)  # pyright: ignore
    model = Mimic(answers())
    chosen = engine.choose_prompts(model, data.rows("test"), prompts, "test")
    assert chosen is not None
    speakers = {row.id: row.speaker for row in data.rows("test")}
    assert all(name != row.id for name, row in chosen.items())
    if prompts == "other":
        assert all(speakers[name] != row.speaker for name, row in chosen.items())
    else:
        assert len({row.id for row in chosen.values()}) == 5  # each once
    found = evaluate(model, data, "test", tmp_path / "out", task="s2st", quality="none", prompts=prompts)
    assert {"asr_wer", "asr_wer_own", "asr_bleu_own"} <= found.keys()
    assert found["prompts"] == prompts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"test.{prompts}", f"test.{prompts}.hypotheses.jsonl", f"test.{prompts}.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "prompts", "words"),
    [
        (Parrot, "other", "--prompts other: this run does not speak in the voice of a prompt"),
        (Mimic, "other", "--split test: u[0-4] has no prompt; --prompts other needs two speakers"),
        (Mimic, "loud", "--prompts loud: expected own, shuffled, other"),
    ],
)
def test_prompts_that_there_are_not_are_refused(model, prompts: str, words: str, data, tmp_path):
    with pytest.raises(UserError, match=words):
        evaluate(model(answers()), data, "test", tmp_path, task="s2st", recogniser="none", prompts=prompts)


class LongSpeech(Parrot):
    """One that takes a second at most."""

    longest_seconds = 1.0

    class tokenizer:
        languages = ("spa", "eng")

        @staticmethod
        def knows(lang):
            return lang in LongSpeech.tokenizer.languages

        @staticmethod
        def prefix(*_):
            return []

    def __init__(self, texts: dict[str, str]):
        super().__init__(texts)
        self.frontend, self.tokenizer = Samples(), type(self).tokenizer()


def test_audio_that_the_model_cannot_take_is_cut_and_none_is_dropped(data, tmp_path: Path):
    words = {n: TEXTS[n].split() for n in (3, 4)}
    pieces = {f"s2tt/u{n}/{place}": " ".join(words[n][4 * place : 4 * place + 4]) for n in words for place in (0, 1)}
    model = LongSpeech({**answers(), **pieces})
    found = evaluate(model, data, "test", tmp_path / "out", task="s2tt", batch_size=2)
    assert found["num_utterances"] == 5
    assert found["num_dropped"] == 0
    assert found["tasks"]["s2tt"]["bleu"] == pytest.approx(100.0)
    assert found["notes"] == ["2 of 5 are longer than 1 s and were cut at quiet places: u3, u4"]
    asked = {name for _, names, _ in model.asked for name in names}
    assert asked == {"u0", "u1", "u2", "u3/0", "u3/1", "u4/0", "u4/1"}


def test_speech_is_judged_against_its_ceiling(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    found = evaluate(Parrot(answers()), data, "test", tmp_path / "out", limit=1)
    assert found["tasks"]["s2st"]["bleu"] == pytest.approx(100)
    assert found["asr_bleu_ceiling"] == pytest.approx(100)
    assert 0 < found["asr_bleu"] < 50
    assert found["asr_bleu_ratio"] == pytest.approx(found["asr_bleu"] / 100)
    # Half as loud as the recordings: heard in part only, so it went through `resynthesise`.
    assert found["asr_bleu_resynthesis"] == pytest.approx(found["asr_bleu"])
    assert found["duration_ratio"] == pytest.approx(2.0)
    assert (found["silent"], found["clipped"], found["num_utterances"]) == (0, 0, 1)
    line = json.loads((tmp_path / "out" / "test.hypotheses.jsonl").read_text().splitlines()[0])
    assert line["heard"] == "the train to peru"
    wav = soundfile.info(str(tmp_path / "out" / line["audio"]))
    assert (wav.subtype, wav.frames) == ("PCM_16", 16000)


def test_speech_is_heard_together_and_recordings_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    data.cache_dir = str(tmp_path / "cache")
    first = evaluate(Parrot(answers()), data, "test", tmp_path / "out", batch_size=2)
    assert Judge.asked == [15]  # outputs, recordings and resynthesis of all batches
    again = evaluate(Parrot(answers()), data, "test", tmp_path / "out", batch_size=2)
    assert Judge.asked == [10]
    assert again["tasks"] == first["tasks"]
    assert [note for note in first["notes"] if "recogniser" in note] == []
    assert again["notes"][0].startswith("5 target recordings had been heard before by this recogniser")


def test_how_output_sounds_is_measured_unless_told_not_to(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    found = evaluate(Parrot(answers()), data, "test", tmp_path / "out")
    for name in ("f0_correlation", "voicing_error", "voicing_error_control", "voicing_error_resynthesis"):
        assert name in found
        assert found["signatures"][name].startswith("yin:")
    # The resynthesis is the recording, but for its loudness; outputs are another tone.
    assert found["voicing_error_resynthesis"] == pytest.approx(0)
    assert all(
        "voicing_error" in json.loads(line)["quality"] for line in Path(found["hypotheses"]).read_text().splitlines()
    )
    # Both networks are there, or a note says how to get them.
    assert ("speaker_similarity" in found) != any("resemblyzer" in note for note in found["notes"])
    assert ("dnsmos" in found) != any("voxzoo[quality]" in note for note in found["notes"])
    without = evaluate(Parrot(answers()), data, "test", tmp_path / "out", quality="none")
    assert not {"f0_correlation", "speaker_similarity", "dnsmos"} & without.keys()
    assert without["asr_bleu"] == found["asr_bleu"]
    assert without["notes"] == []


def test_without_a_recogniser_text_scores_stay(data, tmp_path, monkeypatch, capsys):
    def missing(name):
        raise UserError("recogniser base needs the package x, which is not installed: pip install voxzoo[eval]")

    monkeypatch.setattr(engine, "Recogniser", missing)
    found = evaluate(Parrot(answers()), data, "test", tmp_path / "out")
    assert found["bleu"] == pytest.approx(100)
    assert "asr_bleu" not in found
    assert found["duration_ratio"] == pytest.approx(sum(1 / (0.5 + 0.25 * n) for n in range(5)) / 5)
    assert "pip install voxzoo[eval]" in found["notes"][0]
    assert "pip install voxzoo[eval]" in capsys.readouterr().err


def test_several_tasks_are_scored_apart(data, tmp_path):
    data.tasks = ("s2tt", "asr")
    found = evaluate(
        Parrot(answers(asr__u3="dos 3"), frozenset({"s2tt", "asr"})), data, "test", tmp_path / "out", limit=4
    )
    assert set(found["tasks"]) == {"s2tt", "asr"}
    assert found["bleu"] == pytest.approx(100)
    assert found["wer"] == found["tasks"]["asr"]["wer"] == pytest.approx(100 / 8)
    assert found["num_utterances"] == 8
    lines = [json.loads(line) for line in (tmp_path / "out" / "test.hypotheses.jsonl").read_text().splitlines()]
    assert [(line["id"], line["task"]) for line in lines[:2]] == [("u0", "s2tt"), ("u0", "asr")]


def test_broken_files_are_counted_and_named(data, tmp_path, capsys):
    (tmp_path / "source2.wav").write_bytes(b"this is no audio")
    found = evaluate(Parrot(answers(), frozenset({"s2tt"})), data, "test", tmp_path / "out", batch_size=5)
    assert (found["num_utterances"], found["num_dropped"]) == (4, 1)
    assert found["dropped"][0]["id"] == "u2"
    assert "source2.wav" in found["dropped"][0]["reason"]
    assert "dropped u2" in capsys.readouterr().err


class Startled(LongSpeech):
    """Notes the power of what it is given, and says one word wrong where that is more than the recordings have."""

    def predict(self, batch: Batch, *, task=None, options=None):
        assert batch.speech is not None
        found = super().predict(batch, task=task, options=options)
        self.powers = getattr(self, "powers", {})
        for place, (prediction, wave) in enumerate(zip(found, batch.speech.unpad(), strict=True)):
            power = float(wave.double().square().mean())
            self.powers.setdefault(prediction.id, []).append(power)
            if power > 0.025:  # a sine of 0.2 has 0.02
                found[place] = replace(prediction, text="noise " + str(prediction.text).partition(" ")[2])
        return found


@pytest.mark.parametrize("longest", [None, 1.0])
def test_conditions_are_scored_beside_the_recordings(longest, data, tmp_path, capsys):
    words = {n: TEXTS[n].split() for n in (3, 4)}
    pieces = {f"s2tt/u{n}/{place}": " ".join(words[n][4 * place : 4 * place + 4]) for n in words for place in (0, 1)}
    model = Startled({**answers(), **pieces})
    model.longest_seconds = longest
    answer = evaluate(
        model, data, "test", tmp_path / "out", task="s2tt", noise=["white", "babble"], snr=[0.0], codec=["narrowband"]
    )
    found = answer["conditions"]
    assert list(found) == ["white 0 dB", "babble 0 dB", "narrowband"]
    assert found["white 0 dB"]["signature"] == "noise:white|snr:0|seed:1"
    for name in ("white 0 dB", "babble 0 dB"):
        scores = found[name]["tasks"]["s2tt"]["bleu"]
        assert scores["plain"] == answer["bleu"] == pytest.approx(100)
        assert 0 < scores["score"] < 100
        assert scores["difference"] == pytest.approx(scores["score"] - 100)
        assert found[name]["num_dropped"] == 0
    assert found["narrowband"]["tasks"]["s2tt"]["bleu"]["difference"] == 0
    # Noise at 0 dB has the power of the speech: twice the power in all, but for how the two happen to add up.
    plain, white, *_ = model.powers["u2"]
    assert white == pytest.approx(2 * plain, rel=0.05)
    assert set(model.powers) == ({"u0", "u1", "u2", "u3", "u4"} if longest is None else
                                 {"u0", "u1", "u2", "u3/0", "u3/1", "u4/0", "u4/1"})  # fmt: skip
    command.show(answer)
    shown = capsys.readouterr().out
    assert "in conditions" in shown
    assert "white 0 dB" in shown
    assert json.loads((tmp_path / "out" / "test.json").read_text())["conditions"] == found


def test_speech_of_conditions_is_heard_too(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    found = evaluate(Parrot(answers()), data, "test", tmp_path / "out", codec=["mulaw"], quality="none")
    scores = found["conditions"]["mulaw"]["tasks"]["s2st"]
    assert scores["asr_bleu"]["plain"] == found["asr_bleu"]
    assert "asr_bleu_ceiling" not in scores
    lines = (tmp_path / "out" / "test.mulaw.hypotheses.jsonl").read_text().splitlines()
    assert str(tmp_path / "out" / "test.mulaw.hypotheses.jsonl") == found["conditions"]["mulaw"]["hypotheses"]
    assert len(lines) == 5
    assert all((tmp_path / "out" / json.loads(line)["audio"]).is_file() for line in lines)


def test_groups_speakers_and_words_are_asked_of_the_manifest(data, tmp_path, capsys):
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    manifest = [{**line, "gender": "fm"[n % 2], "src_text": "uno"} for n, line in enumerate(lines)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
    (tmp_path / "eng.txt").write_text("darn\n")
    (tmp_path / "spa.txt").write_text("caramba\n")
    lists = {"eng": str(tmp_path / "eng.txt"), "spa": str(tmp_path / "spa.txt")}
    model = Parrot(answers(s2tt__u1="darn two hundred people"), frozenset({"s2tt"}))
    found = evaluate(
        model, data, "test", tmp_path / "out", by=["gender"], across_speakers=True, toxicity=lists,
    )  # fmt: skip
    assert found["added_toxicity"] == 20
    assert found["coef_var_ms"] > 0
    assert found["gaps"]["gender"]["bleu"]["groups"]["f"]["num_utterances"] == 3
    rows = [json.loads(line) for line in (tmp_path / "out" / "test.hypotheses.jsonl").read_text().splitlines()]
    assert [row["toxic"] for row in rows] == [[], ["darn"], [], [], []]
    command.show(found)
    assert "gender: f" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--by accent: no row of .*test\.jsonl has this field; there are id, audio"):
        evaluate(model, data, "test", tmp_path / "out", by=["accent"])
    with pytest.raises(UserError, match="--noise: also say --snr"):
        evaluate(model, data, "test", tmp_path / "out", noise=["pink"])


class Attentive(Startled):
    """Keeps what it is given."""

    def predict(self, batch: Batch, *, task=None, options=None):
        assert batch.speech is not None
        self.waves = getattr(self, "waves", {})
        for name, wave in zip(batch.ids, batch.speech.unpad(), strict=True):
            self.waves.setdefault(name, []).append(wave.double())
        return super().predict(batch, task=task, options=options)


def test_they_are_columns_of_an_ablation_as_a_plain_computation_has_them(data, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    manifest = [{**line, "src_text": f"uno {n // 2}"} for n, line in enumerate(lines)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
    (tmp_path / "eng.txt").write_text("darn\n")
    (tmp_path / "spa.txt").write_text("caramba\n")
    lists = {"eng": str(tmp_path / "eng.txt"), "spa": str(tmp_path / "spa.txt")}
    wrong = {
        "one": {"s2tt__u1": "two hundred speak darn", "s2tt__u2": "chairs in france today"},
        "other": {"s2tt__u0": "the darn train", "s2tt__u3": "darn the meeting starts", "s2tt__u4": "nine cars now"},
    }
    runs = {}
    for name, each in wrong.items():
        model, out = Attentive(answers(**each)), tmp_path / name
        model.longest_seconds = None
        asked = {"noise": ["white"], "snr": [0.0], "across_speakers": True, "toxicity": lists}
        evaluate(model, data, "test", out, task="s2tt", **asked)
        for plain, noisy in model.waves.values():
            ratio = 10 * math.log10(float(plain.square().sum() / (noisy - plain).square().sum()))
            assert ratio == pytest.approx(0, abs=1e-3)
        (out / "done.json").write_text('{"steps": 1}')
        runs[name] = [read_run(name, "test", out, {"": out})]
    found = compare(runs, "one", read_word_lists(lists))["scores"]
    head, table = cells(compare(runs, "one", read_word_lists(lists)))
    for place, name in enumerate(wrong):
        texts = {
            file: [json.loads(line)["hypothesis"] for line in (tmp_path / name / file).read_text().splitlines()]
            for file in ("test.hypotheses.jsonl", "test.white_0_dB.hypotheses.jsonl")
        }
        plain, noisy = texts.values()
        chrf = [CHRF().sentence_score(h, [r]).score for h, r in zip(plain, TEXTS, strict=True)]
        ratios = [np.std(chrf[n : n + 2], ddof=1) / np.mean(chrf[n : n + 2]) for n in (0, 2)]
        want = {
            "bleu": BLEU().corpus_score(plain, [TEXTS]).score,
            "bleu in white 0 dB": BLEU().corpus_score(noisy, [TEXTS]).score,
            "coef_var_ms": np.mean(ratios),
            "added_toxicity": 100 * np.mean(["darn" in text for text in plain]),
        }
        for score, value in want.items():
            assert found[score]["systems"][name]["score"] == pytest.approx(value, abs=1e-9), score
            assert float(table[place][head.index(label(score))]) == pytest.approx(value, abs=5e-3), score
        assert noisy != plain
    assert found["bleu in white 0 dB"]["signature"].startswith("noise:white|snr:0|seed:1|nrefs:1")
    assert found["coef_var_ms"]["num_utterances"] == 2
    assert {"BLEU in white 0 dB", "CoefVar", "added toxicity %"} < {*head}
    assert "difference" in found["added_toxicity"]["systems"]["other"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--snr", "loud"], "--snr loud: expected decibels from -100 to 100"),
        (["--toxicity", "eng"], "--toxicity eng: expected LANG=FILE"),
    ],
)
def test_options_of_conditions_are_checked(words, message):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    with pytest.raises(UserError, match=message):
        command.run(parser.parse_args(["run", *words]))


class Choosy(Parrot):
    """Fails on one utterance, as a search that finds no number does, and on resynthesis."""

    def predict(self, batch: Batch, *, task=None, options=None):
        if "u3" in batch.ids:
            raise RuntimeError("no hypothesis\nfor u3")
        return super().predict(batch, task=task, options=options)

    def resynthesise(self, batch: Batch):
        raise ValueError("got 0 steps")


def test_what_the_model_fails_on_takes_nothing_else_with_it(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    found = evaluate(Choosy(answers(), frozenset({"s2st"})), data, "test", tmp_path / "out", batch_size=5)
    assert (found["num_utterances"], found["num_dropped"]) == (4, 1)
    assert found["dropped"] == [{"id": "u3", "reason": "no hypothesis for u3"}]
    assert found["asr_bleu"] > 0
    assert any("no resynthesis for 1 utterances: got 0 steps" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "nope"}, "nope"), ({"split": "test", "task": "t2st"}, "can do s2tt")],
)
def test_bad_calls_are_one_line(data, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate(Parrot(answers(), frozenset({"s2tt"})), data, options.pop("split"), tmp_path / "out", **options)
    assert "\n" not in str(error.value)


def test_the_command_prints_a_table_and_returns_plain_values(data, tmp_path, monkeypatch, capsys):
    class Loaded:
        task = Parrot(answers(), frozenset({"s2tt"}))
        folder = tmp_path
        checkpoint = tmp_path / "x.ckpt"

        def datamodule(self, manifest=None, split="test"):
            return data

    monkeypatch.setattr(engine, "load_run", lambda path, **_: Loaded())
    parser = argparse.ArgumentParser()
    command.configure(parser)
    args = parser.parse_args([str(tmp_path), "--split", "test", "--recogniser", "none"])
    args.json = False
    found = command.run(args)
    shown = capsys.readouterr().out
    assert "BLEU" in shown
    assert "100.00" in shown
    assert "nrefs:1" in shown
    assert json.loads(json.dumps(found))["bleu"] == found["bleu"]
    assert (tmp_path / "evaluation" / "test.json").exists()
    # The same from Python, in one call, silent.
    assert evaluate_run(tmp_path, recogniser="none") == found
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="--limit 0"):
        command.run(argparse.Namespace(**{**vars(args), "limit": 0}))


def test_ids_become_file_names_that_do_not_collide(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Recogniser", Judge)
    path = tmp_path / "test.jsonl"
    names = ("a/b", "a_b", "../x", "ü", ".")
    write_manifest(path, [replace(row, id=name) for row, name in zip(read_manifest(path), names, strict=True)])
    manifest = data.rows("test")
    texts = {f"s2st/{row.id}": row.tgt_text for row in manifest}
    evaluate(Parrot(texts), data, "test", tmp_path / "out")
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.wav"))
    assert len(names) == 5
    assert all(name.startswith("test/") for name in names)
