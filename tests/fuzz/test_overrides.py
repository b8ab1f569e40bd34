"""Any overrides of a config are taken, or refused with the key."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hypothesis import assume, example, given
from hypothesis import strategies as st
from voxzoo.configs.origins import ROOT

from .attempts import Attempt, share


def words_of(text: str) -> list[str]:
    """Words of a block, for what would be a column of quotes."""
    return text.split()


GROUPS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.yaml")))
CHOICES = sorted({path.stem for path in ROOT.glob("*/*.yaml")} - {"README"})
KEYS = words_of("""
    seed threads stage_jobs max_skipped_steps name init from compile allow stages stages.a stages.a.choose
    stages.a.set stages.a.after freeze freeze.adaptor activation_checkpointing checkpoint.every_steps
    checkpoint.keep_best checkpoint.monitor checkpoint.mode optim.lr optim.betas optim.weight_decay optim._target_
    schedule.warmup_steps schedule._target_ schedule._args_ callbacks callbacks.x callbacks.x._target_ logger
    logger._target_ trainer.devices trainer.max_steps trainer.max_epochs trainer.precision trainer.strategy
    trainer.accelerator trainer.num_nodes trainer.gradient_clip_val trainer.val_check_interval
    trainer.limit_val_batches trainer.accumulate_grad_batches speech_encoder speech_encoder.dim
    speech_encoder.num_layers speech_encoder.num_heads speech_encoder._target_ speech_encoder.dropout
    speech_encoder._partial_ speech_encoder.input_dim adaptor.input_dim adaptor.kernel_size adaptor.strides
    text_seq2seq.dim text_seq2seq.vocab_size text_seq2seq.max_positions frontend.num_mels frontend.stack
    frontend.sample_rate tokenizer.vocab_size tokenizer.languages tokenizer.model task.label_smoothing
    task.ctc_weight task.search task.search.beam_size task.tasks data.batch_size data.batch_seconds data.train
    data.valid data.test data.test.x data.units data.min_seconds data.max_seconds data.tasks data.tasks.s2st
    data.corpus data.corpus.root data.num_workers data.speed_perturb data.max_tokens lora lora.rank from
    hydra.run.dir hydra hydra.mode defaults
""")

EXPRESSIONS = words_of(r"""
    null true False [] {} ??? none "" '' ' "x [ { [1,2] [1,[2]] {a:1} {a:{b:[1]}} {1:2} 1,2 a: \ \, a\=b $ $$ ${ ${}
    ${a} ${seed} ${name} ${oc.env:HOME} ${oc.env:NO_SUCH} ${oc.create:{a:1}} ${mul:2,3} ${mul:a} ${home:~} ${mul:}
    ${speech_encoder.dim} ${adaptor.input_dim} ${speech_encoder} ${.} ${..x} ${hydra:runtime.cwd} ${x:${y}} choice(1,2)
    range(3) interval(0,1) glob(*) sort(3,1) shuffle(1,2) str(1) int(a) int(1e400) float(x) tag(a,1) extend_list(1)
    json_str({a:1}) os.system os voxzoo.components.Conformer torch.optim.AdamW torch.nn.Linear lightning.pytorch.Trainer
    voxzoo.tasks.SpeechToText .. /dev/zero / ~ cpu cuda gpu bf16-true ddp fsdp2 auto {_target_:os.system} {_target_:}
    {_target_:torch.nn.Linear,in_features:2,out_features:2} {_args_:[1]} {_target_:[1]}
""")

NAMES = st.one_of(
    st.sampled_from([*KEYS, *GROUPS]), st.text(max_size=6), st.sampled_from(["_", "a.b", "a..b", ".", ""])
)
NUMBERS = st.one_of(
    st.integers(-2, 3),
    st.sampled_from(
        ["0.1", "-0.0", "nan", "inf", "-.inf", "1e400", "2**64", str(2**63), str(2**64), "10000000", "1_000", "0x10",
         "1" + "0" * 30, "1" + "0" * 5000, "1e-320", "1e30", "100000000"]
    ),
).map(str)  # fmt: skip
ATOMS = st.one_of(
    NUMBERS,
    st.sampled_from(CHOICES),
    st.sampled_from(EXPRESSIONS),
    st.text(max_size=8),
)  # fmt: skip
VALUES = st.one_of(ATOMS, ATOMS, st.lists(ATOMS, max_size=3).map(lambda some: f"[{','.join(some)}]"))
WORDS = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~", "@", "-"]), NAMES, VALUES),
    NAMES.map("~{}".format),
    st.builds("{}@{}={}".format, NAMES, NAMES, ATOMS),
    st.text(max_size=10),
).filter(lambda word: "\0" not in word and not word.startswith("-"))  # what no shell can pass; options are argparse's


def is_open(words: list[str]) -> bool:
    """What is known not to hold yet: bounds of sizes (A6)."""
    return bool(re.search(r"\d{8}", " ".join(words)))


@share(0.4)
@given(words=st.lists(WORDS, min_size=1, max_size=3))
@example(words=["speech_encoder.dim=${adaptor.input_dim}", "adaptor.input_dim=${speech_encoder.dim}"])
@example(words=["speech_encoder._partial_=true"])
@example(words=["~speech_encoder=false"])
@example(words=["seed=18446744073709551616"])
@example(words=["optim.lr=inf"])
@example(words=["~task"])
@example(words=["speech_encoder.dim=" + "1" + "0" * 5000])
def test_overrides(words: list[str], tiny: list[str], tmp_path: Path, attempt: Attempt):
    assume(not is_open(words))
    done = attempt("check", *tiny, f"root={tmp_path}", *words)
    assert not list(tmp_path.iterdir()), "a check writes nothing"
    if done.code == 0:
        assert "Error" not in done.err


@share(0.4)
@given(words=st.lists(WORDS, min_size=1, max_size=2))
def test_answers_in_json(words: list[str], tiny: list[str], tmp_path: Path, attempt: Attempt):
    assume(not is_open(words))
    done = attempt("check", *tiny, f"root={tmp_path}", *words, "--json")
    if done.code < 2:
        assert len(done.out.splitlines()) == 1
        assert isinstance(json.loads(done.out, parse_constant=_no_constant), dict)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
