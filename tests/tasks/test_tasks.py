"""The tasks with tiny parts from the shipped YAML: what learns, what does not, and what a checkpoint carries."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions
from voxzoo.components.types import Batch, Padded
from voxzoo.configs import build, compose
from voxzoo.tasks import SpeechToSpeechUnitY, SpeechToText, TextToText, UnitVocoderTask, load_run
from voxzoo.tasks.checkpoints.files import AtomicCheckpointIO, Checkpointer, Interrupted
from voxzoo.tasks.runs.initial import load_parts
from voxzoo.tasks.runs.run import read_checkpoint
from voxzoo.tasks.task import Task
from voxzoo.tasks.training.train import build_for_training, prepare_data, train
from voxzoo.tasks.units import extract_units, fit_units

UNITS = ["unit_extractor=tiny", "t2u=tiny", "vocoder=tiny"]


@dataclass
class Case:
    """A task that was built as `voxzoo train` builds it, and its data."""

    task: Task
    data: Any
    folder: Path
    config: Any

    def batch(
        self, rows: slice | list[int] = slice(0, 4), needs: frozenset[str] | None = None, mode: str | None = None
    ) -> Batch:
        """Training utterances as a batch, in the order of the manifest."""
        utterances = list(self.data.rows("train"))
        chosen = utterances[rows] if isinstance(rows, slice) else [utterances[n] for n in rows]
        name = mode or ("t2tt" if isinstance(self.task, TextToText) else "s2tt")
        return self.data.collator(needs or self.task.needs)([replace(row, task=name) for row in chosen])


@pytest.fixture(scope="module")
def units(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    """Units of the tiny corpus, and the state of the extractor that made them."""
    folder = tmp_path_factory.mktemp("units")
    config = compose([*tiny, *UNITS, "task=fit_units", f"root={folder}"])
    data, extractor = prepare_data(config), build(config.unit_extractor)
    fit_units(extractor, data.rows("train"))
    extract_units(extractor, [row for split in data.splits() for row in data.rows(split)], path=folder / "units.jsonl")
    return str(folder / "units.jsonl"), extractor.state_dict()


@pytest.fixture(scope="module")
def make(tiny: list[str], units: tuple[str, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory):
    """make("speech_to_text", "adaptor=stack") -> Case. Weights are the same at each call."""
    folder = tmp_path_factory.mktemp("cases")

    def case(name: str, *overrides: str) -> Case:
        extra = [*UNITS, f"data.units={units[0]}"] if name in ("speech_to_speech_unity", "unit_vocoder") else []
        config = compose([*tiny, f"task={name}", f"root={folder}", *extra, *overrides])
        data = prepare_data(config)
        torch.manual_seed(0)
        task = build_for_training(config, Path(config.run_dir))
        extractor = task.parts().get("unit_extractor")
        if extractor is not None:
            extractor.load_state_dict(units[1])
        data.needs = task.needs
        return Case(task, data, Path(config.run_dir), config)

    return case


FIRST_PASS = [f"freeze.{role}=true" for role in ("speech_encoder", "adaptor", "text_seq2seq")]
CASES = {
    "speech_to_text": ("speech_to_text",),
    "speech_to_text without ctc": ("speech_to_text", "task.ctc_weight=0"),
    "ctc on the adaptor, encoder frozen": (
        "speech_to_text", "task.ctc_on=adaptor", "freeze.speech_encoder=true", "adaptor.stride=1",
    ),
    "adaptor with a loss": ("speech_to_text", "adaptor=ctc_shrink"),
    "text_to_text": ("text_to_text",),
    "text_to_text, R-Drop": ("text_to_text", "task.r_drop=5"),
    "speech and text": ("speech_and_text_to_text",),
    "speech and text, all learns, R-Drop": (
        "speech_and_text_to_text", "task.train_text_encoder=true", "task.r_drop=5", "task.ctc_weight=0.3",
    ),
    "unity": ("speech_to_speech_unity", "text_seq2seq.num_encoder_layers=0"),
    "unity, first pass frozen": ("speech_to_speech_unity", "text_seq2seq.num_encoder_layers=0", *FIRST_PASS),
    "unity, autoregressive": (
        "speech_to_speech_unity", "text_seq2seq.num_encoder_layers=0", "t2u=autoregressive", "t2u.dim=16",
        "t2u.ffn_dim=32", "t2u.num_encoder_layers=1", "t2u.num_decoder_layers=1", "t2u.max_length=16",
        "t2u.beam_size=2",
    ),
    "unity, from text": ("speech_to_speech_unity",),
    "unity, as published": (
        "speech_to_speech_unity", "t2u=autoregressive", "t2u.dim=16", "t2u.ffn_dim=32", "t2u.num_encoder_layers=1",
        "t2u.num_decoder_layers=1", "t2u.max_length=16", "t2u.beam_size=2", "t2u.num_languages=2", "task.t2u_input=all",
        "task.t2u_eos=keep", "task.t2u_languages=[eng,spa]",
    ),
    "unit_vocoder": ("unit_vocoder",),
    "unit_vocoder, iSTFT": ("unit_vocoder", "vocoder=tiny_istft"),
}  # fmt: skip
LOSSES = {
    "speech_to_text": {"text", "ctc"},
    "speech_to_text without ctc": {"text"},
    "ctc on the adaptor, encoder frozen": {"text", "ctc"},
    "text_to_text": {"text"},
    "text_to_text, R-Drop": {"text", "r_drop"},
    "speech and text": {"text", "mt", "kd"},
    "speech and text, all learns, R-Drop": {"text", "mt", "kd", "ctc", "r_drop"},
    "unity": {"text", "ctc", "t2u_ctc", "t2u_duration"},
    "unity, first pass frozen": {"t2u_ctc", "t2u_duration"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_reaches_every_trainable_parameter_and_no_frozen_one(name: str, make: Callable[..., Case]):
    case = make(*CASES[name])
    task = case.task.train()
    losses, statistics = task.measure(case.batch())
    assert losses.keys() == LOSSES.get(name, losses.keys())
    assert not losses.keys() & statistics.keys()
    for key, loss in losses.items():
        assert loss.total.dim() == loss.count.dim() == 0, key
        assert torch.isfinite(loss.total), key
        assert loss.count > 0, key
    task.weighted(losses).backward()
    for key, parameter in task.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{key} is frozen"
            # No loss of a speech task reaches a text encoder: it does not learn.
            unread = isinstance(task, SpeechToText) and key.startswith("text_seq2seq.encoder.")
            assert unread or key.split(".")[0] in {*task.frozen, "ctc_head"}, key
        else:
            assert parameter.grad is not None, f"{key} gets no gradient"
            assert torch.isfinite(parameter.grad).all(), key
    assert any(p.requires_grad for p in task.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_keys_of_losses_never_depend_on_the_batch(name: str, make: Callable[..., Case]):
    case = make(*CASES[name])
    usual = case.batch()
    keys = [list(part) for part in case.task.measure(usual)]
    other = [case.batch([5]), case.batch([7, 3, 1])]
    if usual.transcript is not None:
        other.append(replace(usual, transcript=Padded(torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4).long())))
    for batch in other:
        measured = case.task.measure(batch)
        assert [list(part) for part in measured] == keys
        assert all(torch.isfinite(loss.total) for loss in measured[0].values())


@pytest.mark.parametrize("name", CASES)
def test_frozen_parts_stay_in_evaluation_mode(name: str, make: Callable[..., Case]):
    task = make(*CASES[name]).task
    for training in (True, False, True):
        task.train(training)
        for role, part in task.parts().items():
            expected = training and role not in task.frozen
            assert all(module.training == expected for module in part.modules()), role


def test_a_frozen_first_pass_is_not_changed_by_the_second(make: Callable[..., Case]):
    case = make(*CASES["unity, first pass frozen"])
    assert not case.task.ctc_head.weight.requires_grad
    before = {name: value.clone() for name, value in case.task.state_dict().items()}
    fit(case, [case.batch()], max_steps=2)
    changed = {name.split(".")[0] for name, value in case.task.state_dict().items() if not value.equal(before[name])}
    assert changed == {"t2u"}


def test_freezing_an_unknown_role_names_the_roles(make: Callable[..., Case]):
    with pytest.raises(UserError, match=r"freeze\.vocoder: SpeechToText has no such part; it has: speech_encoder"):
        make("speech_to_text", "freeze.vocoder=true")
    frozen = make("unit_vocoder", "freeze.vocoder=true")
    with pytest.raises(UserError, match="every part is frozen"):
        fit(frozen, [frozen.batch()])


# Serving


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("speech_to_text", "s2tt"),
        ("text_to_text", "t2tt"),
        ("unity", "s2st"),
        ("unity, autoregressive", "s2st"),
        ("unity, from text", "t2tt"),
        ("unity, from text", "t2st"),
        ("unity, from text", "s2st"),
        ("unity, as published", "s2st"),
        ("unit_vocoder", "u2s"),
    ],
)
def test_a_padded_batch_is_served_as_each_row_alone(name: str, mode: str, make: Callable[..., Case]):
    case = make(*CASES[name])
    task = case.task.eval()
    options = SearchOptions(beam_size=2, max_length=12)
    needs = task.serving_needs() if mode != "u2s" else task.needs
    batch = case.batch([0, 1, 2, 3], needs, mode)
    assert len(set(next(p for p in (batch.speech, batch.source, batch.units) if p is not None).lengths.tolist())) > 1
    together = task.predict(batch, task=mode, options=options)
    for place, row in enumerate(together):
        (alone,) = task.predict(case.batch([place], needs, mode), task=mode, options=options)
        assert (row.id, row.task, row.tgt_lang, row.text) == (alone.id, mode, "eng", alone.text)
        assert row.units == alone.units
        if row.score is not None:
            assert row.score == pytest.approx(alone.score, abs=1e-4)
        assert (row.audio is None) == (mode not in ("s2st", "t2st", "u2s"))
        if row.audio is not None:
            torch.testing.assert_close(row.audio, alone.audio, atol=1e-4, rtol=0)


def test_only_what_the_task_can_do_is_served(make: Callable[..., Case]):
    case = make("speech_to_text")
    with pytest.raises(UserError, match="--task s2st: SpeechToText can do asr, s2tt"):
        case.task.predict(case.batch(), task="s2st")


# Widths


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("speech_to_text", "adaptor.input_dim=24", "adaptor.input_dim is 24, but speech_encoder gives width 32"),
        ("speech_to_text", "adaptor.output_dim=24", "adaptor.output_dim is 24, but text_seq2seq has width 32"),
        ("speech_to_speech_unity", "t2u.input_dim=24", "t2u.input_dim is 24, but text_seq2seq has width 32"),
        ("speech_to_speech_unity", "t2u.num_units=5", "t2u.num_units is 5, but vocoder.num_units is 8"),
        ("speech_to_speech_unity", "vocoder.num_units=9", "t2u.num_units is 8, but vocoder.num_units is 9"),
        ("unit_vocoder", "vocoder.num_units=9", "vocoder.num_units is 9, but unit_extractor.num_units is 8"),
        ("text_to_text", "text_seq2seq.num_encoder_layers=0", "needs a text encoder"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_both_sizes(name: str, override: str, words: str, make):
    with pytest.raises(UserError, match=words) as error:
        make(name, override)
    assert "set " in str(error.value)
    assert "\n" not in str(error.value)


# Steps


def fit(case: Case, batches: list[Batch], *, lr: float = 0.1, max_steps: int = 1, accumulate: int = 1) -> Trainer:
    case.task.attach_optimizer(functools.partial(torch.optim.SGD, lr=lr), None)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(case.task, loader(batches))
    return trainer


def loader(batches: list[Batch]) -> DataLoader:
    """These batches, in this order."""
    return DataLoader(batches, batch_size=None, shuffle=False)  # pyright: ignore[reportArgumentType]


def without_dropout(case: Case) -> Case:
    for module in case.task.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                setattr(module, name, 0.0)
    return case


@pytest.mark.parametrize(
    "name", ["speech_to_text", "adaptor with a loss", "text_to_text", "speech and text", "unity", "unit_vocoder"]
)
def test_a_step_does_not_depend_on_how_its_batch_was_cut_up(name: str, make: Callable[..., Case]):
    # Vocoders train on random crops: a batch of whole utterances has none.
    more = ["vocoder.crop_units=100000"] if name in ("unity", "unit_vocoder") else []
    whole, cut, uneven = (without_dropout(make(*CASES[name], *more)) for _ in range(3))
    before = {key: value.clone() for key, value in whole.task.state_dict().items()}
    fit(whole, [whole.batch(slice(0, 4))])
    fit(cut, [cut.batch(slice(0, 2)), cut.batch(slice(2, 4))], accumulate=2)
    fit(uneven, [uneven.batch(slice(0, 1)), uneven.batch(slice(1, 4))], accumulate=2)
    assert any(not value.equal(before[key]) for key, value in whole.task.state_dict().items())
    for other in (cut, uneven):
        for key, value in other.task.state_dict().items():
            torch.testing.assert_close(
                value, whole.task.state_dict()[key], atol=2e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", ["speech_to_text", "text_to_text", "unity", "unit_vocoder"])
def test_a_batch_that_stands_in_counts_for_nothing(name: str, make: Callable[..., Case]):
    """A step beside it is the step of the others alone, and every parameter has a gradient."""
    more = ["vocoder.crop_units=100000"] if name in ("unity", "unit_vocoder") else []
    alone, beside = (without_dropout(make(*CASES[name], *more)) for _ in range(2))
    fit(alone, [alone.batch(slice(0, 2))])
    empty = replace(beside.batch(slice(2, 3)), stands_in=True)
    fit(beside, [beside.batch(slice(0, 2)), empty], accumulate=2)
    for key, value in beside.task.state_dict().items():
        torch.testing.assert_close(value, alone.task.state_dict()[key], atol=2e-6, rtol=1e-5)
    losses, statistics = beside.task.measured(empty)
    assert all(float(value.total) == float(value.count) == 0 for value in [*losses.values(), *statistics.values()])


def test_a_signal_between_the_batches_of_a_step_waits_for_its_end(make: Callable[..., Case], tmp_path: Path):
    class Signal(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:  # the first of the second step
                os.kill(os.getpid(), signal.SIGINT)

    case = make("text_to_text")
    case.task.attach_optimizer(functools.partial(torch.optim.SGD, lr=0.1), None)
    keeper = Checkpointer(folder=str(tmp_path))
    trainer = Trainer(
        accelerator="cpu", max_steps=5, max_epochs=-1, accumulate_grad_batches=3, callbacks=[Signal(), keeper],
        logger=False, enable_checkpointing=True, enable_progress_bar=False, enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    with pytest.raises(Interrupted, match="stopped by SIGINT at step 2; the same command continues"):
        trainer.fit(case.task, loader([case.batch([n]) for n in range(9)]))
    keeper.restore_handlers()
    content = read_checkpoint(tmp_path / "last.ckpt")
    assert content["global_step"] == 2
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert progress["ready"] == 6


def test_validation_divides_sums_once(make: Callable[..., Case]):
    case = make("text_to_text")
    case.task.attach_optimizer(functools.partial(torch.optim.SGD, lr=0.1), None)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    uneven = [case.batch(slice(0, 1)), case.batch(slice(1, 6))]
    (metrics,) = trainer.validate(case.task, loader(uneven), verbose=False)
    case.task.eval()
    with torch.no_grad():
        losses, statistics = case.task.measure(case.batch(slice(0, 6)))
    assert metrics["valid/text"] == pytest.approx(float(losses["text"].mean), rel=1e-5)
    assert metrics["valid/accuracy"] == pytest.approx(float(statistics["accuracy"].mean), rel=1e-5)


def test_a_text_encoder_brings_two_more_tasks(make: Callable[..., Case]):
    task = make(*CASES["unity, from text"]).task
    assert task.modes == {"s2st", "s2tt", "asr", "t2st", "t2tt"}
    assert task.serving_needs() == {"speech", "source"}
    without = make(*CASES["unity"]).task
    assert without.modes == {"s2st", "s2tt", "asr"}
    assert without.serving_needs() == {"speech"}
    case = make(*CASES["unity, from text"])
    batch = case.batch([0, 1], case.task.serving_needs())
    with pytest.raises(UserError, match="t2st reads text, but the batch has none"):
        case.task.eval().predict(replace(batch, source=None), task="t2st")


def test_languages_of_the_second_pass_are_named_and_told(make: Callable[..., Case]):
    case = make(*CASES["unity, as published"])
    task = case.task.eval()
    batch = case.batch()
    english = task.losses(batch)["t2u_unit"].total
    spanish = task.losses(replace(batch, tgt_lang=("spa",) * 4))["t2u_unit"].total
    assert english != spanish
    with pytest.raises(UserError, match=r"no speech output in fra \(task\.t2u_languages\): this run speaks eng, spa"):
        task.predict(replace(batch, tgt_lang=("fra",) * 4), task="s2st")
    with pytest.raises(UserError, match=r"t2u_languages names 1, but t2u\.num_languages is 2"):
        make(*CASES["unity, as published"][:-1], "task.t2u_languages=[eng]")
    with pytest.raises(UserError, match=r"reads speech with speech_encoder and adaptor, or text"):
        make("speech_to_speech_unity", "text_seq2seq.num_encoder_layers=0", "task.speech_encoder=null")


@pytest.mark.parametrize("t2u", ["tiny", "tiny_unity2"])
def test_a_second_pass_without_languages_is_told_none(t2u: str, make: Callable[..., Case]):
    words = ("speech_to_speech_unity", f"t2u={t2u}", "text_seq2seq.num_encoder_layers=0")
    plain, named = make(*words), make(*words, "task.t2u_languages=[eng,spa]")
    batch = plain.batch()
    for case in (plain, named):
        case.task.eval()
    expected = plain.task.losses(batch)
    for key, loss in named.task.losses(batch).items():
        assert loss.total == expected[key].total, key
    options = SearchOptions(beam_size=1, max_length=6)
    one, other = (case.task.predict(batch, task="s2st", options=options) for case in (plain, named))
    assert [row.units for row in one] == [row.units for row in other]
    with pytest.raises(UserError, match=r"no speech output in fra \(task\.t2u_languages\): this run speaks eng, spa"):
        named.task.predict(replace(batch, tgt_lang=("fra",) * 4), task="s2st")


def test_resynthesis_of_a_second_pass_speaks_each_language(make: Callable[..., Case]):
    voices = ("vocoder=tiny_hifi_gan", "vocoder.num_langs=2", "vocoder.num_speakers=3", "vocoder.lang_dim=4")
    words = ("task.vocoder_languages=[spa,eng]", "task.speaker=2", "vocoder.speaker_dim=4")
    case = make("speech_to_speech_unity", *voices, *words)
    task: Any = case.task.eval()
    batch = replace(case.batch(slice(0, 2)), tgt_lang=("eng", "spa"))
    assert batch.units is not None
    ones = batch.units.with_data(torch.ones_like(batch.units.data))
    with torch.inference_mode():
        expected = task.vocoder(batch.units, torch.tensor([1, 0]), torch.tensor([2, 2]), ones).unpad()
    for row, audio in zip(task.resynthesise(batch), expected, strict=True):
        assert row.equal(audio)
    with pytest.raises(UserError, match=r"no speech output in fra \(task\.vocoder_languages\)"):
        task.resynthesise(replace(batch, tgt_lang=("fra", "spa")))


# Checkpoints


@pytest.fixture(scope="module")
def saved(make: Callable[..., Case], tmp_path_factory: pytest.TempPathFactory):
    """saved("unity") -> (Case after a step, checkpoint file); made once a name."""
    folder = tmp_path_factory.mktemp("saved")
    known: dict[str, tuple[Case, Path]] = {}

    def save(name: str) -> tuple[Case, Path]:
        if name not in known:
            case = make(*CASES[name])
            path = folder / f"{name}.ckpt"
            fit(case, [case.batch()]).save_checkpoint(path)
            known[name] = case, path
        return known[name]

    return save


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("speech_to_text", SpeechToText),
        ("text_to_text", TextToText),
        ("unity", SpeechToSpeechUnitY),
        ("unit_vocoder", UnitVocoderTask),
    ],
)
def test_a_checkpoint_rebuilds_the_task_without_any_other_file(name: str, cls: type[Task], saved, tmp_path: Path):
    case, path = saved(name)
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(path.read_bytes())
    if case.task.tokenizer is not None:
        assert str(case.folder / "tokenizer.model") == case.config.tokenizer.model
        Path(case.config.tokenizer.model).rename(tmp_path / "gone.model")
    try:
        again = cls.from_checkpoint(alone)
    finally:
        if case.task.tokenizer is not None:
            (tmp_path / "gone.model").rename(case.config.tokenizer.model)
    assert type(again) is cls
    assert not again.training
    expected = case.task.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for key, value in again.state_dict().items():
        assert value.equal(expected[key]), key
    assert again.config == case.task.config
    if again.tokenizer is not None:
        assert again.tokenizer.languages == ("eng", "spa")
        assert again.tokenizer.encode("two trains") == case.task.tokenizer.encode("two trains")
    mode = sorted(cls.modes)[-1]
    batch = case.batch(needs=case.task.serving_needs() | ({"units"} & case.task.needs))
    options = SearchOptions(beam_size=2, max_length=8)
    for one, other in zip(
        again.predict(batch, task=mode, options=options), case.task.eval().predict(batch, task=mode, options=options)
    ):
        assert (one.text, one.units, one.score) == (other.text, other.units, other.score)


def test_the_class_of_a_checkpoint_is_checked(saved):
    _, path = saved("text_to_text")
    assert isinstance(Task.from_checkpoint(path), TextToText)
    with pytest.raises(UserError, match="holds a TextToText, not a SpeechToText"):
        SpeechToText.from_checkpoint(path)


def one_line(error: Any) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_checkpoint_of_another_config_is_refused(saved, tmp_path: Path):
    _, path = saved("speech_to_text")
    content = torch.load(path, weights_only=True)
    wider = {**content, "voxzoo": {**content["voxzoo"], "config": changed(content, "text_seq2seq.ffn_dim", 80)}}
    torch.save(wider, tmp_path / "wider.ckpt")
    with pytest.raises(UserError, match=r"does not fit its own config.*\(64, 32\) there, \(80, 32\) here") as error:
        load_run(tmp_path / "wider.ckpt")
    assert "wider.ckpt" in one_line(error)
    deeper = {**content, "voxzoo": {**content["voxzoo"], "config": changed(content, "speech_encoder.num_layers", 3)}}
    torch.save(deeper, tmp_path / "deeper.ckpt")
    with pytest.raises(UserError, match=r"does not fit its own config.*missing: speech_encoder\.") as error:
        load_run(tmp_path / "deeper.ckpt")
    one_line(error)


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = OmegaConf.create(content["voxzoo"]["config"])
    for place in (key, f"task.{key}"):
        OmegaConf.update(config, place, value)
    return OmegaConf.to_container(config)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_refused(share: float, saved, tmp_path: Path):
    content = saved("text_to_text")[1].read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cut\.ckpt") as error:
        read_checkpoint(tmp_path / "cut.ckpt")
    one_line(error)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(saved, tmp_path: Path):
    mark = tmp_path / "executed"
    content = torch.load(saved("text_to_text")[1], weights_only=True)
    torch.save({**content, "bomb": Bomb(mark)}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({**content, "bomb": Bomb(mark)}))
    torch.save({**content, "bomb": Bomb(mark)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("zip", "plain", "old"):
        with pytest.raises(UserError, match="refused, it is no checkpoint or holds more than") as error:
            load_run(tmp_path / f"{name}.ckpt")
        assert not mark.exists()
        assert "weights_only" not in one_line(error)  # torch would advise to run it
    with pytest.raises(UserError):
        Task.from_checkpoint(tmp_path / "zip.ckpt")
    assert not mark.exists()
    pickle.load(io.BytesIO(pickle.dumps(Bomb(mark))))
    assert mark.exists()  # the bomb is real


def test_a_checkpoint_whose_config_would_run_code_is_refused(saved, tmp_path: Path):
    content = torch.load(saved("text_to_text")[1], weights_only=True)
    config = changed(content, "text_seq2seq._target_", "os.system")
    torch.save({**content, "voxzoo": {**content["voxzoo"], "config": config}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"'os.system' is outside voxzoo"):
        load_run(tmp_path / "x.ckpt")


def test_what_is_not_a_checkpoint_of_ours_is_refused(tmp_path: Path):
    torch.save({"model": torch.zeros(2)}, tmp_path / "theirs.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    (tmp_path / "text.ckpt").write_text("hello, not a checkpoint")
    for name, words in (("theirs.pt", "no voxzoo entry"), ("tensor.pt", "no voxzoo entry"), ("text.ckpt", "text.ckpt")):
        with pytest.raises(UserError, match=words) as error:
            load_run(tmp_path / name)
        one_line(error)
    with pytest.raises(UserError, match="no such run folder or checkpoint"):
        load_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a run \(no config.yaml in it\)"):
        load_run(tmp_path)


# Parts of other runs


def test_parts_are_taken_from_another_run(saved, make: Callable[..., Case]):
    other, path = saved("speech_to_text")
    case = make("speech_to_text", "adaptor=stack", f"init.speech_encoder={path}")
    mine, theirs = case.task.speech_encoder.state_dict(), other.task.speech_encoder.state_dict()
    assert all(value.equal(theirs[key]) for key, value in mine.items())
    lines = load_parts(case.task, {"speech_encoder": str(path), "text_seq2seq": None}, case.folder)  # pyright: ignore
    assert len(lines) == 1
    assert "speech_encoder" in lines[0]
    assert str(path) in lines[0]


def test_units_of_another_extractor_are_refused(tiny: list[str], units: tuple[str, Any], tmp_path: Path):
    lines = Path(units[0]).read_text().splitlines()
    row = {**json.loads(lines[2]), "units": [1, 30, 2]}
    (tmp_path / "units.jsonl").write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]) + "\n")
    words = [*tiny, *UNITS, "task=unit_vocoder", f"root={tmp_path}", f"data.units={tmp_path}/units.jsonl"]
    with pytest.raises(
        UserError, match=rf"units.jsonl: '{row['id']}' has unit 30, but vocoder.num_units is 8: "
    ) as error:
        train(words)
    one_line(error)


@pytest.mark.parametrize(
    ("task", "overrides", "words"),
    [
        ("speech_to_text", ["+init.vocoder={path}"], r"init\.vocoder: SpeechToText has no such part; it has:"),
        ("speech_to_speech_unity", ["init.t2u={path}"], r"init\.t2u: .*\.ckpt holds no t2u"),
        ("speech_to_text", ["init.text_seq2seq={path}", "text_seq2seq.dim=16"], r"\(\d+, 32\) there, \(\d+, 16\) here"),
        ("speech_to_text", ["init.speech_encoder={path}", "speech_encoder.num_layers=3"], r"missing: layers\.2"),
        ("speech_to_text", ["init.adaptor={path}", "adaptor=stack"], r"unexpected: "),
        ("speech_to_text", ["init.adaptor=no/such/run"], "no/such/run: no such run folder or checkpoint"),
    ],
)
def test_parts_that_cannot_be_taken_are_named(task: str, overrides: list[str], words: str, saved, make):
    _, path = saved("speech_to_text")
    with pytest.raises(UserError, match=words) as error:
        make(task, *[override.format(path=path) for override in overrides])
    one_line(error)
