"""`data.on_error=skip`: which rows are left out depends on their files alone; each is named once in a run."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest
import soundfile
import torch
from broken import WAYS, write_broken
from voxzoo.components import Fbank
from voxzoo.components.errors import UserError
from voxzoo.datamodules import SpeechTranslationData
from voxzoo.datamodules.skipped import SkippedRows
from voxzoo.datamodules.validation import validate

TWICE = dict.fromkeys(WAYS, 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 good rows and 36 broken ones."""
    folder = tmp_path_factory.mktemp("broken")
    path, broken = write_broken(folder, 60, TWICE)
    return path, broken


def make(path, **options):
    settings = {"train": str(path), "valid": str(path), "frontend": Fbank(), "batch_size": 4, "on_error": "skip"}
    module = SpeechTranslationData(**{**settings, **options})
    module.needs = frozenset({"speech"})
    return module


def read(module, epoch=0, loader=None):
    """Ids of each batch, () of one that stands in, and the speech."""
    loader = loader or module.train_dataloader()
    loader.batch_sampler.seek(epoch, 0)
    return [(() if batch.stands_in else batch.ids, batch.speech.data) for batch in loader]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_all_good_rows_and_no_others_are_read(corpus, workers, caplog):
    path, broken = corpus
    module = make(path, num_workers=workers)
    seen = read(module)
    ids = [name for some, _ in seen for name in some]
    assert len(ids) == len(set(ids)) == 60
    assert not set(ids) & set(broken)
    said = [line for line in caplog.messages if "left out" in line]
    assert sorted(line.split()[3].rstrip(":") for line in said) == sorted(broken)
    assert all("\n" not in line for line in said)
    caplog.clear()
    later = read(module, epoch=1)
    assert {name for some, _ in later for name in some} == set(ids)
    assert not caplog.messages
    assert len(module.skipped) == 36


@pytest.mark.slow
def test_the_same_rows_with_any_number_of_workers(corpus):
    path, _ = corpus
    seen = [read(make(path, num_workers=workers)) for workers in (0, 1, 3)]
    for other in seen[1:]:
        assert [ids for ids, _ in other] == [ids for ids, _ in seen[0]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(seen[0], other, strict=True))


def test_a_batch_without_a_good_row_stands_in(corpus):
    """Each process has as many batches as the plan says."""
    path, _ = corpus
    module = make(path, batch_size=1)
    loader = module.train_dataloader()
    seen = read(module, loader=loader)
    assert len(seen) == len(loader.batch_sampler)
    alone = [ids for ids, _ in seen if not ids]
    assert len(alone) == 32 - 2  # faults of the manifest and those that its header shows are left out when it is read
    assert len([ids for ids, _ in seen if ids]) == 60
    assert {len(ids) for ids, _ in seen} == {0, 1}
    assert all(speech.shape[0] == 1 for _, speech in seen)


def test_validation_leaves_them_out_too(corpus):
    path, broken = corpus
    module = make(path)
    ids = [name for batch in module.val_dataloader() for name in (() if batch.stands_in else batch.ids)]
    assert len(ids) == 60
    assert not set(ids) & set(broken)


def test_what_the_other_processes_read_does_not_matter(corpus):
    """The batches of two ranks are those of one."""
    path, _ = corpus
    counts: Counter[str] = Counter()
    lengths = []
    for rank in range(2):
        module = make(path)
        loader = module.train_dataloader()
        loader.batch_sampler._rank, loader.batch_sampler._world_size = rank, 2
        seen = read(module, loader=loader)
        lengths.append(len(seen))
        counts.update(name for ids, _ in seen for name in ids)
    assert lengths[0] == lengths[1]
    assert set(counts.values()) == {1}
    assert len(counts) == 60


def test_stop_is_one_line(corpus, tmp_path):
    path, _ = write_broken(tmp_path, 8, {"nan": 1})
    with pytest.raises(UserError, match="not finite") as error:
        list(make(path, on_error="stop").train_dataloader())
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="faults"):
        make(corpus[0], on_error="stop").train_dataloader()


@pytest.mark.parametrize("way", WAYS)
def test_validate_names_what_training_leaves_out(tmp_path, way):
    path, (name,) = write_broken(tmp_path, 4, {way: 1})
    module = make(path)
    read(module)
    assert len(module.skipped) == 1
    places = [place for one in validate(str(path)).findings if one.is_error for place in one.places]
    assert {place.split(":")[0] for place in places} == {name}


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    """Not a run that leaves out everything."""
    path, _ = write_broken(tmp_path, 12, {})
    module = make(path)
    loader = module.train_dataloader()
    for file in tmp_path.glob("*.wav"):
        file.unlink()
    with pytest.raises(UserError, match=r"none of the first 12 rows can be read.*is their folder there") as error:
        list(loader)
    assert "\n" not in str(error.value)


def test_what_the_system_lacks_is_no_fault_of_a_row(tmp_path):
    path, _ = write_broken(tmp_path, 4, {})

    class Full(Fbank):
        def __call__(self, waveform):
            raise OSError(24, "Too many open files")

    module = make(path, frontend=Full())
    with pytest.raises(OSError, match="Too many open files"):
        list(module.train_dataloader())


def test_an_error_of_a_front_end_is_one_of_its_row(tmp_path):
    path, _ = write_broken(tmp_path, 8, {})
    soundfile.write(tmp_path / "train3.wav", [0.25] * 12800, 16000)

    class Picky(Fbank):
        def __call__(self, waveform):
            if waveform.std() == 0:
                raise ZeroDivisionError("no variance")
            return super().__call__(waveform)

    module = make(path, frontend=Picky())
    assert sum(len(ids) for ids, _ in read(module)) == 7
    assert module.skipped._known == {("train", "train3")}


def test_the_record_names_a_row_once_whoever_meets_it(tmp_path, caplog):
    path = tmp_path / "skipped.jsonl"
    first, second = SkippedRows(), SkippedRows()
    first.keep(path)
    second.keep(path)
    first.note("train", "a", "two\nlines")
    second.note("train", "a", "two\nlines")
    second.note("valid", "a", "x")
    with path.open("ab") as file:
        file.write(b'{"split": "train", "i')  # a process was killed
    first.note("train", "b\udc80", "y")
    assert [line.split()[3] for line in caplog.messages] == ["a:", "a:", "b\\udc80:"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"split": "train", "id": "a", "reason": "two lines"},
        {"split": "valid", "id": "a", "reason": "x"},
        {"split": "train", "id": "b\udc80", "reason": "y"},
    ]
    again = SkippedRows()
    again.keep(path)
    again.note("train", "b\udc80", "y")
    assert (first.count(), second.count(), len(again), len(caplog.messages)) == (3, 3, 3, 3)
    assert os.stat(path).st_size == sum(len(line) for line in path.read_bytes().splitlines(keepends=True))
