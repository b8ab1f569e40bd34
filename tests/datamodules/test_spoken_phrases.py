"""The built-in corpus."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from voxzoo.components.errors import UserError
from voxzoo.datamodules import SpokenPhrases, read_manifest
from voxzoo.datamodules.spoken_phrases import corpus as corpus_module
from voxzoo.datamodules.spoken_phrases.phrases import CURATED, LANGUAGES, Phrase, plain
from voxzoo.datamodules.spoken_phrases.synthesis import resample_22050
from voxzoo.datamodules.validation import validate

pytest.importorskip("num2words", reason="the corpus needs pip install voxzoo[demo]")
pytest.importorskip("babel", reason="the corpus needs pip install voxzoo[demo]")


def make(root, **options):
    settings = {"num_train": 12, "num_valid": 4, "num_test": 4, "voice": "tones", "num_workers": 2}
    return SpokenPhrases(root=str(root), **{**settings, **options})


def texts(corpus):
    return {
        split: [(row.src_text, row.tgt_text) for row in read_manifest(path)] for split, path in corpus.prepare().items()
    }


def audio(corpus):
    paths = [
        path
        for manifest in corpus.prepare().values()
        for row in read_manifest(manifest)
        for path in (row.audio, row.tgt_audio)
    ]
    return {path.removeprefix(str(corpus.folder)): soundfile.read(path, dtype="int16")[0] for path in paths}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    corpus = make(tmp_path_factory.mktemp("tones"))
    corpus.prepare()
    return corpus


def test_manifests_are_sound(tones):
    paths = tones.prepare()
    assert list(paths) == ["train", "valid", "test_seen", "test_unseen"]
    for split, path in paths.items():
        report = validate(str(path))
        assert report.utterances == (12 if split == "train" else 4)
        assert not report.findings
        for row in read_manifest(path):
            assert (row.src_lang, row.tgt_lang) == ("spa", "eng")
            assert plain(row.src_text) == row.src_text
            assert plain(row.tgt_text) == row.tgt_text
            assert soundfile.info(row.audio).samplerate == soundfile.info(row.tgt_audio).samplerate == 16000
            assert soundfile.info(row.audio).duration == pytest.approx(row.duration, abs=1e-5)


def test_no_sentence_twice(tmp_path):
    chosen = make(tmp_path, num_train=3000, num_valid=300, num_test=300)._choose()
    phrases = [phrase for items in chosen.values() for phrase in items]
    assert len(phrases) == len(set(phrases)) == 3900
    for lang in ("spa", "eng"):
        assert len({LANGUAGES[lang].say(phrase) for phrase in phrases}) == 3900


def test_second_call_finds_it_and_changes_nothing(tones):
    stamps = {path: path.stat().st_mtime_ns for path in tones.folder.rglob("*")}
    make(tones.root).prepare()
    assert {path: path.stat().st_mtime_ns for path in tones.folder.rglob("*")} == stamps
    assert [path.name for path in tones.root.iterdir()] == [tones.fingerprint]


def test_of_two_that_want_it_at_once_one_makes_it(tmp_path, monkeypatch):
    made, both = [], threading.Barrier(2)
    inner = SpokenPhrases._make
    monkeypatch.setattr(SpokenPhrases, "_make", lambda self, out: (made.append(out), inner(self, out))[1])

    def prepare(corpus: SpokenPhrases) -> dict:
        both.wait()
        return corpus.prepare()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [make(tmp_path), make(tmp_path)])
    assert len(made) == 1
    assert first == second
    assert all(path.exists() for path in first.values())


def test_settings_name_the_folder(tmp_path):
    names = {
        make(tmp_path, **options).fingerprint for options in ({}, {"seed": 2}, {"num_train": 13}, {"noise_snr": [0, 9]})
    }
    assert len(names) == 4
    assert make(tmp_path, num_workers=1).fingerprint == make(tmp_path / "x").fingerprint


def test_a_failure_leaves_no_folder_and_is_one_line(tmp_path, monkeypatch):
    corpus = make(tmp_path)
    monkeypatch.setattr(corpus_module.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="exit status 1"):
        corpus.prepare()
    assert list(tmp_path.iterdir()) == []
    assert not corpus.is_prepared


def test_noise_is_at_the_level_asked_for(tones, tmp_path):
    clean, noisy = audio(tones), audio(make(tmp_path, noise_snr=[10, 10]))
    for name in clean:
        noise = noisy[name].astype(float) - clean[name]
        if ".eng/" in name:
            assert not noise.any()
        else:
            snr = 10 * np.log10(np.mean(clean[name].astype(float) ** 2) / np.mean(noise**2))
            assert snr == pytest.approx(10, abs=0.1)


def test_unseen_voices_are_unseen(tmp_path):
    corpus = make(tmp_path, num_train=200, num_test=200, voice="espeak")
    voices = {
        split: {row["speaker"] for row in corpus._rows(split, items)} for split, items in corpus._choose().items()
    }
    assert not voices["test_unseen"] & (voices["train"] | voices["test_seen"] | voices["valid"])
    assert len(voices["train"]) == 24
    assert len(voices["test_unseen"]) == 12  # 6 variants x 2 accents


def test_held_out_pairs_and_numbers(tmp_path):
    corpus = make(tmp_path, num_train=500, held_out_pairs=0.2, held_out_numbers=[30, 39])
    assert corpus.splits[-1] == "test_held_out"
    chosen = corpus._choose()
    new = chosen.pop("test_held_out")
    pairs = {(phrase.template, phrase.country) for items in chosen.values() for phrase in items}
    assert len(new) == 4
    assert not any(30 <= phrase.count <= 39 for items in chosen.values() for phrase in items)
    assert all((phrase.template, phrase.country) not in pairs or 30 <= phrase.count <= 39 for phrase in new)


def test_english_only_costs_when_asked_for(tmp_path):
    rows = read_manifest(make(tmp_path, target_speech=False).prepare()["train"])
    assert all(row.tgt_audio is None for row in rows)


SAID = [
    ("cost", {"count": 21, "thing": 0, "price": 31}, {
        "eng": "twenty one books cost thirty one euros",
        "spa": "veintiún libros cuestan treinta y un euros",
        "fra": "vingt et un livres coûtent trente et un euros",
        "ita": "ventuno libri costano trentuno euro",
        "por": "vinte e um livros custam trinta e um euros",
        "deu": "einundzwanzig bücher kosten einunddreißig euro",
    }),
    ("payment", {"count": 31, "thing": 5, "price": 122}, {
        "eng": "we paid one hundred twenty two euros for thirty one shirts",
        "spa": "pagamos ciento veintidós euros por treinta y una camisas",
        "fra": "nous avons payé cent vingt deux euros pour trente et une chemises",
        "por": "pagamos cento e vinte e dois euros por trinta e uma camisas",
    }),
    ("people", {"count": 521, "spoken": "pt", "country": "JP"}, {
        "eng": "five hundred twenty one people speak portuguese in japan",
        "spa": "quinientas veintiuna personas hablan portugués en japón",
        "fra": "cinq cent vingt et une personnes parlent portugais au japon",
        "ita": "cinquecentoventuno persone parlano portoghese in giappone",
        "por": "quinhentas e vinte e uma pessoas falam português no japão",
        "deu": "fünfhunderteinundzwanzig menschen sprechen portugiesisch in japan",
    }),
    ("train", {"country": "IT", "weekday": 0, "day": 3, "month": 8, "hour": 1, "minute": 10}, {
        "eng": "the train to italy leaves on monday august third at one ten",
        "spa": "el tren a italia sale el lunes tres de agosto a la una y diez",
        "fra": "le train pour l'italie part lundi trois août à une heure dix",
        "ita": "il treno per l'italia parte lunedì tre agosto all'una e dieci",
        "por": "o trem para a itália sai segunda feira três de agosto à uma e dez",
        "deu": "der zug nach italien fährt am montag dem dritten august um ein uhr zehn ab",
    }),
    ("meeting", {"country": "CU", "count": 22}, {
        "spa": "la reunión en cuba empieza en veintidós horas",
        "fra": "la réunion à cuba commence dans vingt deux heures",
        "ita": "la riunione a cuba comincia tra ventidue ore",
        "por": "a reunião em cuba começa em vinte e duas horas",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("template", "slots", "said"), SAID)
def test_agreement_and_articles(template, slots, said):
    phrase = Phrase(template, **slots)
    assert {lang: LANGUAGES[lang].say(phrase) for lang in said} == said


def test_every_country_in_every_language():
    for code in CURATED:
        for lang, language in LANGUAGES.items():
            words = language.say(Phrase("arrival", country=code, weekday=2, day=5, month=5))
            assert plain(words) == words, (lang, code)


def test_five_source_languages(tmp_path):
    corpus = make(tmp_path, source_languages=["spa", "fra", "ita", "por", "deu"])
    assert corpus.languages == ("spa", "fra", "ita", "por", "deu", "eng")
    rows = read_manifest(corpus.prepare()["train"])
    assert [row.src_lang for row in rows][:5] == ["spa", "fra", "ita", "por", "deu"]


def test_all_countries_are_for_spanish(tmp_path):
    words = {
        w
        for items in make(tmp_path, num_train=3000, countries=None)._choose().values()
        for w in {p.country for p in items}
    }
    assert len(words) > 200
    with pytest.raises(UserError, match="fra"):
        make(tmp_path, source_languages=["fra"], countries=None).prepare()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source_languages": ["que"]}, "spa, fra"),
        ({"voice": "human"}, "espeak, tones"),
        ({"num_train": 0}, "at least 1"),
        ({"noise_snr": [9, 1]}, "lowest, highest"),
        ({"held_out_pairs": 0.9}, "0.5"),
        ({"one_voice": True, "target_speech": False}, "target_speech=true"),
        ({"both_directions": True, "target_speech": False}, "corpus.both_directions=true needs"),
        ({"both_directions": True, "noise_snr": [0, 9]}, "each recording is a target too"),
        ({"one_voice": True, "target_pitch": 60}, "leave out target_pitch"),
    ],
)
def test_mistakes(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        make(tmp_path, **options)


@pytest.mark.parametrize("package", ["espeakng_loader", "num2words", "babel"])
def test_a_missing_package_names_the_extra(tmp_path, package):
    """In a fresh process, because the package may be loaded here."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from voxzoo.datamodules import SpokenPhrases\n"
        f"SpokenPhrases(root={str(tmp_path)!r}, num_train=2, num_valid=1, num_test=1).prepare()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError" in last
    assert package in last
    assert "pip install voxzoo[demo]" in last


def test_the_generator_imports_no_torch():
    code = (
        "import sys\nimport voxzoo.datamodules.spoken_phrases.__main__\n"
        "assert not {'torch', 'lightning', 'torchaudio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_espeak_is_reproducible_and_independent_of_the_processes(tmp_path):
    pytest.importorskip("espeakng_loader", reason="espeak needs pip install voxzoo[demo]")
    options = {"voice": "espeak", "num_train": 70}  # more than one chunk
    first = audio(make(tmp_path / "one", num_workers=1, **options))
    second = audio(make(tmp_path / "two", num_workers=3, **options))
    assert first.keys() == second.keys()
    assert len(first) == 2 * 82
    for name, samples in first.items():
        assert np.array_equal(samples, second[name]), name
        assert 16000 < len(samples) < 16000 * 12
        assert np.abs(samples).max() > 3000


def test_one_target_voice_many_source_voices(tmp_path):
    corpus = make(tmp_path, voice="espeak", num_train=40)
    rows = corpus._rows("train", corpus._choose()["train"])
    assert len({row["speaker"] for row in rows}) > 10
    assert corpus.settings["target_voice"] == "gmw/en-US+f2"


def test_one_voice_speaks_both_sides_in_both_directions(tmp_path):
    corpus = make(tmp_path, one_voice=True, both_directions=True, num_test=6)
    for split, path in corpus.prepare().items():
        assert not validate(str(path)).findings
        rows = {row.id: row for row in read_manifest(path)}
        assert len(rows) == 2 * {"train": 12, "valid": 4}.get(split, 6)
        for name, row in rows.items():
            if name.endswith("-rev"):
                there = rows[name.removesuffix("-rev")]
                assert (row.audio, row.src_text, row.src_lang) == (there.tgt_audio, there.tgt_text, "eng")
                assert (row.tgt_audio, row.tgt_text, row.tgt_lang) == (there.audio, there.src_text, "spa")
                assert row.speaker == there.speaker
            assert soundfile.info(row.audio).duration == pytest.approx(row.duration, abs=1e-5)


def test_the_voice_of_the_english_side_is_that_of_the_source(tmp_path):
    corpus = make(tmp_path, voice="espeak", one_voice=True, num_train=200, num_test=200)
    speakers = {}
    for split, items in corpus._choose().items():
        rows = corpus._rows(split, items)
        speakers[split] = {row["speaker"] for row in rows}
        for source in (row["_voice"] for row in rows):
            target = corpus._target_voice(source)
            assert target["voice"] == "gmw/en-US+" + source["voice"].partition("+")[2]
            assert all(target[key] == source[key] for key in ("rate", "pitch", "range"))
    assert not speakers["test_unseen"] & (speakers["train"] | speakers["test_seen"] | speakers["valid"])
    assert (len(speakers["train"]), len(speakers["test_unseen"])) == (36, 18)
    assert "f2-50" in speakers["train"]


def test_corpora_that_were_made_before_keep_their_names(tmp_path):
    """The settings that name a folder are those of then, as long as nothing new is asked for."""
    plain, one, both = (make(tmp_path, **each) for each in ({}, {"one_voice": True}, {"both_directions": True}))
    assert not {"one_voice", "both_directions"} & plain.settings.keys()
    assert len({each.fingerprint for each in (plain, one, both)}) == 3
    first, rows = (corpus._rows("train", corpus._choose()["train"]) for corpus in (plain, both))
    assert first == rows


@pytest.mark.parametrize("frequency", [100, 1000, 4000, 7000])
def test_resampling_keeps_what_fits(frequency):
    wave = 10000 * np.sin(2 * np.pi * frequency * np.arange(22050) / 22050)
    expected = 10000 * np.sin(2 * np.pi * frequency * np.arange(16000) / 16000)
    got = resample_22050(wave.astype(np.float32))
    assert len(got) == 16000
    assert np.abs(got - expected)[200:-200].max() < 10


@pytest.mark.parametrize("frequency", [8600, 10000])
def test_resampling_removes_what_does_not(frequency):
    wave = 10000 * np.sin(2 * np.pi * frequency * np.arange(22050) / 22050)
    assert np.abs(resample_22050(wave.astype(np.float32)))[200:-200].max() < 10


def test_about_file_says_what_was_made(tones):
    about = json.loads((tones.folder / "corpus.json").read_text())
    assert about["settings"]["voice"] == "tones"
    assert about["seconds"]["train"] > 10
