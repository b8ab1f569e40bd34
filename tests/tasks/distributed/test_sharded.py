"""Two processes that share one model (gloo on the CPU): SeamlessM4T's shape, generation, checkpoints in shards."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import forkserver
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.converters.tokenizers import export_tokenizer_files
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.configs import build, compose
from voxzoo.tasks.checkpoints import shards
from voxzoo.tasks.checkpoints.files import read_checkpoint, write_atomically
from voxzoo.tasks.checkpoints.shards import is_sharded, remove_unused, write_shards
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.distributed.running_statistics import RunningStatistics
from voxzoo.tasks.distributed.strategies import _read_together
from voxzoo.tasks.runs.consolidate import consolidate
from voxzoo.tasks.runs.run import load_run

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]
HOW = {
    # Validation is counted in batches of one process.
    "one": ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=12"],
    "ddp": ["trainer=ddp", *TWO, "trainer.val_check_interval=6"],
    "fsdp2": ["trainer=fsdp2", *TWO, "trainer.val_check_interval=6"],
    "fsdp": ["trainer=fsdp", *TWO, "trainer.val_check_interval=6"],
    "shards": [
        "trainer=fsdp2", *TWO, "trainer.val_check_interval=6", "trainer.strategy.sharded_checkpoints=true",
    ],
}  # fmt: skip
SETTINGS = [
    "data=tiny", "data.batch_size=5", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "checkpoint.every_steps=1",
    "schedule=constant", "optim.lr=0.01", "optim.eps=1e-3", "logger=none",
]  # fmt: skip

# A callback of the user's: what it sees on each process goes into a file, so that the test can look.
PROBE = '''
import json, os, signal
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule
from voxzoo.components.search import SearchOptions
from voxzoo.tasks.distributed.strategies import gathered


def units(task, parameter):
    """Names of the units of FSDP2 that hold a parameter."""
    found = []
    for name, module in task.named_modules():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        if group is not None and any(p.sharded_param is parameter for p in group.fsdp_params):
            found.append(name)
    return found


class Probe(Callback):
    def __init__(self, *, folder: str, stop_at: int = 0) -> None:
        self.folder, self.stop_at = Path(folder), stop_at

    def write(self, task, name, value):
        (self.folder / f"{name}.{task.global_rank}.json").write_text(json.dumps(value))

    def on_train_start(self, trainer, task):
        if trainer.global_step == 0 and self.stop_at == 0:
            return
        if isinstance(task, FSDPModule):
            self.write(task, f"ties_{trainer.global_step}", self.ties(task))

    def ties(self, task):
        text, second = task.text_seq2seq, task.t2u.decoder
        tables = {"text": text.decoder.embed.embedding.weight, "units": second.embed.embedding.weight}
        outputs = {"text": text.output_weight, "units": second.output_weight}
        names = {}
        for name, parameter in task.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        state = task.state_dict()
        return {
            "shared": {k: tables[k] is outputs[k] for k in tables},
            "pointers": {k: tables[k].to_local().data_ptr() == outputs[k].to_local().data_ptr() for k in tables},
            "names": {k: names[id(v)] for k, v in tables.items()},
            "units": {k: units(task, v) for k, v in tables.items()},
            "tables": [k for k in state if tuple(state[k].shape) in {tuple(t.shape) for t in tables.values()}],
            "local": sum(p.to_local().numel() for p in task.parameters()),
            "all": sum(p.numel() for p in task.parameters()),
        }

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if self.stop_at and trainer.global_step == self.stop_at and not (self.folder / "stopped").exists():
            if task.global_rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_end(self, trainer, task):
        batch = next(iter(trainer.val_dataloaders))
        # The processes take another number of steps to the end: at most these.
        most = (7, 15)[task.global_rank]
        with gathered(task):
            made = task.predict(batch, task="s2st", options=SearchOptions(beam_size=2, max_length=most))
        rows = [{"id": p.id, "text": p.text, "units": p.units} for p in made]
        self.write(task, "predictions", {"max_length": most, "rows": rows})
'''

M4T = {
    "hidden_size": 24, "feature_projection_input_dim": 40,
    "speech_encoder_layers": 2, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 44,
    "conv_depthwise_kernel_size": 7, "adaptor_kernel_size": 4, "adaptor_stride": 4,
    "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 52, "decoder_ffn_dim": 52,
    "t2u_vocab_size": 37, "t2u_encoder_layers": 2, "t2u_decoder_layers": 1, "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2, "t2u_encoder_ffn_dim": 26, "t2u_decoder_ffn_dim": 26, "t2u_max_new_tokens": 19,
    "unit_hifi_gan_vocab_size": 23, "unit_embed_dim": 10, "lang_embed_dim": 6, "spkr_embed_dim": 4,
    "vocoder_num_langs": 2, "vocoder_num_spkrs": 3, "upsample_initial_channel": 12, "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4], "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 2]],
    "dropout": 0.0, "attention_dropout": 0.0, "adaptor_dropout": 0.0, "var_pred_dropout": 0.0,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "speech_encoder_layerdrop": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def seamless(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides: a small SeamlessM4T in its published folder, text and unit embeddings tied, and units to learn."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("published")
    data = build(compose([*tiny, f"root={folder}"]).data, allowed=("voxzoo",), tokenizer=None)
    data.prepare_data()
    rng = random.Random(1)
    lines = [
        json.dumps({"id": row.id, "units": [rng.randrange(23) for _ in range(rng.randint(5, 12))]})
        for split in data.splits()
        for row in data.rows(split)
    ]
    units, model, published = folder / "units.jsonl", folder / "sp.model", folder / "m4t"
    units.write_text("\n".join(lines) + "\n")
    languages = ["eng", "spa"]
    train_sentencepiece(data.texts("train"), model, 90, len(languages), model_type="bpe")
    pieces = SentencePieceTokenizer(str(model), languages, 90).num_pieces
    tokenizer = SentencePieceTokenizer(str(model), languages, 1 + pieces + len(languages))
    torch.manual_seed(3)
    peer = transformers.SeamlessM4TModel(transformers.SeamlessM4TConfig(vocab_size=tokenizer.vocab_size, **M4T))
    for key, value in {
        "text_decoder_lang_to_code_id": {lang: tokenizer.lang_id(lang) for lang in languages},
        "t2u_lang_code_to_id": {"eng": 30, "spa": 31},
        "vocoder_lang_code_to_id": {"eng": 0, "spa": 1},
    }.items():
        setattr(peer.generation_config, key, value)
    peer.generation_config._from_model_config = False  # or save_pretrained forgets the tables
    peer.save_pretrained(published)
    (published / "preprocessor_config.json").write_text(json.dumps({"num_mel_bins": 20, "stride": 2}))
    export_tokenizer_files(tokenizer, published)
    roles = ["frontend", "speech_encoder", "adaptor", "text_seq2seq", "t2u", "vocoder", "tokenizer"]
    (cache,) = (word for word in tiny if word.startswith("cache_dir="))
    return [
        *SETTINGS, cache, "task=speech_to_speech_unity", *(f"{role}=pretrained" for role in roles),
        f"speech_encoder.pretrained={published}", f"text_seq2seq.pretrained={published}",
        "unit_extractor.num_units=23", f"data.units={units}", "model_type=seamless_m4t",
        "task.t2u_languages=[eng,spa]", "task.vocoder_languages=[eng,spa]", "task.t2u_input=all", "task.t2u_eos=keep",
        "task.ctc_weight=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory):
    """probe(folder, stop_at) -> overrides that put the callback in."""
    code = tmp_path_factory.mktemp("code")
    (code / "probe.py").write_text(PROBE)

    def words(folder: Path, stop_at: int = 0) -> list[str]:
        folder.mkdir()
        return [
            "allow=[probe]", "+callbacks.probe._target_=probe.Probe", f"+callbacks.probe.folder={folder}",
            f"+callbacks.probe.stop_at={stop_at}",
        ]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
        yield words


@pytest.fixture(scope="module")
def trained(voxzoo, seamless: list[str], probe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of one process; the same under FSDP2 and FSDP1, stopped on the way and gone on with; all exported."""
    root = tmp_path_factory.mktemp("runs")
    call = [*seamless, f"root={root}"]
    done = voxzoo("train", *HOW["one"], *call, "name=one", cwd=root, timeout=400)
    assert done.returncode == 0, done.stderr
    for name in ("fsdp2", "fsdp"):
        words = [*HOW[name], *call, *probe(root / f"seen_{name}", stop_at=2), f"name={name}"]
        first = voxzoo("train", *words, cwd=root, timeout=400)
        assert first.returncode == 75, first.stderr
        (root / f"seen_{name}" / "stopped").touch()
        again = voxzoo("train", *words, "--json", cwd=root, timeout=400)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["steps"] == 6
        assert "resuming" in again.stderr
    for name in ("one", "fsdp2", "fsdp"):
        done = voxzoo("export", root / name, root / f"{name}_exported", cwd=root, timeout=400)
        assert done.returncode == 0, done.stderr
    return root


def seen(root: Path, run: str, name: str) -> list[dict]:
    return [json.loads((root / f"seen_{run}" / f"{name}.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_tied_embeddings_survive_wrap_step_save_load_and_export(trained: Path):
    transformers = pytest.importorskip("transformers")
    found = (trained / "seen_fsdp2").glob("ties_[1-9]*.0.json")
    resumed = next(int(path.name.split("_")[1].split(".")[0]) for path in found)
    for step in (0, resumed):  # after the wrap, and after the load
        both = seen(trained, "fsdp2", f"ties_{step}")
        for one in both:
            assert one["shared"] == one["pointers"] == {"text": True, "units": True}
            assert one["names"] == {
                "text": ["text_seq2seq.decoder.embed.embedding.weight"],
                "units": ["t2u.decoder.embed.embedding.weight"],
            }
            assert one["units"] == {"text": [""], "units": [""]}  # one unit, the root
            assert len(one["tables"]) == 2
        assert sum(one["local"] for one in both) == both[0]["all"]  # each holds its part
        assert abs(both[0]["local"] - both[1]["local"]) < 0.2 * both[0]["all"]
    first, *others = (
        load_file(trained / f"{name}_exported" / "model.safetensors") for name in ("one", "fsdp2", "fsdp")
    )
    for other in others:
        assert first.keys() == other.keys()
        for key, value in first.items():
            torch.testing.assert_close(other[key], value, atol=1e-6, rtol=0, msg=key)
    start = load_file(next(trained.parent.glob("published*/m4t")) / "model.safetensors")
    assert (first["shared.weight"] - start["shared.weight"]).abs().max() > 0.01  # it learned
    model = transformers.SeamlessM4TModel.from_pretrained(trained / "fsdp2_exported")
    assert model.lm_head.weight is model.shared.weight
    assert model.text_decoder.embed_tokens.weight is model.shared.weight
    assert model.text_encoder.embed_tokens.weight is model.shared.weight
    assert torch.equal(model.shared.weight, others[0]["shared.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "fsdp"])
def test_generation_that_ends_elsewhere_on_each_process_gives_what_one_process_gives(name: str, trained: Path):
    run = load_run(trained / name / "checkpoints" / "last.ckpt")
    task, data = run.task, build(run.config.data, allowed=("voxzoo",), tokenizer=run.task.tokenizer)
    data.prepare_data()
    known = {row.id: row for row in data.rows("valid")}
    both = seen(trained, name, "predictions")
    assert not {row["id"] for row in both[0]["rows"]} & {row["id"] for row in both[1]["rows"]}
    lengths = []
    for one in both:
        assert one["rows"]
        batch = task.collator()([known[row["id"]] for row in one["rows"]])
        expected = task.predict(batch, task="s2st", options=SearchOptions(beam_size=2, max_length=one["max_length"]))
        assert [(p.text, p.units) for p in expected] == [(row["text"], row["units"]) for row in one["rows"]]
        assert task.tokenizer is not None
        lengths.append(max(len(task.tokenizer.encode(row["text"])) for row in one["rows"]))
    assert lengths[0] != lengths[1]


def test_running_statistics_of_two_processes_are_those_of_one_that_saw_both_batches():
    """Two copies, one batch each; a third sees both. The gather is that of two processes, simulated."""
    from voxzoo.components.layers.convolution import MaskedBatchNorm

    torch.manual_seed(0)
    batches = torch.randn(2, 3, 5, 4) * 3 + 1
    norms = [MaskedBatchNorm(4) for _ in range(3)]
    torch_norms = [torch.nn.BatchNorm1d(4, momentum=0.2) for _ in range(3)]
    modules = [torch.nn.ModuleList(pair) for pair in zip(norms, torch_norms, strict=True)]

    def forward(module: torch.nn.ModuleList, batch: torch.Tensor) -> None:
        module[0](batch)
        module[1](batch.flatten(0, 1))

    for module in modules:
        forward(module, 5 * batches[0])  # no longer as they are made
    before = [RunningStatistics(module) for module in modules[:2]]
    for module, batch in zip(modules, batches, strict=False):
        forward(module, batch)
    vectors: list[torch.Tensor] = []
    for statistics in before:
        with pytest.raises(StopIteration):
            statistics.merge(lambda own: (vectors.append(own), next(iter(())))[1])
    for statistics in before:
        statistics.merge(lambda own: torch.stack(vectors))
    for batch in batches:
        forward(modules[2], batch)
    expected = modules[2].state_dict()
    for module in modules[:2]:
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-6, msg=key)
    modules[0].eval()
    assert RunningStatistics(modules[0]).norms == []


def test_merged_statistics_do_not_stand_in_the_way_of_the_backward_pass():
    norms = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4))
    alone, batch = deepcopy(norms), torch.randn(6, 4)
    statistics = RunningStatistics(norms)
    loss = norms(batch).square().sum()
    statistics.merge(lambda own: torch.stack([own, own]))
    loss.backward()
    alone(batch).square().sum().backward()
    for one, other in zip(norms.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)


# Checkpoints in shards

PLAIN = [
    *SETTINGS, "text_seq2seq.dropout=0", "adaptor.dropout=0", "text_seq2seq.attention_dropout=0",
    "trainer.val_check_interval=6",  # the same for all: a run goes on under the config that it began with
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(voxzoo, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `fsdp2` in one go; `killed` is what is left of a run in shards whose processes were killed."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("one", "fsdp2"):
        done = voxzoo("train", *HOW[name], *tiny, *PLAIN, f"root={folder}", f"name={name}", cwd=folder, timeout=400)
        assert done.returncode == 0, done.stderr
    run = folder / "run"
    command = [*forkserver.COMMAND, "train", *HOW["shards"], *tiny, *PLAIN, f"root={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    last, said = run / "checkpoints" / "last.ckpt", folder / "said.txt"
    with said.open("w") as log:
        process = forkserver.popen(
            [*command, "name=run"], cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 200
    while not last.exists() or torch.load(last, weights_only=True)["global_step"] < 2:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert is_sharded(last)
    assert torch.load(last, weights_only=True)["global_step"] < 6
    shutil.copytree(run, folder / "killed")
    return folder


def tensors(content: dict[str, Any]) -> dict[str, Any]:
    """Weights and optimizer states by name."""
    (optimizer,) = content["optimizer_states"]
    states = {f"{n}.{key}": value for n, state in optimizer["state"].items() for key, value in state.items()}
    return {**content["state_dict"], **states}


@pytest.mark.slow
@pytest.mark.parametrize("then", ["shards", "one", "ddp"])
def test_a_run_in_shards_goes_on_after_a_kill_on_any_number_of_processes(
    then: str, runs: Path, voxzoo, tiny: list[str], capfd: pytest.CaptureFixture[str]
):
    run = runs / "run"
    shutil.rmtree(run)
    shutil.copytree(runs / "killed", run)
    done = voxzoo("train", *HOW[then], *tiny, *PLAIN, f"root={runs}", "name=run", "--json", cwd=runs, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert json.loads(done.stdout)["steps"] == 6
    last = run / "checkpoints" / "last.ckpt"
    expected = read_checkpoint(runs / "one" / "checkpoints" / "last.ckpt")["state_dict"]
    content = read_checkpoint(last)
    found = content["state_dict"]
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        difference = float((value.double() - found[key].double()).norm())
        assert difference <= 1e-5 * max(float(value.double().norm()), 1.0), f"{key}: {difference}"
    shards = sorted(path.name for path in last.parent.iterdir() if path.is_dir())
    if then != "shards":
        assert not is_sharded(last)
        assert shards == []  # nothing names them any more
        return
    assert shards == [
        "step00000006.0.shards"
    ]  # of the last checkpoint, which is the best too; those before are deleted
    found = tensors(content)
    same = tensors(read_checkpoint(runs / "fsdp2" / "checkpoints" / "last.ckpt"))
    assert all(torch.equal(value, found[key]) for key, value in same.items())
    bare = read_checkpoint(last, states=False)
    assert bare["optimizer_states"] == []
    assert all(torch.equal(value, bare["state_dict"][key]) for key, value in content["state_dict"].items())
    # Commands read shards; one makes a file of them, the file that would have been written without shards.
    scores = []
    for _ in range(2):
        capfd.readouterr()
        assert main(["evaluate", str(run), "--split", "test", "--json"]) == 0
        scores.append(json.loads(capfd.readouterr().out))
        if is_sharded(last):
            assert main(["consolidate", str(run), "--json"]) == 0
            assert len(json.loads(capfd.readouterr().out)["files"]) == 2
    assert scores[0] == scores[1]
    assert scores[0]["num_utterances"] == 6
    assert [path for path in last.parent.iterdir() if path.is_dir()] == []
    plain = torch.load(last, weights_only=True)
    assert plain.keys() == torch.load(runs / "fsdp2" / "checkpoints" / "last.ckpt", weights_only=True).keys()
    assert all(torch.equal(value, same[key]) for key, value in tensors(plain).items())
    for key, value in tensors(plain).items():
        assert value.dtype == same[key].dtype
    assert main(["consolidate", str(run)]) == 0
    assert "nothing is in shards" in capfd.readouterr().out


@pytest.fixture
def alone() -> Iterator[Any]:
    """A mesh of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def content(mesh: Any, step: int) -> dict[str, Any]:
    """A checkpoint as Lightning collects it, of one weight and its momentum."""
    generator = torch.Generator().manual_seed(step)

    def cut() -> Any:
        return distribute_tensor(torch.randn(5, 3, generator=generator), mesh, [Shard(0)])

    state = {"step": torch.tensor(1.0), "avg": cut()}
    return {
        "global_step": step, "voxzoo": {"config": {}},
        "state_dict": {"layer.weight": cut(), "norm.count": torch.tensor(step), "norm.mean": torch.full((4,), step)},
        "optimizer_states": [{"state": {0: state}, "param_groups": [{"params": [0]}]}],
    }  # fmt: skip


def save(checkpoint: dict[str, Any], path: Path) -> None:
    def write_index(index: dict[str, Any]) -> None:
        write_atomically(path, lambda file: torch.save(index, file))
        remove_unused(path.parent)

    write_shards(checkpoint, path, write_index, lambda value: value)


def assert_reads(path: Path, expected: dict[str, Any]) -> None:
    found = read_checkpoint(path)
    assert "shards" not in found
    assert found["global_step"] == expected["global_step"]
    first, second = tensors(expected), tensors(found)
    assert list(first) == list(second)
    for key, value in first.items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(whole, second[key]), key
        assert type(second[key]) is torch.Tensor


def test_a_save_that_fails_leaves_the_previous_checkpoint_whole(alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    contents = [content(alone, step) for step in range(4)]
    save(contents[0], path)
    assert_reads(path, contents[0])
    assert contents[0]["state_dict"]["layer.weight"] is not None  # what was saved is as it was

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for name, owner in (("rename", os), ("fsync", os), ("replace", os)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(UserError, match=r"No space left on device.*previous checkpoint is untouched") as error:
                save(contents[1], path)
        assert "\n" not in str(error.value)
        assert_reads(path, contents[0])
    os.link(path, path.with_name("step00000000.ckpt"))  # as the best ones are kept
    save(contents[2], path)
    save(contents[3], path)
    assert_reads(path, contents[3])
    assert_reads(path.with_name("step00000000.ckpt"), contents[0])
    kept = sorted(entry.name.split(".")[0] for entry in path.parent.iterdir() if entry.is_dir())
    assert kept == ["step00000000", "step00000003"]
    path.with_name("step00000000.ckpt").unlink()
    save(contents[3], path)  # the same step once more
    assert_reads(path, contents[3])
    assert len([entry for entry in path.parent.iterdir() if entry.is_dir()]) == 1


def damage(kind: str, path: Path) -> str:
    """Damage a checkpoint in shards; returns what the message must say."""
    (folder,) = path.parent.glob("*.shards")
    (file,) = folder.iterdir()
    index = torch.load(path, weights_only=True)
    if kind == "no folder":
        folder.rename(folder.with_name("elsewhere"))
        return "its shards are missing"
    if kind == "no file":
        file.unlink()
        return f"{file.name} is missing"
    if kind == "cut off":
        file.write_bytes(file.read_bytes()[:-4])
        return "bytes, not"
    if kind == "no tensor":
        state = load_file(file)
        del state["state_dict/layer.weight"]
        save_file(state, file)
    if kind == "other shape":
        state = load_file(file)
        state["state_dict/layer.weight"] = state["state_dict/layer.weight"][:4].clone()
        save_file(state, file)
    if kind == "no header":
        file.write_bytes(b"\xff" * file.stat().st_size)
    index["shards"]["files"][file.name] = file.stat().st_size
    index["shards"].pop("sums", None)  # or these would say it
    if kind == "leads out":
        index["shards"]["folder"] = "../secret"
    if kind == "no list":
        index["shards"] = {"folder": folder.name}
    torch.save(index, path)
    return {
        "no tensor": "damaged shards: state_dict/layer.weight",
        "other shape": "damaged shards: state_dict/layer.weight",
        "no header": "cannot be read",
        "leads out": "not one that voxzoo wrote",
        "no list": "not one that voxzoo wrote",
    }[kind]


@pytest.mark.parametrize(
    "kind", ["no folder", "no file", "cut off", "no tensor", "other shape", "no header", "leads out", "no list"]
)
def test_damaged_shards_are_refused_in_one_line(kind: str, alone, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(content(alone, 1), path)
    expected = damage(kind, path)
    assert main(["export", str(path), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.splitlines()) == 1
    assert "this should not happen" not in said


def flipped(path: Path, place: int) -> bytes:
    """Change a byte of a file in place; returns what it was."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[place] ^= 0x10
    path.write_bytes(changed)
    return before


def test_one_flipped_byte_in_a_shard_is_noticed_wherever_it_is(alone, tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(content(alone, 1), path)
    (file,) = next(path.parent.glob("*.shards")).iterdir()
    for place in range(0, file.stat().st_size, 7):
        before = flipped(file, place)
        with pytest.raises(UserError, match=r"shard-\S+: damaged: it holds other bytes than were written") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
        file.write_bytes(before)
    assert_reads(path, content(alone, 1))
    for folder in path.parent.glob("*.shards"):
        assert torch.load(path, weights_only=True)["shards"]["sums"].keys() == {one.name for one in folder.iterdir()}


def test_large_shards_are_compared_on_demand_and_before_a_training_goes_on(alone, tmp_path: Path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(content(alone, 1), path)
    (file,) = next(path.parent.glob("*.shards")).iterdir()
    monkeypatch.setattr(shards, "CHEAP", 10)
    before = flipped(file, file.stat().st_size - 3)
    read_checkpoint(path)  # it was not looked at
    for read in (
        lambda: read_checkpoint(path, verify=True),
        lambda: _read_together(path, whole=False),
        lambda: consolidate(path, tmp_path / "whole.ckpt"),
    ):
        with pytest.raises(UserError, match="damaged: it holds other bytes"):
            read()
    assert not (tmp_path / "whole.ckpt").exists()
    file.write_bytes(before)
    _read_together(path, whole=False)
    flipped(file, 30)  # what lies where is looked at always
    with pytest.raises(UserError, match="damaged: it holds other bytes"):
        read_checkpoint(path)


def test_shards_of_earlier_versions_have_no_sums(alone, tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(content(alone, 1), path)
    index = torch.load(path, weights_only=True)
    sums = index["shards"].pop("sums")
    torch.save(index, path)
    assert_reads(path, content(alone, 1))
    for odd in ({}, [], {name: ["x", 1] for name in sums}):
        index["shards"]["sums"] = odd
        torch.save(index, path)
        with pytest.raises(UserError, match="not one that voxzoo wrote"):
            read_checkpoint(path)


@pytest.mark.slow
def test_training_goes_on_behind_examples_of_unequal_length(voxzoo, tiny: list[str], tmp_path: Path):
    """Generation calls layers another number of times on each process; the backward pass behind it must not notice."""
    words = [
        "trainer=fsdp2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
        "trainer.max_steps=9",
        "trainer.val_check_interval=3",
        "logger=tensorboard",
    ]
    done = voxzoo("train", *tiny, *words, f"root={tmp_path}", "name=run", cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"step \d+ +valid", done.stderr + done.stdout)) >= 3
