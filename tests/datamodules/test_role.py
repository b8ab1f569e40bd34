"""Data as a role: what `check` says about classes of one's own, and what `UtteranceData` makes of rows alone."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from lightning.fabric.utilities.rank_zero import rank_zero_only
from voxzoo.components import Fbank
from voxzoo.components.errors import UserError
from voxzoo.components.roles import DataModule
from voxzoo.configs import check, compose
from voxzoo.datamodules import AudioFiles, SpeechTranslationData, Utterance, UtteranceData
from voxzoo.datamodules.audio import AudioError


class Tones(AudioFiles):
    """`3200 a`: 3200 samples at 16 kHz."""

    def load(self, audio, sample_rate):
        assert sample_rate == 16000
        return 0.1 * torch.randn(int(audio.split()[0]), generator=torch.Generator().manual_seed(len(audio)))

    def seconds(self, audio):
        try:
            return int(audio.split()[0]) / 16000
        except ValueError:
            raise AudioError(f"{audio}: no tone") from None


class Own(UtteranceData):
    """Rows that are made where they are asked for."""

    audio = Tones()

    def __init__(self, *, count: int = 11, broken: str = "", **options) -> None:
        super().__init__(**options)
        self.count, self.broken = count, broken

    def splits(self):
        return "train", "valid"

    def read(self, split):
        for index in range(self.count if split == "train" else 3):
            name = f"{3200 + 320 * (index % 5)} {index}"
            yield Utterance(id=f"{split}{index}", audio=name, src_lang="spa", tgt_lang="eng", tgt_text=f" {index} ")
        if self.broken:
            yield Utterance(**{"id": "b", "audio": "3200 b", "src_lang": "spa", "src_text": "b", **eval(self.broken)})


class NoTokenizer(DataModule):
    def __init__(self, *, frontend=None) -> None: ...


class Foreign(LightningDataModule):
    pass


def faults(target: str, *words: str) -> list[str]:
    words = (f"data._target_={__name__}.{target}", f"allow=[{__name__}]", *words)
    return [str(fault) for fault in check(compose(["data=tiny", "~data.corpus", *words]))]


def test_a_class_of_ones_own_takes_what_its_base_takes():
    assert faults("Own", "+data.count=3", "data.batch_size=2") == []
    assert faults("Own", "+data.cout=3") == ["data.cout: Own has no such parameter; did you mean 'count'?"]
    assert faults("Own", "+data.count=three") == ["data.count: 'three' is not a whole number"]
    assert faults("Own", "data.num_workers=two") == ["data.num_workers: 'two' is not a whole number"]


def test_what_is_no_data_module_is_refused():
    assert faults("Foreign") == ["data: Foreign is not a DataModule: the part is in the wrong slot"]
    (slot,) = faults("Own", "data._target_=voxzoo.components.NoAdaptor")
    wrong = "data: NoAdaptor is not a DataModule: the part is in the wrong slot"
    assert slot == f"{wrong}; it fills the role Adaptor: its key is adaptor"


def test_what_a_class_lacks_is_named():
    config = compose(["data=tiny", f"allow=[{__name__}]"])
    config.data = {"_target_": f"{__name__}.NoTokenizer", "frontend": "${frontend}"}
    lacks, takes = map(str, check(config))
    assert lacks.startswith("data: NoTokenizer lacks collator, plan, rows, splits, train_dataloader, utterances, val_")
    assert takes.startswith("data: NoTokenizer takes no 'tokenizer', which it is given: add `tokenizer=None`")


def test_lora_on_data_is_refused():
    (fault,) = [str(one) for one in check(compose(["data=tiny", "+lora.data={targets:{q:'*q'}}"]))]
    assert fault.startswith("lora.data: there is no such role")


def test_rows_alone_make_batches():
    data = Own(frontend=Fbank(), batch_size=4)
    data.needs = frozenset({"speech"})
    batches = list(data.train_dataloader())
    assert sorted(name for batch in batches for name in batch.ids) == sorted(f"train{index}" for index in range(11))
    for batch in batches:
        assert batch.seconds.tolist() == pytest.approx([0.2 + 0.02 * (int(name[5:]) % 5) for name in batch.ids])
    assert data.languages() == ("eng", "spa")
    assert list(data.texts("valid")) == ["0", "1", "2"]
    items, planned, oversized = data.plan({"speech"}, 2)
    assert (len(items), len(planned), oversized) == (11, 4, [])
    assert pickle.loads(pickle.dumps(data.train_dataloader().dataset.items))[3] == items[3]


def test_a_row_at_fault_is_named():
    for broken, message in (
        ("{'id': 'train3'}", "Own: train: the id 'train3' is used 2 times; ids must be unique in a split"),
        ("{'src_lang': ''}", "Own: train: utterance 'b' has no src_lang"),
        ("{'tgt_text': 'b'}", "Own: train: utterance 'b' has no tgt_lang"),
        ("{'duration': -1.0}", "Own: train: utterance 'b': duration=-1.0: expected seconds above 0"),
        ("{'src_text': 3}", "Own: train: utterance 'b': src_text=3: expected text"),
    ):
        with pytest.raises(UserError) as found:
            Own(batch_size=4, broken=broken).rows("train")
        assert str(found.value) == message
    with pytest.raises(UserError, match="Own: train: there are no utterances"):
        Own(batch_size=4, count=0).rows("train")


def test_audio_that_cannot_be_measured_is_left_out():
    data = Own(batch_size=4, broken="{'audio': 'noise'}", frontend=Fbank())
    data.needs = frozenset({"speech"})
    items, _, _ = data.plan({"speech"})
    assert len(items) == 11
    assert data.dropped["train"] == {"unreadable audio (noise: no tone)": ["b"]}


def test_paths_may_be_paths(tmp_path: Path):
    class Paths(Own):
        def read(self, split):
            return [Utterance(id="a", audio=tmp_path / "a.wav", src_lang="spa", duration=np.float64(1.5))]

    (row,) = Paths(batch_size=1).rows("train")
    assert (row.audio, row.duration) == (str(tmp_path / "a.wav"), 1.5)


def test_the_zoo_has_the_role():
    assert issubclass(SpeechTranslationData, DataModule)


@pytest.mark.parametrize("name", ["dev", "val", "Validation"])
def test_a_validation_split_under_another_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Own, "splits", lambda self: ("train", name))
    with pytest.raises(UserError, match=f"Own: splits are train, {name}; validation reads 'valid': name it so"):
        Own(batch_size=4, frontend=Fbank()).val_dataloader()


def test_data_without_validation_say_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(Own, "splits", lambda self: ("train", "newstest"))
    monkeypatch.setattr(logging.getLogger("voxzoo.datamodules.resume"), "disabled", False)  # as another test leaves it
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert Own(batch_size=4, frontend=Fbank()).val_dataloader() == []
    (record,) = caplog.records
    assert record.getMessage() == "Own: no split 'valid': nothing is validated, the last checkpoint counts"
