"""The contract of data: what is shipped keeps it, and what is broken on purpose is caught by the name of a check."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_role import Own, Tones
from torch.utils.data import DataLoader
from voxzoo.components import Fbank
from voxzoo.components.contract import ContractError
from voxzoo.components.errors import UserError
from voxzoo.datamodules import BatchSampler, SpeechTranslationData
from voxzoo.datamodules.contract import check_data, examine_choice, examine_data


class AsManyAsThereAre(BatchSampler):
    def __iter__(self):
        batches = list(self._cut_batches(self.epoch))[self.rank :: self.world_size]
        return iter([[(self.epoch, index) for index in batch] for batch in batches[self.start :]])

    def __len__(self):
        return len(list(self._cut_batches(0))[self.rank :: self.world_size])


class UnequalRanks(Own):
    def batch_sampler(self, **settings):
        return AsManyAsThereAre(**settings)


class LostOnResume(Own):
    """Begins a resumed epoch at its first batch."""

    def train_dataloader(self):
        mine = super().train_dataloader()
        return DataLoader(mine.dataset, batch_sampler=mine.batch_sampler, collate_fn=mine.collate_fn)


class LostOnOtherRanks(Own):
    """Goes on by the number of batches done, whatever the ranks were."""

    def batch_sampler(self, **settings):
        sampler = super().batch_sampler(**settings)
        sampler.take_over = lambda epoch, world_size, done, begin: (len(sampler) - begin, 0)
        return sampler


class SilentDrop(Own):
    def plan(self, needs, world_size=1):
        found = super().plan(needs, world_size)
        self.dropped["train"] = {}
        return found


class NoLanguage(Own):
    def languages(self):
        return ("spa",)


class NoTexts(Own):
    def texts(self, split="train"):
        return iter(())


class WrongDuration(Own):
    def read(self, split):
        return (replace(row, duration=0.5) for row in super().read(split))


class OneOrder(Own):
    def batch_sampler(self, **settings):
        sampler = super().batch_sampler(**settings)
        cut = sampler._cut_batches
        sampler._cut_batches = lambda epoch: cut(0)
        return sampler


class AnyOrder(Own):
    def batch_sampler(self, **settings):
        return super().batch_sampler(**{**settings, "seed": random.randrange(1 << 30)})


class Noisy(Tones):
    def load(self, audio, sample_rate):
        return super().load(audio, sample_rate) + 0.01 * torch.randn(1)


class AnyContent(Own):
    audio = Noisy()


class NoPickle(Own):
    def collator(self, needs=None):
        made = super().collator(needs)
        return lambda utterances: made(utterances)


_SEEDS = itertools.count()  # drawn ones give the same order once in a hundred times


class ShuffledValidation(Own):
    def val_dataloader(self):
        return self._loader(
            "valid", training=False, budget={"batch_size": 1, "batch_seconds": None, "batch_tokens": None}
        )

    def batch_sampler(self, **settings):
        shuffle = {"shuffle": True, "seed": next(_SEEDS)} if settings["name"] == "valid" else {}
        return super().batch_sampler(**{**settings, **shuffle})


class NoNeed(Own):
    def collator(self, needs=None):
        return super().collator((self.needs if needs is None else frozenset(needs)) - {"target"})


BROKEN = {
    UnequalRanks: ("ranks", "2 ranks get 4, 3 batches in epoch 0: the others would wait"),
    LostOnResume: ("resume", "3 batches on 1 rank, then 1: rank 0 goes on with other batches (12 of 26 rows are lost"),
    LostOnOtherRanks: ("resume", "3 batches on 1 rank, then 2: by the end of the next epoch 4 of 26 rows are lost"),
    SilentDrop: ("rows", "row short is planned 0 times and dropped 0 times for 1 task"),
    NoLanguage: ("languages", "row train0 of train has the language 'eng', which `languages` leaves out"),
    NoTexts: ("texts", "row train0: its tgt_text is not among `texts`"),
    WrongDuration: ("lengths", "is planned with 0.500 s, which are"),
    OneOrder: ("order", "the second epoch has the order of the first"),
    AnyOrder: ("order", "two runs of one seed read other batches"),
    AnyContent: ("content", "speech differs when the same epoch is read again"),
    NoPickle: ("pickles", "what `collator` makes cannot be pickled for a data worker"),
    ShuffledValidation: ("validation", "validation reads other batches when it is asked again"),
    NoNeed: ("needs", "has no target, which the task reads"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_is_caught_by_its_name(broken):
    name, words = BROKEN[broken]
    row = "{'id': 'short', 'audio': '400 short', 'tgt_lang': 'eng', 'tgt_text': 'b'}" if broken is SilentDrop else ""
    found = {
        outcome.name: outcome.fault
        for outcome in examine_data(lambda: broken(frontend=Fbank(), batch_size=4, count=26, broken=row))
    }
    assert words in str(found[name]), found
    assert "\n" not in str(found[name])


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("contract")
    noise = np.random.default_rng(0)
    for split, count in (("train", 19), ("valid", 5)):
        rows = []
        for index in range(count):
            samples = 0.1 * noise.standard_normal(1600 * (2 + index % 5))
            soundfile.write(folder / f"{split}{index}.wav", samples, 16000)
            row = {
                "id": f"{split}{index}",
                "audio": f"{split}{index}.wav",
                "src_lang": "spa",
                "src_text": f"uno {index}",
            }
            rows.append({**row, "tgt_lang": "eng", "tgt_text": f"one {index}"} if index % 7 != 6 else row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl")}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_seconds": 2.0, "tasks": {"s2tt": True, "asr": True, "t2tt": True}, "speed_perturb": [0.9, 1.1]},
        {"batch_tokens": 40, "batch_size": 4, "max_tokens": 12, "cache_dir": "cache"},
    ],
)
def test_manifests_keep_the_contract(manifests, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = check_data(lambda: SpeechTranslationData(**manifests, frontend=Fbank(), **options))
    assert [(outcome.name, outcome.note) for outcome in outcomes if outcome.note] == []
    assert len(outcomes) == 16


def test_clips_that_cannot_be_read_are_named_in_every_split(manifests, tmp_path):
    folder = Path(manifests["valid"]).parent
    lines = [json.loads(line) for line in Path(manifests["valid"]).read_text().splitlines()]
    for line in lines:
        line["audio"] = str(folder / line["audio"])
    (tmp_path / "broken.wav").write_bytes(b"RIFFnope")
    lines[3]["audio"] = "broken.wav"
    lines[4]["audio"] = "gone.wav"
    for line in lines[3:]:
        line["duration"] = 1.0
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {**manifests, "valid": str(tmp_path / "valid.jsonl")}
    found = examine_data(lambda: SpeechTranslationData(**data, frontend=Fbank(), batch_size=4))
    (fault,) = [(outcome.name, outcome.fault) for outcome in found if outcome.fault]
    assert fault[0] == "audio"
    assert re.match(
        r"2 of 5 clips of valid cannot be read: valid3: .*broken.wav: cannot.*, valid4: .*gone.wav", fault[1]
    )


def test_the_tiny_corpus_keeps_the_contract(tiny: list[str]):
    cls, outcomes = examine_choice(tiny)
    assert cls is SpeechTranslationData
    assert [outcome for outcome in outcomes if outcome.fault or outcome.note] == []


def test_rows_of_ones_own_keep_the_contract_and_one_is_not_changed():
    data = Own(frontend=Fbank(), batch_size=3)
    before = dict(vars(data))
    check_data(data)
    assert vars(data) == before


def test_broken_checks_are_raised_together():
    with pytest.raises(ContractError) as found:
        check_data(lambda: NoLanguage(frontend=Fbank(), batch_size=4))
    assert str(found.value).splitlines()[0].startswith("NoLanguage breaks ")
    assert any(outcome.name == "languages" and outcome.fault for outcome in found.value.outcomes)


def test_what_is_no_data_module_is_said():
    (outcome,) = examine_data(object())
    assert outcome.fault == "object is no DataModule: derive it from voxzoo.datamodules.UtteranceData"
    with pytest.raises(UserError, match=r"data\.batch_sise: SpeechTranslationData has no such parameter"):
        examine_choice(["data=tiny", "+data.batch_sise=3"])
