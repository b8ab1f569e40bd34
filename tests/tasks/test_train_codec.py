"""Training of a codec: losses, balance, codebooks, steps that are cut up, processes, going on, refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stopper
import torch
from lightning import Trainer
from torch.utils.data import DataLoader
from voxzoo.components import EnCodec, MSSTFTDiscriminator
from voxzoo.components.errors import UserError
from voxzoo.components.layers.residual_quantizer import ResidualQuantizer, perplexity
from voxzoo.components.losses import reconstruction
from voxzoo.components.losses.balancer import Balancer
from voxzoo.components.losses.reconstruction import MelLoss, waveform_loss
from voxzoo.components.types import Batch, Padded
from voxzoo.configs import build, check, compose
from voxzoo.tasks import load_run
from voxzoo.tasks.codebook_use import CodebookUse
from voxzoo.tasks.train_codec import TrainCodec
from voxzoo.tasks.training.schedules import constant
from voxzoo.tasks.training.train import build_for_training, prepare_data

PARTS = ["task=train_codec", "codec=tiny", "discriminator=tiny_ms_stft", "task.crop_seconds=0.3"]


@pytest.fixture
def make(tiny: list[str], tmp_path: Path) -> Callable[..., tuple[TrainCodec, list[Batch]]]:
    """make("codec...") -> the task as `voxzoo train` builds it, the same weights at each call, and four batches."""

    def case(*overrides: str) -> tuple[TrainCodec, list[Batch]]:
        config = compose([*tiny, *PARTS, f"root={tmp_path}", "logger=none", *overrides])
        data = prepare_data(config)
        torch.manual_seed(0)
        task: Any = build_for_training(config, Path(config.run_dir))
        rows = list(data.rows("train"))
        collate = data.collator(task.needs)
        return task, [collate(rows[n : n + 3]) for n in range(0, 12, 3)]

    return case


def fit(task: TrainCodec, batches: list[Batch], **settings: Any) -> Trainer:
    task.attach_optimizer(partial(torch.optim.SGD, lr=1e-3), constant)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **settings)
    trainer.fit(task, DataLoader(batches, batch_size=None, shuffle=False))  # pyright: ignore[reportArgumentType]
    return trainer


def joined(first: Batch, second: Batch) -> Batch:
    assert first.target_speech is not None
    assert second.target_speech is not None
    speech = Padded.from_list([*first.target_speech.unpad(), *second.target_speech.unpad()])
    return Batch(ids=first.ids + second.ids, target_speech=speech)


def test_each_loss_trains_its_own_network(make):
    task, batches = make()
    losses, statistics = task.measure(batches[0])
    assert list(losses) == ["l1", "mel", "commitment", "adversarial", "feature_matching", "discriminator"]
    assert statistics.keys() == {"score_real", "score_made"}
    assert {float(loss.count) for loss in losses.values()} == {3 * 15.0}  # 0.3 s at 50 frames a second
    for name, loss in losses.items():
        task.zero_grad()
        loss.total.backward(retain_graph=True)
        reached = {key.split(".")[0] for key, p in task.named_parameters() if p.grad is not None}
        assert reached == {"discriminator" if name == "discriminator" else "codec"}, name


@pytest.mark.parametrize("codec", ["tiny", "tiny_spectral"])
def test_without_a_discriminator_the_codec_learns_alone(make, codec: str):
    task, batches = make("discriminator=none", f"codec={codec}")
    assert list(task.measure(batches[0])[0]) == ["l1", "mel", "commitment"]
    before = float(task.measure(batches[0])[0]["mel"].mean)
    task.attach_optimizer(partial(torch.optim.AdamW, lr=3e-3), constant)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=40,
        enable_checkpointing=False, max_epochs=-1,
    )  # fmt: skip
    trainer.fit(task, DataLoader(batches[:1], batch_size=None))  # pyright: ignore[reportArgumentType]
    assert float(task.measure(batches[0])[0]["mel"].mean) < 0.8 * before


def test_codebooks_begin_with_the_first_step_and_follow_each(make):
    task, batches = make()
    assert not task.codec.begun
    fit(task, batches, max_steps=1)
    assert task.codec.begun
    first = {name: value.clone() for name, value in task.codec.quantizer.state_dict().items()}
    task, batches = make()
    fit(task, batches, max_steps=4)
    later = task.codec.quantizer.state_dict()
    assert any(not torch.equal(later[name], value) for name, value in first.items())


def test_a_step_does_not_depend_on_how_its_batch_was_cut_up(make):
    """Though crops, codebooks and the balancer are those of the whole step."""
    states = []
    for cut in (1, 2):
        task, batches = make()
        rows = [joined(*batches[:2]), joined(*batches[2:])] if cut == 1 else batches
        trainer = fit(task, rows, max_steps=2, accumulate_grad_batches=cut)
        assert trainer.global_step == 2
        states.append(task.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_a_step_that_is_not_finite_is_left_out_and_no_codebook_moves(make, monkeypatch: pytest.MonkeyPatch):
    task, batches = make()
    fit(task, batches[:1], max_steps=1)
    before = {name: value.clone() for name, value in task.codec.state_dict().items()}
    original = task._generate

    def spoiled(made):
        losses = original(made)
        losses["mel"] = type(losses["mel"])(losses["mel"].total * float("nan"), losses["mel"].count)
        return losses

    monkeypatch.setattr(task, "_generate", spoiled)
    with pytest.warns(UserWarning, match="is left out"):
        fit(task, batches[1:2], max_steps=1)
    assert task.skipped_steps == 1
    for name, value in task.codec.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_balancer_weighs_losses_whatever_their_scale():
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([4, 4])
    base = {name: torch.randn(2, 50, generator=generator) * 4 for name in ("a", "b")}
    made = []
    for scale in (1.0, 1000.0):
        balancer = Balancer({"a": 1.0, "b": 3.0})
        given = {"a": base["a"] * scale, "b": base["b"]}
        norms = balancer.norms(given, frames)
        torch.testing.assert_close(norms[0], given["a"].norm(dim=1).sum() / 4)
        balancer.advance(norms, torch.tensor(2.0))
        made.append(balancer.combined(given))
    torch.testing.assert_close(made[0], made[1])
    balancer = Balancer({"a": 1.0, "b": 3.0}, decay=0.5)
    balancer.advance(torch.tensor([2.0, 2.0]), torch.tensor(2.0))
    balancer.advance(torch.tensor([8.0, 2.0]), torch.tensor(2.0))
    found = balancer.combined({"a": torch.ones(1, 1), "b": torch.zeros(1, 1)})
    assert float(found) == pytest.approx(0.25 / ((0.5 * 1 + 4) / 1.5))
    with pytest.raises(ValueError, match="weights of at least 0"):
        Balancer({"a": 0.0})


def test_losses_of_a_batch_are_the_sums_of_its_rows():
    generator = torch.Generator().manual_seed(0)
    made, target = ([0.1 * torch.randn(n, generator=generator) for n in (3000, 1700, 40)] for _ in range(2))
    frames = torch.tensor([10, 6, 1])
    mel = MelLoss(16000, (512, 128), (20, 8))
    for loss in (waveform_loss, mel):
        whole = loss(Padded.from_list(made), Padded.from_list(target), frames)
        apart = [
            loss(Padded.from_list(made[n : n + 1]), Padded.from_list(target[n : n + 1]), frames[n : n + 1])
            for n in range(3)
        ]
        torch.testing.assert_close(whole.total, torch.stack([one.total for one in apart]).sum())
        assert float(whole.count) == 17
        same = loss(Padded.from_list(made), Padded.from_list(made), frames)
        assert float(same.total) == 0


def test_spectra_of_long_speech_come_in_blocks(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    made, target = (
        Padded.from_list([0.1 * torch.randn(n, generator=generator) for n in (5000, 1700, 40)]) for _ in range(2)
    )
    for windows in ((512, 128), (600, 160)):
        mel, frames = MelLoss(16000, windows, (20, 8)), torch.tensor([10, 6, 1])
        whole = mel(made, target, frames)
        with monkeypatch.context() as patch:
            patch.setattr(reconstruction, "_BLOCK", 1000)
            torch.testing.assert_close(mel(made, target, frames).total, whole.total)


def test_an_entry_that_is_not_used_starts_anew_where_there_are_too_few():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 8, 2)
    book: Any = quantizer.books[0]
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10], [5, 5], [-10, 0], [0, -10], [-10, -10]])
    points = (centres[:, None] + 0.1 * torch.randn(8, 40, 2)).flatten(0, 1)
    book.embed.copy_(torch.cat([centres[:4], torch.full((4, 2), 900.0)]))
    book.embed_avg.copy_(book.embed)
    book.cluster_size.fill_(1)
    for step in range(60):
        codes = quantizer.encode(points, 1)[:, 0]
        update = {name: value[None] for name, value in quantizer.learned_from(points, codes, 0).items()}
        quantizer.advance(update, 0.8, 0.1, step)
    off = (points - quantizer.decode(quantizer.encode(points, 1))).norm(dim=1)
    assert len(quantizer.encode(points, 1).unique()) == 8
    assert float(off.mean()) < 0.5


def test_an_entry_that_starts_anew_finds_points_in_many_dimensions():
    """Where one entry has all points, those that start beside it must be nearer to some of them than it is."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1000, 64, generator=generator)
    quantizer = ResidualQuantizer(1, 32, 64)
    book: Any = quantizer.books[0]
    book.embed[1:] = 900.0
    book.embed[0] = points.mean(0)
    book.embed_avg.copy_(book.embed)
    book.cluster_size.fill_(1000 / 32)
    for step in range(40):
        codes = quantizer.encode(points, 1)[:, 0]
        update = {name: value[None] for name, value in quantizer.learned_from(points, codes, 0).items()}
        quantizer.advance(update, 0.9, 0.1, step)
    counts = torch.bincount(quantizer.encode(points, 1)[:, 0], minlength=32)
    assert float(perplexity(counts)) > 16


@pytest.mark.parametrize("ratios", [(8, 5, 4, 2), (5, 4, 4, 4), (8, 8, 5)])
def test_speech_passes_a_codec_at_random(ratios: tuple[int, ...]):
    """What changes from frame to frame is not small beside what all frames share, and decoded samples are as loud as
    speech: else codebooks begin in one point, and learning starts with finding the speech."""
    torch.manual_seed(0)
    codec = EnCodec(16000, num_codebooks=2, codebook_size=16, dim=32, num_filters=8, ratios=ratios, num_lstm_layers=1)
    with torch.no_grad():
        latents = codec.encoder(0.1 * torch.randn(4, 1, 16000))
        samples = codec.decoder(latents)
    moves, stays = float(latents.std((0, 2)).square().mean().sqrt()), float(latents.mean((0, 2)).square().mean().sqrt())
    assert 0.3 < moves < 3
    assert stays < moves
    assert 0.03 < float(samples.std()) < 0.3


def test_perplexity_is_how_many_entries_are_in_equal_use():
    counts = torch.tensor([[4.0, 4, 4, 4], [9, 0, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0]])
    assert perplexity(counts).tolist() == pytest.approx([4, 1, 2, 1])


def test_a_book_that_collapses_is_said_once_until_it_recovers():
    use = CodebookUse(2, 16)
    use.add(torch.full((1, 16), 3.0))
    assert use.judge() is None
    assert use.metrics == {}, "48 points of 16 entries are too few to judge by"
    use.add(torch.full((1, 16), 30.0))
    assert use.judge() is None
    assert use.metrics == {"codes_in_use/1": 1.0, "perplexity/1": pytest.approx(16)}
    assert use.line == "codes 100 %  perplexity 16"
    fallen = torch.zeros(2, 16)
    fallen[:, 3] = 500
    use.add(fallen)
    assert use.judge() == ("codebook 1, 2 collapsed: 1, 1 of 16 entries in use, perplexity 1.0, 1.0 (above 5 is sound)")
    use.add(fallen)
    assert use.judge() is None
    use.add(torch.full((2, 16), 30.0))
    assert use.judge() is None
    use.add(fallen[:1])
    assert str(use.judge()).startswith("codebook 1 collapsed: 1 of 16")


def test_a_collapse_in_training_is_said_with_advice(make, monkeypatch: pytest.MonkeyPatch):
    """Planted: all frames choose one entry, and nothing starts anew."""
    task, batches = make("codec.dead_share=0", "task.codebooks=[4]")

    def alike(points, count):
        return torch.zeros(len(points), count, dtype=torch.int64)

    monkeypatch.setattr(task.codec.quantizer, "encode", alike)
    with pytest.warns(
        UserWarning,
        match=r"step 4: codebook 1, 2, 3, 4 collapsed: 1, 1, 1, 1 of 16 entries in use.*: lower optim.lr, or",
    ):
        fit(task, batches, max_steps=4, log_every_n_steps=4)
    assert task.latest["train/codes_in_use/1"] == pytest.approx(1 / 16)
    assert task.latest["train/perplexity/1"] == pytest.approx(1)
    assert task.progress_line.startswith("codes 6 ")


def test_a_tiny_codec_keeps_its_books_in_use(make):
    """At a rate at which the codes of a codec with PyTorch's own initial weights collapse."""
    task, batches = make("discriminator=none", "codec.decay=0.9", "codec.dead_share=0.2", "task.codebooks=[4]")
    task.attach_optimizer(partial(torch.optim.AdamW, lr=5e-3), constant)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=60,
        enable_checkpointing=False, max_epochs=-1, log_every_n_steps=20, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(task, DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType]
    shares = [task.latest[f"train/codes_in_use/{book}"] for book in (1, 2, 3, 4)]
    spreads = [task.latest[f"train/perplexity/{book}"] for book in (1, 2, 3, 4)]
    assert min(shares) > 0.8, shares
    assert min(spreads) > 0.5 * 16, spreads


def test_steps_without_codebooks_come_first_where_they_are_wanted(make):
    task, batches = make("task.free_steps=2", "discriminator=none")
    with pytest.warns(UserWarning, match="never began: task.free_steps=2 are not fewer than the 2 steps"):
        fit(task, batches, max_steps=2)
    assert not task.codec.begun
    assert not any(bool(book.inited) for book in task.codec.quantizer.books)
    task, batches = make("task.free_steps=2", "discriminator=none")
    fit(task, batches, max_steps=3)
    assert task.codec.begun
    speech = task._crops(batches[0], 0)
    free = task.codec.reconstruct(speech, 0)
    assert float(free.losses["commitment"].total) == 0
    whole = task.codec.reconstruct(speech, 4)
    assert free.samples.data.shape == whole.samples.data.shape
    assert not torch.allclose(free.samples.data, whole.samples.data)
    assert free.update["counts"].shape == (0, 16)


def test_beginning_is_k_means_of_what_the_books_before_left():
    torch.manual_seed(0)
    points = torch.randn(600, 4)
    quantizer = ResidualQuantizer(3, 16, 4)
    quantizer.begin(points, seed=1)
    errors = [
        float((points - quantizer.decode(quantizer.encode(points, count))).square().mean()) for count in (1, 2, 3)
    ]
    assert errors[0] < 0.45
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    few = ResidualQuantizer(1, 16, 4)
    few.begin(points[:5], seed=1)
    assert float((points[:5] - few.decode(few.encode(points[:5], 1))).abs().max()) < 0.5


def test_speech_comes_back_as_long_as_it_was_and_the_source_can_be_learned_too(make):
    task, batches = make("task.sides=both", "task.num_codebooks=2", "frontend=raw")
    assert task.needs == {"target_speech", "speech"}
    assert len(task._crops(batches[0], 1)) == 6
    made = task.predict(batches[0])
    assert batches[0].target_speech is not None
    assert [len(one.audio) for one in made if one.audio is not None] == batches[0].target_speech.lengths.tolist()
    wide = Padded(torch.zeros(3, 4, 80), torch.tensor([4, 4, 4]))
    with pytest.raises(UserError, match="set frontend=raw"):
        task._crops(Batch(ids=batches[0].ids, target_speech=batches[0].target_speech, speech=wide), 0)


def test_stereo_learns_too(make):
    sizes = ["codec.channels=2", "codec.causal=false", "codec.norm=time_group", "codec.normalise=true"]
    task, batches = make(*sizes, "codec.sample_rate=48000")
    fit(task, batches, max_steps=2)
    assert task.skipped_steps == 0
    assert task.predict(batches[0])[0].audio is not None


def test_what_cannot_be_is_refused_in_a_line(make):
    codec = EnCodec(16000, num_codebooks=2, codebook_size=8, dim=4, num_filters=2, ratios=(4, 2))
    with pytest.raises(UserError, match=r"task.codebooks=\[1, 4\]: the codec has 1 to 2"):
        TrainCodec(codec=codec, codebooks=[1, 4])
    with pytest.raises(UserError, match=r"task\.sides=source: expected target or both"):
        TrainCodec(codec=codec, sides="source")
    codec.learns = False
    with pytest.raises(UserError, match="EnCodec cannot be trained here"):
        TrainCodec(codec=codec)
    with pytest.raises(ValueError, match="multiples of 4"):
        MSSTFTDiscriminator((30,))
    (fault,) = check(compose([*PARTS, "trainer=fsdp2"]))
    assert "cannot train TrainCodec: two optimizers take turns" in str(fault)
    (fault,) = check(compose([*PARTS, "freeze.codec=true"]))
    assert str(fault).startswith("freeze.codec: TrainCodec trains both")
    assert build(compose(["codec=tiny"]).codec).num_codebooks == 4


RUN = [
    *PARTS, "trainer.val_check_interval=4", "data.batch_size=5", "checkpoint.every_steps=1", "optim.lr=0.002",
    "optim.eps=1e-3", "trainer.log_every_n_steps=1", "logger=none",
]  # fmt: skip
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]
HOW = {"one": ["trainer.accumulate_grad_batches=2"], "ddp": ["trainer=ddp", "trainer.devices=2", *CPU]}


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(tiny: list[str], voxzoo, tmp_path: Path):
    for name, how in HOW.items():
        call = [*how, *tiny, *RUN, f"root={tmp_path}", f"name={name}", "trainer.max_steps=4"]
        done = voxzoo("train", *call, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 4
    ours, theirs = (last(tmp_path / name)["state_dict"] for name in HOW)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tiny: list[str], voxzoo, tmp_path: Path):
    words = [*tiny, *RUN, *stopper.WORDS, "trainer.max_steps=10", "checkpoint.every_steps=2", f"root={tmp_path}"]
    assert voxzoo("train", *words, "name=whole", cwd=tmp_path, env=stopper.environment()).returncode == 0
    stopped = voxzoo("train", *words, "name=run", cwd=tmp_path, env=stopper.environment(5, signal.SIGKILL))
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    done = voxzoo("train", *words, "name=run", cwd=tmp_path, env=stopper.environment())
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    whole, ours = last(tmp_path / "whole"), last(tmp_path / "run")
    assert whole["global_step"] == ours["global_step"] == 10
    for name, value in whole["state_dict"].items():
        assert value.equal(ours["state_dict"][name]), name


def test_a_run_serves_its_codec(tiny: list[str], make, tmp_path: Path):
    task, batches = make()
    fit(task, batches, max_steps=1).save_checkpoint(tmp_path / "last.ckpt")
    again = load_run(tmp_path / "last.ckpt").task
    assert isinstance(again, TrainCodec)
    assert again.codec.card() == task.codec.card()
    assert again.codec.begun


def test_imported_codecs_are_runs_and_go_out_in_both_layouts(tmp_path: Path, make):
    from safetensors.torch import load_file
    from voxzoo.components.converters import to_encodec
    from voxzoo.tasks.commands.cli import main

    sizes = {"num_filters": 4, "dim": 8, "num_codebooks": 4, "codebook_size": 16}
    file = to_encodec(EnCodec(**sizes), tmp_path / "published.th")
    assert main(["import", str(file), str(tmp_path / "run")]) == 0
    task = load_run(tmp_path / "run").task
    assert isinstance(task, TrainCodec)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "again"), "--as", "encodec.th"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "hub")]) == 0
    assert main(["import", str(tmp_path / "hub"), str(tmp_path / "second")]) == 0
    held = torch.load(file, weights_only=True)
    written = torch.load(tmp_path / "again" / "encodec.th", weights_only=True)
    assert held.keys() == written.keys()
    assert all(torch.equal(value, written[key]) for key, value in held.items())
    there = load_file(tmp_path / "hub" / "model.safetensors")
    assert torch.equal(there["quantizer.layers.3.codebook.embed"], held["quantizer.vq.layers.3._codebook.embed"])
    second = load_run(tmp_path / "second").task
    assert second.codec.card() == task.codec.card()  # pyright: ignore
    _, batches = make()
    assert task.predict(batches[0])[0].audio is not None


def test_the_table_of_rates_and_distortions(tiny: list[str], make, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from voxzoo.tasks.commands.cli import main

    task, batches = make()
    fit(task, batches, max_steps=1).save_checkpoint(tmp_path / "last.ckpt")
    manifest = build(compose(["task=speech_to_text", *tiny]).data.corpus).prepare()["valid"]
    capfd.readouterr()
    assert main(["codec", str(tmp_path / "last.ckpt"), str(manifest), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [row["codebooks"] for row in found["rows"]] == [1, 2, 4]
    assert [row["kbps"] for row in found["rows"]] == [0.2, 0.4, 0.8]
    assert all(row["mel"] > 0 for row in found["rows"])
    assert len(found["use"]) == 4
    assert all(0 < share <= 1 for share in found["use"])
    assert all(1 <= number <= 16 for number in found["perplexity"])
    assert main(["codec", str(tmp_path / "last.ckpt"), "--split", "valid", "--quality", "none", "--json"]) == 0
    own = json.loads(capfd.readouterr().out)
    assert own["utterances"] == found["utterances"], "without a manifest: the data of the run"
    assert [row["mel"] for row in own["rows"]] == [row["mel"] for row in found["rows"]]
    assert main(["codec", str(tmp_path / "last.ckpt"), str(manifest), "--codebooks", "2", "--limit", "1"]) == 0
    assert "entries in use" in capfd.readouterr().out
    assert main(["codec", str(tmp_path / "last.ckpt"), str(manifest), "--codebooks", "5"]) == 1
    assert "has 1 to 4" in capfd.readouterr().err
