"""The data module: what a batch holds, what is dropped, and that training goes on at the next batch after a restart."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from voxzoo.components import Fbank
from voxzoo.components.errors import UserError
from voxzoo.components.roles import Tokenizer
from voxzoo.datamodules import Collator, SpeechTranslationData, Utterance, read_manifest, write_manifest


class Letters(Tokenizer):
    """One id per letter."""

    vocab_size, pad_id, unk_id, bos_id, eos_id, languages = 40, 0, 1, 2, 3, ("eng", "spa")

    def encode(self, text):
        return [4 + ord(char) % 30 for char in text]

    def decode(self, ids):
        return "".join(chr(int(one)) for one in ids)

    def lang_id(self, lang):
        return 38 + self.languages.index(lang)

    def piece_characters(self):
        raise NotImplementedError

    def to_bytes(self):
        return b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 training and 7 validation utterances of noise, with target speech."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 23), ("valid", 7)):
        rows = []
        for index in range(count):
            seconds = 0.2 + 0.05 * ((7 * index) % 11)
            for side, rate in (("src", 16000), ("tgt", 22050)):
                path = root / f"{split}{index}.{side}.wav"
                soundfile.write(path, 0.1 * random.standard_normal(int(seconds * rate)), rate)
            rows.append(
                Utterance(
                    id=f"{split}{index}",
                    audio=str(root / f"{split}{index}.src.wav"),
                    duration=int(seconds * 16000) / 16000,
                    src_lang="spa",
                    tgt_lang="eng",
                    src_text="hola " * (1 + index % 3),
                    tgt_text="hello " * (1 + index % 4),
                    tgt_audio=str(root / f"{split}{index}.tgt.wav"),
                    speaker=f"s{index % 2}",
                )
            )
        write_manifest(root / f"{split}.jsonl", rows)
    return root


def make(folder, **options):
    settings = {"train": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl"), "frontend": Fbank(),
                "tokenizer": Letters(), "batch_size": 4, "seed": 3}  # fmt: skip
    return SpeechTranslationData(**{**settings, **options})


class Recorder(LightningModule):
    """Remembers what it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.validated = []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch.ids))
        return self.layer(batch.seconds[:, None]).sum()

    def validation_step(self, batch, index):
        self.validated.append(batch.ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


class Stop(Exception):
    pass


class StopAt(Callback):
    """Ends the process's training, as a kill would, when step `step` begins."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            raise Stop


def fit(data, steps, *callbacks, resume=None, **options):
    module = Recorder()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=list(callbacks), enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        **{"val_check_interval": 4, **options},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*many workers.*")
        warnings.filterwarnings("error", ".*not resumable.*")
        with contextlib.suppress(Stop):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


def keeper(folder, **options):
    return ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **options)


# 23 utterances in batches of 4: 6 batches an epoch.
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 8, 12, 13, 16])
def test_resume_goes_on_at_the_next_batch(folder, tmp_path, step, workers):
    straight = fit(make(folder), 20).seen
    assert len(straight) == 20
    save = keeper(tmp_path, every_n_train_steps=1)
    before = fit(make(folder, num_workers=workers), 20, save, StopAt(step)).seen
    assert len(before) == step
    after = fit(make(folder, num_workers=workers), 20, resume=str(tmp_path / f"step={step}.ckpt")).seen
    assert before + after == straight


@pytest.mark.parametrize("step", [4, 6, 8, 10, 12])
def test_resume_from_a_checkpoint_saved_in_validation(folder, tmp_path, step):
    """Step 12 is both the end of an epoch and a validation."""
    options = {"val_check_interval": 2}
    straight = fit(make(folder), 16, **options).seen

    class Save(Callback):
        def on_validation_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(make(folder), 14, Save(), **options)
    after = fit(make(folder), 16, resume=str(tmp_path / f"{step}.ckpt"), **options).seen
    assert straight[:step] + after == straight


@pytest.mark.parametrize("interval", [3, 4])
@pytest.mark.parametrize("step", [6, 12])
def test_resume_from_a_checkpoint_of_an_epoch_end(folder, tmp_path, step, interval):
    options = {"val_check_interval": interval}
    straight = fit(make(folder), 20, **options).seen
    save = keeper(tmp_path, save_on_train_epoch_end=True, every_n_epochs=1)
    fit(make(folder), 13, save, **options)
    after = fit(make(folder), 20, resume=str(tmp_path / f"step={step}.ckpt"), **options).seen
    assert straight[:step] + after == straight


def test_resume_on_another_number_of_processes(folder, tmp_path):
    """2 batches of 1 process are 1 step of 2; a checkpoint of step 1 of 2 processes goes on at batch 2."""
    save = keeper(tmp_path, every_n_train_steps=1)
    fit(make(folder), 3, save)
    path = tmp_path / "step=1.ckpt"
    content = torch.load(path, weights_only=True)
    content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["world_size"] = 2
    torch.save(content, path)
    straight = fit(make(folder), 10).seen
    after = fit(make(folder), 5, resume=str(path)).seen
    assert [ids for _, _, ids in after] == [ids for _, _, ids in straight[2:6]]


def test_resume_warns_when_the_data_changed(folder, tmp_path):
    fit(make(folder), 3, keeper(tmp_path, every_n_train_steps=1))
    with pytest.warns(UserWarning, match="changed since the checkpoint"):
        fit(make(folder, batch_size=3), 5, resume=str(tmp_path / "step=2.ckpt"))


def test_an_epoch_has_every_utterance_once_in_another_order(folder):
    seen = fit(make(folder), 12).seen
    first, second = ([one for epoch, _, ids in seen if epoch == wanted for one in ids] for wanted in (0, 1))
    assert sorted(first) == sorted(second) == sorted(row.id for row in read_manifest(folder / "train.jsonl"))
    assert first != second


def test_validation_has_every_utterance_once(folder):
    module = fit(make(folder), 4)
    assert sorted(one for ids in module.validated for one in ids) == sorted(f"valid{index}" for index in range(7))


def test_an_iterator_draws_nothing_from_the_global_generator(folder):
    data = make(folder)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in data.train_dataloader():
        pass
    assert torch.equal(before, torch.get_rng_state())


def test_batch_has_what_is_needed_and_no_more(folder):
    data = make(folder)
    data.needs = frozenset({"speech", "transcript", "source", "target", "target_speech", "speaker"})
    batch = next(iter(data.loader("valid", batch_size=7)))
    rows = {row.id: row for row in data.rows("valid")}
    assert batch.units is None
    assert batch.task == ("s2tt",) * 7
    for place, name in enumerate(batch.ids):
        row, words = rows[name], Letters()
        assert batch.target.unpad()[place].tolist() == [3, 38, *words.encode(row.tgt_text), 3]
        assert batch.source.unpad()[place].tolist() == [39, *words.encode(row.src_text), 3]
        assert batch.transcript.unpad()[place].tolist() == words.encode(row.src_text)
        assert batch.references[place] == row.tgt_text
        samples, _ = soundfile.read(row.audio, dtype="float32")
        assert torch.equal(batch.speech.unpad()[place], Fbank()(torch.from_numpy(samples)))
        seconds = len(soundfile.read(row.tgt_audio)[0]) / 22050
        assert abs(int(batch.target_speech.lengths[place]) / 16000 - seconds) < 1e-3
        assert int(batch.speaker[place]) == int(name[5:]) % 2
    assert batch.seconds.tolist() == pytest.approx([rows[name].duration for name in batch.ids])


def test_rows_become_one_item_per_task(folder):
    data = make(folder, tasks={"s2tt": True, "asr": True, "t2tt": True})
    batches = list(data.loader("valid", needs={"speech", "source", "target"}))
    assert all(len(set(batch.task)) == 1 for batch in batches)
    count = {task: sum(len(batch) for batch in batches if batch.task[0] == task) for task in ("s2tt", "asr", "t2tt")}
    assert count == {"s2tt": 7, "asr": 7, "t2tt": 7}
    for batch in batches:
        assert (batch.speech is None) == (batch.task[0] == "t2tt")
        assert set(batch.tgt_lang) == ({"spa"} if batch.task[0] == "asr" else {"eng"})
        assert all(text.startswith("hola" if batch.task[0] == "asr" else "hello") for text in batch.references)


def test_units_are_joined_by_id(folder, tmp_path):
    path = tmp_path / "units.jsonl"
    rows = [{"id": f"valid{index}", "units": list(range(index + 1))} for index in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = make(folder, units=str(path))
    data.needs = frozenset({"units"})
    loader = data.loader("valid")
    found = {name: row.tolist() for batch in loader for name, row in zip(batch.ids, batch.units.unpad())}
    assert found == {f"valid{index}": list(range(index + 1)) for index in range(6)}
    assert data.dropped["valid"] == {"no units": ["valid6"]}


def test_what_is_dropped_is_said_with_ids(folder, tmp_path, caplog):
    rows = list(read_manifest(folder / "train.jsonl"))
    rows[3] = replace(rows[3], tgt_text="", tgt_lang="")
    write_manifest(tmp_path / "train.jsonl", rows)
    data = make(folder, train=str(tmp_path / "train.jsonl"), min_seconds=0.22, max_seconds=0.65, max_tokens=25)
    loader = data.train_dataloader()
    kept = [name for batch in loader for name in batch.ids]
    dropped = {name: reason for reason, ids in data.dropped["train"].items() for name in ids}
    assert set(kept) | set(dropped) == {row.id for row in rows}
    assert not set(kept) & set(dropped)
    assert dropped["train3"] == "no target text"
    for row in rows:
        if row.duration < 0.22:
            assert dropped[row.id] == "shorter than 0.22 s"
        if row.duration > 0.65 and row.id != "train3":
            assert dropped[row.id] == "longer than 0.65 s"
    assert "more than 25 tokens" in data.dropped["train"]
    assert "train3" in caplog.text
    assert "dropped 1 of 23, no target text" in caplog.text


def test_what_the_model_cannot_take_at_any_speed_is_dropped(folder):
    data = make(folder, speed_perturb=[0.5, 1.0])
    data.longest_seconds = 0.8
    kept = {name for batch in data.train_dataloader() for name in batch.ids}
    assert kept == {row.id for row in data.rows("train") if row.duration <= 0.4}
    (reason,) = data.dropped["train"]
    assert reason == "longer than 0.8 s at 0.5 times the speed, the most that the model takes"
    assert {name for batch in data.val_dataloader() for name in batch.ids} >= {
        row.id for row in data.rows("valid") if row.duration <= 0.8
    }


def test_speed_depends_on_epoch_and_id_not_on_the_worker(folder):
    def played(workers, epoch):
        loader = make(folder, speed_perturb=[0.9, 1.0, 1.1], num_workers=workers).train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return {name: round(float(s), 5) for batch in loader for name, s in zip(batch.ids, batch.seconds)}

    first = played(0, 0)
    rows = {row.id: row.duration for row in read_manifest(folder / "train.jsonl")}
    factors = {round(rows[name] / seconds, 2) for name, seconds in first.items()}
    assert factors == {0.9, 1.0, 1.1}
    assert played(0, 1) != first
    assert played(2, 0) == first


def test_cached_features_are_the_fresh_ones(folder, tmp_path, monkeypatch):
    def read(**options):
        data = make(folder, **options)
        return {n: row for batch in data.loader("train") for n, row in zip(batch.ids, batch.speech.unpad())}

    fresh = read()
    read(cache_dir=str(tmp_path), num_workers=2)  # two processes write
    assert len(list(tmp_path.glob("features/*/*.bin"))) == 2
    calls = []
    monkeypatch.setattr(Fbank, "__call__", lambda self, wave: calls.append(1) or torch.zeros(1, self.output_dim))
    cached = read(cache_dir=str(tmp_path))
    assert not calls
    assert fresh.keys() == cached.keys()
    assert all(torch.equal(fresh[name], cached[name]) for name in fresh)


def test_cache_notices_a_changed_file_and_a_torn_line(folder, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.ones(8000), 16000)
    data = make(folder, cache_dir=str(tmp_path / "cache"))
    item = Utterance(id="a", audio=str(path), duration=0.5, src_lang="spa")
    first = data.collator({"speech"})([item]).speech
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    second = data.collator({"speech"})([item]).speech
    assert not torch.equal(first.data, second.data)
    index = next((tmp_path / "cache").glob("features/*/*.index"))
    index.write_text(index.read_text()[:-5])  # what a kill in the middle of a write leaves
    third = data.collator({"speech"})([item]).speech
    assert torch.equal(second.data, third.data)


def test_collator_is_picklable_and_works_alone(folder):
    collator = pickle.loads(pickle.dumps(Collator(Fbank(), Letters(), {"speech", "source"})))
    row = read_manifest(folder / "valid.jsonl")[0]
    batch = collator([row])
    assert batch.speech.lengths.tolist() == [Fbank().output_length(round(row.duration * 16000))]
    assert batch.target is None


def test_padding_changes_nothing(folder):
    rows = list(read_manifest(folder / "valid.jsonl"))
    collate = Collator(Fbank(), Letters(), {"speech", "target"})
    together = collate(rows)
    for row, features in zip(rows, together.speech.unpad()):
        torch.testing.assert_close(features, collate([row]).speech.data[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": None}, "budget"),
        ({"tasks": {"s2t": True}}, "s2tt"),
        ({"tasks": {"s2tt": False}}, "s2tt"),
        ({"speed_perturb": [9.0]}, "0.5 to 2"),
        ({"max_seconds": 0.05}, "min_seconds"),
        ({"train": None, "valid": None}, "no data"),
    ],
)
def test_contradictions_are_refused(folder, options, said):
    with pytest.raises(UserError, match=said):
        make(folder, **options)


def test_unknown_split_and_missing_parts_are_named(folder):
    data = make(folder, tokenizer=None)
    with pytest.raises(UserError, match="train, valid"):
        data.rows("dev")
    with pytest.raises(UserError, match="no tokenizer"):
        data.train_dataloader()
    with pytest.raises(UserError, match="frontend"):
        make(folder, frontend=None).train_dataloader()
    data = make(folder)
    data.needs = frozenset({"units"})
    with pytest.raises(UserError, match=r"data\.units"):
        data.train_dataloader()


def test_languages_texts_statistics(folder):
    data = make(folder)
    assert data.languages() == ("eng", "spa")
    texts = list(data.texts("valid"))
    assert len(texts) == 14
    assert texts[:2] == ["hola", "hello"]
    about = data.statistics()["valid"]
    assert about["utterances"] == 7
    assert about["languages"] == {"spa-eng": 7}
    assert about["speakers"] == 2


class Writer(Recorder):
    """Writes the ids of each batch to a file per rank: it runs in other processes."""

    def __init__(self, folder):
        super().__init__()
        self.folder = str(folder)

    def training_step(self, batch, index):
        with open(f"{self.folder}/train{self.global_rank}", "a") as file:
            file.write(" ".join(batch.ids) + "\n")
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        with open(f"{self.folder}/valid{self.global_rank}", "a") as file:
            file.write(" ".join(batch.ids) + "\n")


@pytest.mark.slow
def test_two_processes_share_the_batches_and_one_goes_on(folder, tmp_path):
    trainer = Trainer(
        max_steps=4, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        val_check_interval=4, callbacks=[keeper(tmp_path, every_n_train_steps=1)],
    )  # fmt: skip
    trainer.fit(Writer(tmp_path), make(folder))
    lines = {name: (tmp_path / name).read_text().splitlines() for name in ("train0", "train1", "valid0", "valid1")}
    plan = [" ".join(ids) for _, _, ids in fit(make(folder), 8).seen]
    assert lines["train0"] == plan[0:8:2]
    assert lines["train1"] == plan[1:8:2]
    assert len(lines["valid0"]) == len(lines["valid1"])
    valid = " ".join(lines["valid0"] + lines["valid1"]).split()
    assert sorted(valid) == [f"valid{index}" for index in range(7)]
    after = fit(make(folder), 6, resume=str(tmp_path / "step=1.ckpt")).seen
    assert [" ".join(ids) for _, _, ids in after] == plan[2:7]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_row_breaks_is_one_line_with_and_without_workers(folder, tmp_path, workers):
    rows = read_manifest(folder / "train.jsonl")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF and no more")
    write_manifest(tmp_path / "train.jsonl", [replace(rows[0], audio=str(broken), duration=0.5), *rows[1:]])
    module = make(folder, train=str(tmp_path / "train.jsonl"), num_workers=workers)
    with pytest.raises(UserError) as found:
        list(module.train_dataloader())
    assert "broken.wav" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("how", ["error", "circle"])
def test_no_worker_outlives_its_iterator(folder, how):
    """Workers ignore SIGTERM, by which an iterator ends them that the garbage collector finds in a circle."""
    loader = make(folder, num_workers=1).train_dataloader()
    if how == "error":
        loader.collate_fn.collate.frontend = None
    iterator = iter(loader)
    with pytest.raises(RuntimeError) if how == "error" else contextlib.nullcontext():
        next(iterator)
    worker = iterator._iterator._workers[0]
    assert worker.is_alive() == (how == "circle")
    circle = [iterator, loader]
    circle.append(circle)
    del iterator, loader, circle
    gc.collect()
    worker.join(30)
    assert worker.exitcode is not None


def test_a_loader_goes_on_behind_an_error(folder):
    """With new workers: those of the iterator that failed have ended."""
    loader = make(folder, num_workers=1).train_dataloader()
    frontend, loader.collate_fn.collate.frontend = loader.collate_fn.collate.frontend, None
    with pytest.raises(RuntimeError, match="AssertionError"):
        next(iter(loader))
    loader.collate_fn.collate.frontend = frontend
    assert list(loader)


class _Killed(Fbank):
    def __call__(self, waveform):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line(folder):
    module = make(folder, num_workers=1)
    loader = module.train_dataloader()
    loader.collate_fn.collate.frontend = _Killed()
    with pytest.raises(UserError, match=r"reads data was killed .*data.num_workers"):
        list(loader)


@pytest.mark.timeout(60)
def test_a_batch_that_a_worker_cannot_hand_on_is_not_waited_for(folder):
    loader = make(folder, num_workers=1).train_dataloader()
    loader.collate_fn = lambda rows: lambda: rows  # which no process can send
    with pytest.raises(UserError, match="reads data was killed"):
        list(loader)


def test_an_error_of_the_code_keeps_its_trace_from_a_worker(folder):
    loader = make(folder, num_workers=1).train_dataloader()
    loader.collate_fn.collate.frontend = None
    with pytest.raises(RuntimeError, match="AssertionError") as found:
        list(loader)
    assert "_speech" in str(found.value)


def test_rows_in_a_language_without_a_token_are_left_out_and_named(folder, tmp_path):
    """Before training, not by a worker in the middle of it."""
    rows = read_manifest(folder / "train.jsonl")
    odd = [replace(row, tgt_lang="deu") if number < 2 else row for number, row in enumerate(rows)]
    write_manifest(tmp_path / "train.jsonl", odd)
    module = make(folder, train=str(tmp_path / "train.jsonl"))
    batches = list(module.train_dataloader())
    assert sum(len(batch.ids) for batch in batches) == len(rows) - 2
    reason = "no token for the language 'deu' in the tokenizer"
    assert module.dropped["train"] == {reason: [row.id for row in rows[:2]]}
    write_manifest(tmp_path / "none.jsonl", [replace(row, tgt_lang="deu") for row in rows])
    with pytest.raises(UserError, match=f"none of 23 utterances can be used: 23 {reason}"):
        make(folder, train=str(tmp_path / "none.jsonl")).train_dataloader()
    # What is spoken may be in any language; what is read may not.
    speech = [replace(row, src_lang="deu") for row in rows]
    write_manifest(tmp_path / "speech.jsonl", speech)
    assert len(list(make(folder, train=str(tmp_path / "speech.jsonl")).train_dataloader())) > 0
    with pytest.raises(UserError, match="none of 23"):
        make(folder, train=str(tmp_path / "speech.jsonl"), tasks={"t2tt": True}).train_dataloader()


def test_workers_of_a_loader_that_was_left_in_the_middle_end_with_the_process(folder):
    """They ignore SIGTERM, by which Python would end them and then wait."""
    from voxzoo.datamodules import loader as module

    batches = iter(make(folder, num_workers=2).train_dataloader())
    next(batches)
    workers = batches._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    module._close_all()
    assert not any(worker.is_alive() for worker in workers)


def test_texts_that_the_model_has_no_positions_for_are_left_out(folder):
    """Before training; those that are short enough are not counted."""
    module = make(folder)
    module.longest_text = 18
    batches = list(module.train_dataloader())
    rows = read_manifest(folder / "train.jsonl")
    long = [row.id for row in rows if len(row.tgt_text) > 18]
    assert 0 < len(long) < len(rows)
    assert module.dropped["train"] == {"more than 18 tokens, the most that the model has positions for": long}
    assert sum(len(batch.ids) for batch in batches) == len(rows) - len(long)


def test_training_says_what_the_feature_cache_takes(folder, tmp_path, caplog):
    data = make(folder, cache_dir=str(tmp_path), cache_gb=0.001)
    for _ in range(2):
        for _ in data.train_dataloader():
            pass
    lines = [record.message for record in caplog.records if record.message.startswith("feature cache")]
    assert lines[0] == f"feature cache: 0.00 GB of at most 0.001 (data.cache_gb) in {tmp_path / 'features'}"
    assert len(lines) == 2
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match=r"data\.cache_gb=.*: expected gigabytes from 0"):
            make(folder, cache_gb=wrong)
