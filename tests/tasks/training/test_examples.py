"""What TensorBoard gets to show: text beside its reference, audio beside its target, pictures, curves."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import soundfile
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from voxzoo.components.search import SearchOptions
from voxzoo.components.types import Batch
from voxzoo.configs import build, compose
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.contract import tiny_task
from voxzoo.tasks.training.examples import (
    Examples,
    attention_picture,
    codes_picture,
    cross_attention,
    example_mode,
    first_rows,
)
from voxzoo.tasks.training.train import build_for_training, prepare_data
from voxzoo.tasks.units import extract_units, fit_units

SHORT = "task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}"


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0, "tensors": 0})
    return found.Reload()


@pytest.fixture(scope="module")
def speech_to_text(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """The events of a run of four steps and two validations."""
    root = tmp_path_factory.mktemp("runs")
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "schedule=constant"]
    assert main(["train", *tiny, *steps, SHORT, f"root={root}"]) == 0
    return events(root / "default" / "logs")


def test_curves(speech_to_text: EventAccumulator):
    tags = set(speech_to_text.Tags()["scalars"])
    named = {"loss", "text", "ctc", "accuracy", "lr", "grad_norm", "audio_seconds_per_second"}
    assert {f"train/{name}" for name in named} <= tags
    assert {f"valid/{name}" for name in ("loss", "text", "ctc", "accuracy")} <= tags
    curve = {tag: speech_to_text.Scalars(tag) for tag in tags}
    assert [point.step for point in curve["train/loss"]] == [1, 2, 3, 4]
    assert [point.step for point in curve["valid/loss"]] == [2, 4]
    for at in range(4):
        parts = curve["train/text"][at].value + 0.5 * curve["train/ctc"][at].value
        assert curve["train/loss"][at].value == pytest.approx(parts, rel=1e-5)
        assert curve["train/lr"][at].value == pytest.approx(1e-3)
        assert curve["train/grad_norm"][at].value > 0
        assert curve["train/audio_seconds_per_second"][at].value > 1


def test_text_stands_beside_its_reference(speech_to_text: EventAccumulator):
    (tag,) = speech_to_text.Tags()["tensors"]
    shown = speech_to_text.Tensors(tag)
    assert [event.step for event in shown] == [2, 4]
    head, rule, *rows = shown[-1].tensor_proto.string_val[0].decode().splitlines()
    assert head == "| id | reference | hypothesis |"
    assert set(rule) == {"|", "-"}
    assert len(rows) == 4
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert all(len(row[1].split()) > 2 for row in cells)


def test_a_picture_of_cross_attention(speech_to_text: EventAccumulator):
    images = speech_to_text.Tags()["images"]
    assert images == ["cross_attention"]
    assert len(speech_to_text.Images("cross_attention")) == 2
    assert picture(speech_to_text.Images("cross_attention")[0].encoded_image_string).std() > 20


def picture(png: bytes) -> torch.Tensor:
    from matplotlib.image import imread

    return 255 * torch.from_numpy(imread(BytesIO(png)))[..., :3]


# Speech, with the callback alone


@pytest.fixture(scope="module")
def unity(tiny: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A task that speaks, with fitted units, and a batch of its validation data with target speech."""
    root = tmp_path_factory.mktemp("unity")
    parts = ["t2u=tiny", "vocoder=tiny", "unit_extractor=tiny", "text_seq2seq.num_encoder_layers=0"]
    config = compose([*tiny, *parts, SHORT, "task=speech_to_speech_unity", f"root={root}"])
    data = prepare_data(config)
    extractor = build(config.unit_extractor)
    fit_units(extractor, data.rows("train"))
    extract_units(extractor, data.rows("valid"), path=root / "units.jsonl")
    task = build_for_training(config, root)
    data.units_path, data.needs = str(root / "units.jsonl"), task.needs
    rows = [replace(row, task="s2tt") for row in data.rows("valid")]
    batch = data.collator(task.needs | {"target_speech"})(rows)
    return task.eval(), batch


class FakeTrainer:
    is_global_zero, sanity_checking, global_step = True, False, 7

    def __init__(self, folder: Path) -> None:
        self.loggers = [TensorBoardLogger(str(folder), name="", version="")]
        self.default_root_dir = str(folder)


def test_a_speech_lm_is_shown_as_audio_and_codes(tiny: list[str], tmp_path: Path):
    cache = next(word for word in tiny if word.startswith("cache_dir"))
    task, batches = tiny_task(["task=speech_to_speech_lm", cache])
    trainer, examples = FakeTrainer(tmp_path), Examples(count=1)
    examples.on_validation_batch_start(trainer, task, batches[0], 0)  # pyright: ignore[reportArgumentType]
    examples.on_validation_end(trainer, task.eval())  # pyright: ignore[reportArgumentType]
    trainer.loggers[0].experiment.flush()
    found, name = events(tmp_path), batches[0].ids[0]
    assert f"{name}/predicted" in found.Tags()["audio"]
    assert f"{name}/codes" in found.Tags()["images"]


def test_equal_codes_have_the_same_colour():
    codes = torch.tensor([[0, 7], [3, 7], [7, 0]])
    figure = codes_picture(codes, codes.flip(0))
    shown = [axes.images[0] for axes in figure.axes]
    assert [image.get_array().tolist() for image in shown] == [codes.T.tolist(), codes.flip(0).T.tolist()]
    assert {image.get_clim() for image in shown} == {(0, 7)}
    assert len(codes_picture(codes).axes) == 1


def test_speech_is_shown_as_audio_and_spectrograms(unity, tmp_path: Path, capsys):
    task, batch = unity
    trainer, examples = FakeTrainer(tmp_path), Examples(count=2)
    state = {key: value.clone() for key, value in task.state_dict().items()}
    examples.on_validation_batch_start(trainer, task, batch, 0)  # pyright: ignore[reportArgumentType]
    examples.on_validation_batch_start(trainer, task, first_rows(batch, 1), 1)  # pyright: ignore[reportArgumentType]
    examples.on_validation_end(trainer, task)  # pyright: ignore[reportArgumentType]
    trainer.loggers[0].experiment.flush()
    found = events(tmp_path)
    ids = batch.ids[:2]
    kinds = [f"{name}/{kind}" for name in ids for kind in ("predicted", "target")]
    assert set(found.Tags()["audio"]) == set(kinds)
    assert set(found.Tags()["images"]) == {*(f"{kind}_spectrogram" for kind in kinds), "cross_attention"}
    for row, kind in ((0, f"{ids[0]}/target"), (1, f"{ids[1]}/target")):
        audio, rate = soundfile.read(BytesIO(found.Audio(kind)[0].encoded_audio_string))
        expected = batch.target_speech.unpad()[row]
        assert rate == 16000
        assert len(audio) == len(expected)
        assert torch.allclose(torch.from_numpy(audio).float(), expected, atol=1e-3)
    predicted = task.predict(first_rows(batch, 2), task="s2st")
    audio, rate = soundfile.read(BytesIO(found.Audio(f"{ids[0]}/predicted")[0].encoded_audio_string))
    assert (len(audio), rate) == (len(predicted[0].audio), 16000)
    assert all(found.Audio(kind)[0].step == 7 for kind in kinds)
    # The first one is also said in a line, and heard from a file.
    path = tmp_path / "examples" / "step_7.wav"
    (said,) = capsys.readouterr().err.splitlines()
    heard = f"says so far: {predicted[0].text}  listen: {path}"
    assert said == f"step 7  {ids[0]}  should say: {batch.references[0]}  {heard}"
    assert len(soundfile.read(path)[0]) == len(predicted[0].audio)
    for kind in kinds:
        assert picture(found.Images(f"{kind}_spectrogram")[0].encoded_image_string).std() > 20
    assert all(value.equal(state[key]) for key, value in task.state_dict().items())
    # Nothing is kept, and nothing is served again without another validation.
    examples.on_validation_end(trainer, task)  # pyright: ignore[reportArgumentType]


def test_a_picture_that_cannot_be_made_ends_nothing(unity, tmp_path: Path, monkeypatch, capsys):
    task, batch = unity
    trainer, examples = FakeTrainer(tmp_path), Examples(count=2)
    monkeypatch.setattr(task, "predict", lambda *_, **__: 1 / 0)
    examples.on_validation_batch_start(trainer, task, batch, 0)  # pyright: ignore[reportArgumentType]
    examples.on_validation_end(trainer, task)  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().err == "no examples of step 7: division by zero\n"


def test_a_language_without_a_voice_is_shown_as_text(unity, monkeypatch):
    task, batch = unity
    assert example_mode(task, batch) == "s2st"
    monkeypatch.setattr(task, "vocoder_languages", ["fra"])
    assert example_mode(task, batch) == "s2tt"


def test_nothing_is_logged_before_training_and_without_tensorboard(unity, tmp_path: Path):
    task, batch = unity
    for loggers, checking in (([], False), (None, True)):
        trainer, examples = FakeTrainer(tmp_path), Examples()
        trainer.sanity_checking = checking
        trainer.loggers = trainer.loggers if loggers is None else loggers
        examples.on_validation_batch_start(trainer, task, batch, 0)  # pyright: ignore[reportArgumentType]
        examples.on_validation_end(trainer, task)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_first_rows_are_cut_to_their_own_length(unity):
    _, batch = unity
    short = first_rows(batch, 2)
    assert isinstance(short, Batch)
    assert short.ids == batch.ids[:2]
    for name in ("speech", "target", "units", "target_speech"):
        padded, whole = getattr(short, name), getattr(batch, name)
        assert padded.data.shape[1] == int(padded.lengths.max())
        assert padded.data.equal(whole.data[:2, : padded.data.shape[1]])
    assert len(short.seconds) == 2


def test_units_stand_in_for_a_target_that_is_not_read(unity, tmp_path: Path):
    task, batch = unity
    trainer, examples = FakeTrainer(tmp_path), Examples(count=2)
    examples.on_validation_batch_start(trainer, task, replace(batch, target_speech=None), 0)  # pyright: ignore
    examples.on_validation_end(trainer, task)  # pyright: ignore[reportArgumentType]
    trainer.loggers[0].experiment.flush()
    found = events(tmp_path)
    assert set(found.Tags()["audio"]) == {
        f"{n}/{kind}" for n in batch.ids[:2] for kind in ("predicted", "target_units")
    }
    audio, _ = soundfile.read(BytesIO(found.Audio(f"{batch.ids[1]}/target_units")[0].encoded_audio_string))
    assert len(audio) == 320 * int(batch.units.lengths[1])


def test_cross_attention_is_what_the_decoder_sees(unity):
    task, batch = unity
    one = first_rows(batch, 1)
    (found,) = task.predict(one, task="s2tt", options=SearchOptions(beam_size=2, max_length=6))
    weights, tokens = cross_attention(task, one, found)
    assert tokens[0] == "<eng>"
    assert tokens[-1] == "<end>"
    assert tokens[1:-1] == [task.tokenizer.decode([n]) or "?" for n in task.tokenizer.encode(found.text)]
    memory = task.encode_speech(one.speech)
    assert weights.shape == (2, len(tokens), int(memory.lengths[0]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    # Other memory, other weights; and the decoder is as it was.
    other = replace(one, speech=one.speech.with_data(one.speech.data.flip(1)))
    assert not cross_attention(task, other, found)[0].allclose(weights, atol=1e-4)
    assert task.predict(one, task="s2tt", options=SearchOptions(beam_size=2, max_length=6))[0] == found
    assert cross_attention(task, one, replace(found, text=None)) is None


def test_long_and_odd_tokens_fit_in_a_picture():
    for tokens in (["<eng>", "$x$", "a_b^", "<end>"], ["w"] * 300):
        figure = attention_picture(torch.rand(2, len(tokens), 40), tokens)
        figure.canvas.draw()
        assert figure.get_figheight() <= 14
