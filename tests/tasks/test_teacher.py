"""Distillation from another run: beside the training, stored, and as target texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from voxzoo.components.errors import UserError
from voxzoo.configs import compose
from voxzoo.datamodules.manifest import read_manifest
from voxzoo.tasks import load_run
from voxzoo.tasks.checkpoints.files import write_unstepped
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.planning.shapes import fake_task, trace
from voxzoo.tasks.serving.distillation import write_probabilities
from voxzoo.tasks.training.train import build_for_training, prepare_data, train

TEACHER = "+task.teacher={{_target_:voxzoo.tasks.Teacher,{}}}"


@pytest.fixture(scope="module")
def made(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `mt` and `st` of one vocabulary, random weights, and `other` of another one."""
    root = tmp_path_factory.mktemp("taught")
    text = ["task=text_to_text", "data.tasks={s2tt:false,t2tt:true}"]
    search = "task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:2,min_length:4,max_length:12}"
    shared = f"tokenizer.model={root}/mt/tokenizer.model"
    for name, words in {
        "mt": [*text, search], "st": ["task=speech_to_text", shared, search],
        "other": [*text, "tokenizer.vocab_size=250"],
    }.items():  # fmt: skip
        config = compose([*tiny, *words, f"root={root}", f"name={name}", "data.num_workers=0"])
        folder = Path(config.run_dir)
        prepare_data(config)
        torch.manual_seed(len(name))
        task = build_for_training(config, folder)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter += 0.8 * torch.randn_like(parameter)
        write_unstepped(task, folder / "checkpoints" / "last.ckpt")
        (folder / "config.yaml").write_text("stages: {}\n")
    write_probabilities(root / "mt", root / "whole", top=10**6, device="cpu")
    write_probabilities(root / "mt", root / "few", top=3, device="cpu")
    return root


def student(made: Path, tiny: list[str], settings: str, task: str = "speech_to_text") -> tuple[Any, Any]:
    """A new run that learns from a teacher, without dropout, and a batch of its data."""
    kind = ["data.tasks={s2tt:false,t2tt:true}"] if task == "text_to_text" else []
    config = compose(
        [*tiny, f"task={task}", *kind, f"root={made}", "name=student", TEACHER.format(settings),
         f"tokenizer.model={made}/mt/tokenizer.model"]
    )  # fmt: skip
    data = prepare_data(config)
    torch.manual_seed(0)
    found: Any = build_for_training(config, Path(config.run_dir))
    data.needs = found.needs
    mode = "t2tt" if task == "text_to_text" else "s2tt"
    rows = [replace(row, task=mode) for row in list(data.rows("train"))[:4]]
    return found.eval(), data.collator(found.needs)(rows)


def gradients(task: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = task.measure(batch)[0]["teacher"]
    task.zero_grad()
    loss.total.backward()
    return float(loss.mean.detach()), {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", ["speech_to_text", "text_to_text"])
@pytest.mark.parametrize("settings", ["loss:kl", "loss:cross_entropy,temperature:2.0"])
def test_a_stored_teacher_of_all_words_is_the_teacher_itself(made: Path, tiny: list[str], task: str, settings: str):
    online, batch = student(made, tiny, f"run:{made}/mt,{settings}", task)
    stored, same = student(made, tiny, f"stored:{made}/whole,{settings}", task)
    (ours, by_ours), (theirs, by_theirs) = gradients(online, batch), gradients(stored, same)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert by_ours.keys() == by_theirs.keys()
    for name, value in by_ours.items():
        torch.testing.assert_close(value, by_theirs[name], atol=1e-5, rtol=1e-4, msg=name)


def test_it_is_the_divergence_of_both_distributions(made: Path, tiny: list[str]):
    task, batch = student(made, tiny, f"run:{made}/mt")
    teacher: Any = load_run(made / "mt").task
    tokens, states = batch.target.data[:, :-1], task.text_pass(batch)[2]
    mask = states.mask.clone()
    mask[:, 0] = False  # the language token
    with torch.no_grad():
        known = teacher.text_seq2seq(teacher.text_seq2seq.encode(batch.source), states.with_data(tokens)).data
    p = task.text_seq2seq.project(states.data).log_softmax(-1)
    want = F.kl_div(p[mask], known.softmax(-1)[mask], reduction="sum")
    loss = task.measure(batch)[0]["teacher"]
    torch.testing.assert_close(loss.total, want, atol=1e-4, rtol=1e-5)
    assert int(loss.count) == int(mask.sum())


def test_some_words_are_less_than_all(made: Path, tiny: list[str]):
    few, batch = student(made, tiny, f"stored:{made}/few")
    card = json.loads((made / "few" / "card.json").read_text())
    assert card["kind"] == "teacher"
    assert card["words"] == 3
    assert card["teacher"]["run"] == "mt"
    assert card["data"]["split"] == "train"
    assert float(few.measure(batch)[0]["teacher"].total.detach()) > 0
    assert (made / "few" / "words.bin").stat().st_size == 4 * 3 * card["tokens"]


def test_the_teacher_is_no_part_of_the_student(made: Path, tiny: list[str]):
    task, _ = student(made, tiny, f"run:{made}/mt")
    teacher = task.teacher._task[0]
    assert not any("teacher" in name for name in task.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in task.parameters()}
    task.train()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    task.double()
    assert next(teacher.parameters()).dtype == torch.float64  # it goes where the student goes


def test_a_run_learns_from_a_stage_beside_it_and_is_served_without(made: Path, tiny: list[str]):
    words = [
        *tiny, "task=speech_to_text", f"root={made}", "name=learnt", TEACHER.format("run:mt"), "logger=none",
        f"tokenizer.model={made}/mt/tokenizer.model", "trainer.max_steps=2", "trainer.val_check_interval=2",
    ]  # fmt: skip
    done = train(words)
    assert "valid/teacher" in done["metrics"]
    task = load_run(made / "learnt").task
    assert task.serving_needs() == {"speech"}  # the transcript is the teacher's
    assert task.predict(
        task.collator()([replace(r, task="s2tt") for r in list(load_run(made / "st").datamodule().rows("test"))[:1]])
    )


def test_a_model_that_shares_less_begins_with_copies_of_what_another_shares(made: Path, tiny: list[str]):
    config = compose(
        [*tiny, "task=speech_and_text_to_text", f"root={made}", "name=copies", f"init.text_seq2seq={made}/mt",
         f"tokenizer.model={made}/mt/tokenizer.model", "text_seq2seq.tie_embeddings=false",
         "text_seq2seq.tie_output=false"]
    )  # fmt: skip
    prepare_data(config)
    model: Any = build_for_training(config, Path(config.run_dir)).parts()["text_seq2seq"]
    shared = load_run(made / "mt").task.state_dict()["text_seq2seq.decoder.embed.embedding.weight"]
    matrices = [model.decoder.embed.embedding.weight, model.encoder_embed.embedding.weight, model.decoder.output.weight]
    assert all(one.equal(shared) for one in matrices)
    assert len({one.data_ptr() for one in matrices}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("run:{0}/other", r"task\.teacher\.run=.*other: size is 250, expected 400; .*take a run of the same tokenizer"),
        ("run:{0}/none", r"task\.teacher\.run: .*none, of .*, is not there"),
        ("run:{0}/mt,reads:speech", r"reads no speech; task\.teacher\.reads=text"),
        ("stored:{0}/mt", r"no stored teacher \(no card\.json\)"),
        ("run:{0}/mt,stored:{0}/few", "give one of run and stored"),
        ("run:{0}/mt,temperature:0", "weight and temperature must be above 0"),
    ],
)
def test_what_cannot_teach_is_refused(made: Path, tiny: list[str], settings: str, message: str):
    with pytest.raises(UserError, match=message):
        student(made, tiny, settings.format(made))


def test_a_row_of_another_text_is_refused(made: Path, tiny: list[str]):
    task, batch = student(made, tiny, f"stored:{made}/few")
    changed = batch.target.data.clone()
    changed[1, 2] = (changed[1, 2] + 1) % task.tokenizer.vocab_size
    with pytest.raises(UserError, match=f"has nothing of {batch.ids[1]!r} with this target text"):
        task.measure(replace(batch, target=batch.target.with_data(changed)))


def test_check_shows_its_shapes_without_reading_it(made: Path, tiny: list[str]):
    config = compose([*tiny, "task=speech_to_text", "tokenizer.vocab_size=300", TEACHER.format("run:nowhere")])
    assert any(row.part == "text_seq2seq" and row.output for row in trace(config))
    losses, _ = fake_task(config).measure(fake_batch(config))
    assert "teacher" in losses


def fake_batch(config: Any) -> Any:
    from voxzoo.configs import build
    from voxzoo.tasks.planning import shapes

    return shapes.fake_batch(fake_task(config), build(config.frontend))


def test_targets_are_what_the_run_writes(made: Path, capfd):
    out = made / "distilled.jsonl"
    assert (
        main(["distil", "targets", str(made / "mt"), "--split", "test", "--out", str(out), "--device", "cpu", "--json"])
        == 0
    )
    answer = json.loads(capfd.readouterr().out)
    rows, task = read_manifest(out), load_run(made / "mt").task
    assert answer["rows"] == len(rows) > 0
    given = {row.id: row for row in load_run(made / "mt").datamodule().rows("test")}
    for row in rows[:3]:
        (said,) = task.predict(task.collator()([replace(given[row.id], task="t2tt")]), task="t2tt")
        assert row.tgt_text == said.text
        assert replace(row, tgt_text="") == replace(given[row.id], tgt_text="")
        assert row.audio is not None  # a run that reads speech learns from it too


def test_probabilities_by_the_command(made: Path, capsys):
    words = ["distil", "probabilities", str(made / "mt"), "--split", "valid", "--top", "2", "--device", "cpu"]
    assert main([*words, "--out", str(made / "valid")]) == 0
    assert "2 words of" in capsys.readouterr().out
    assert main([*words, "--out", str(made / "valid")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*words, "--reads", "speech", "--out", str(made / "speech")]) == 1
    assert "--reads speech" in capsys.readouterr().err
