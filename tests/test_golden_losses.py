"""The losses of the first 20 steps of the quickstart's stages and of every task, with tiny parts, as they were.

tests/assets/losses/NAME.txt holds the losses of a run, a row a step. A change that is meant to change no number leaves
the files alone; one that is meant to change some writes them anew, and its line in CHANGELOG.md says which and why:

    python tests/test_golden_losses.py

The numbers are those of float32 on one thread of a CPU with AVX-512. Kernels of other processors differ in the last
bits, and training amplifies that: a ReLU that one sees a hair above 0 and another below changes all that follows, and
Adam divides what is only rounding by itself. So activations are smooth here, Adam's epsilon is large and some steps are
small; dropout is as it is. Then the files hold also where ATen, oneDNN and MKL are kept to AVX2
(ATEN_CPU_CAPABILITY=avx2 or default, ONEDNN_MAX_CPU_ISA, MKL_CBWR).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from conftest import PARTS, logged
from voxzoo.tasks import train

FOLDER = Path(__file__).parent / "assets" / "losses"
REWRITE = "python tests/test_golden_losses.py writes the files anew"
STEPS = 20
TOLERANCE = 1e-5
FAR, FAR_TOLERANCE = 10, 5e-5  # by then rounding of another processor has been trained on: seen 1.4e-5 on a Xeon
NO_LOSSES = ("accuracy", "grad_norm", "lr", "per_second", "score", "skipped_steps")
COMMON = [
    *PARTS, "data=tiny", "logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger",
    "++logger.save_dir=${run_dir}", "trainer.log_every_n_steps=1", f"trainer.max_steps={STEPS}",
    f"trainer.val_check_interval={STEPS}", f"checkpoint.every_steps={STEPS}",
    "optim.eps=1e-3", "text_seq2seq.activation=gelu",
]  # fmt: skip
WARM = "schedule.warmup_steps=10"
MADE = ["unit_extractor=tiny", "t2u=tiny", "vocoder=tiny"]
QUICKSTART = ["experiment=quickstart", *MADE, "adaptor=stack", WARM, "optim.lr=2e-3", "name=quickstart"]
STAGES = ("first_pass", "units", "vocoder", "second_pass")
UNITS = [
    "data.units=${root}/quickstart/stages/units/units.jsonl", "init.unit_extractor=${root}/quickstart/stages/units",
]  # fmt: skip
UNITY = [*MADE, *UNITS, "task=speech_to_speech_unity", "data.batch_size=4", WARM]
VOCODER = [*MADE, *UNITS, "t2u=none", "task=unit_vocoder", WARM]
EVERYWHERE = [f"lora.{role}={{targets:{{all:'*'}},rank:2}}" for role in ("speech_encoder", "text_seq2seq")]
CASES = {
    "speech_to_text": [WARM],
    "speech_to_text_many_tasks": [
        WARM, "data.tasks={s2tt:true,asr:true}", "data.speed_perturb=[0.9,1.1]", "data.batch_seconds=20",
        "trainer.accumulate_grad_batches=2",
    ],
    "speech_to_text_ctc_shrink": [WARM, "adaptor=ctc_shrink"],
    "speech_to_text_frozen_encoder": [
        WARM, "adaptor=stack", "adaptor.stack=1", "task.ctc_on=adaptor", "freeze.speech_encoder=true",
    ],
    "speech_to_text_lora": [WARM, "adaptor=conv", "task.ctc_weight=0", *EVERYWHERE],
    "speech_to_text_wav2vec2": [
        WARM, "frontend=raw", "speech_encoder=tiny_raw", "adaptor=stack", "activation_checkpointing=true",
        "data.batch_size=2", "optim.lr=2e-4",
    ],
    "speech_to_text_whisper": [
        WARM, "frontend=whisper", "frontend.pad_seconds=null", "speech_encoder=whisper_tiny", "speech_encoder.dim=16",
        "speech_encoder.num_heads=2", "speech_encoder.num_layers=1", "speech_encoder.ffn_dim=32", "adaptor=stack",
        "data.batch_size=4",
    ],
    "text_to_text": [WARM, "task=text_to_text", "data.tasks={s2tt:false,t2tt:true}"],
    "unity": [*UNITY, "text_seq2seq.num_encoder_layers=0"],
    "unity_2": [*UNITY, "t2u=tiny_unity2", "t2u.activation=gelu", "vocoder=tiny_hifi_gan", "optim.lr=2e-4"],
    "unity_autoregressive": [
        *UNITY, "t2u=autoregressive", "t2u.dim=16", "t2u.ffn_dim=32", "t2u.num_encoder_layers=1",
        "t2u.num_decoder_layers=1", "t2u.activation=gelu", "t2u.num_languages=2", "task.t2u_input=all",
        "task.t2u_eos=keep", "task.t2u_languages=[eng,spa]",
    ],
    "unit_vocoder_istft": [*VOCODER, "vocoder=tiny_istft", "optim.lr=2e-4"],
    "unit_vocoder_hifi_gan": [*VOCODER, "vocoder=tiny_hifi_gan"],
    "gan_vocoder": [*MADE, *UNITS, "task=gan_vocoder", "vocoder=tiny_istft", "discriminator=tiny"],
}  # fmt: skip


def losses(root: Path, words: list[str], stage: str | None = None) -> dict[str, list[float]]:
    """Train a run below `root` and read its losses, each a number a step; of units, how well they fit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = train([*COMMON, f"root={root}", f"cache_dir={root}/cache", *words], stage=stage)
    finally:
        torch.set_num_threads(threads)
    if "fit" in done:
        return {name: [done["fit"][name]] for name in ("inertia", "unexplained", "used")}
    (path,) = Path(done["run"]).rglob("metrics.csv")
    names = [name for name in path.read_text().splitlines()[0].split(",") if name.startswith("train/")]
    return {name.removeprefix("train/"): logged(path.parent, name) for name in names if not _is_no_loss(name)}


def _is_no_loss(name: str) -> bool:
    return any(word in name for word in NO_LOSSES)


def quickstart(root: Path) -> dict[str, dict[str, list[float]]]:
    """The stages one after the other, in this process."""
    return {f"quickstart_{stage}": losses(root, QUICKSTART, stage) for stage in STAGES}


def write(name: str, found: dict[str, list[float]]) -> None:
    lines = [list(found), *([f"{value:.8g}" for value in row] for row in zip(*found.values(), strict=True))]
    (FOLDER / f"{name}.txt").write_text("".join(" ".join(f"{word:>16}" for word in line) + "\n" for line in lines))


def read(name: str) -> dict[str, list[float]]:
    names, *rows = [line.split() for line in (FOLDER / f"{name}.txt").read_text().splitlines()]
    return {each: [float(row[place]) for row in rows] for place, each in enumerate(names)}


def compare(name: str, found: dict[str, list[float]]) -> None:
    expected = read(name)
    assert sorted(found) == sorted(expected), f"{name} has other losses than its file; {REWRITE}"
    for key, values in expected.items():
        assert len(found[key]) == len(values) == (STEPS if "inertia" not in expected else 1), key
        for step, (was, value) in enumerate(zip(values, found[key], strict=True), 1):
            tolerance = TOLERANCE if step <= FAR else FAR_TOLERANCE
            near = abs(value - was) <= tolerance * max(abs(was), 1)
            assert near, (
                f"{name}: {key} at step {step} is {value:.8g} and was {was:.8g}. Where that is meant, {REWRITE}"
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, dict[str, list[float]]]:
    return quickstart(root)


@pytest.mark.parametrize("stage", STAGES)
def test_the_quickstart_loses_what_it_lost(stage: str, stages: dict[str, dict[str, list[float]]]):
    compare(f"quickstart_{stage}", stages[f"quickstart_{stage}"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("stages")  # the units of some are its
def test_a_task_loses_what_it_lost(name: str, root: Path):
    compare(name, losses(root, [*CASES[name], f"name={name}"]))


def test_every_file_belongs_to_a_run():
    files = {path.stem for path in FOLDER.iterdir()}
    assert files == {*CASES, *(f"quickstart_{stage}" for stage in STAGES)}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        for name, found in quickstart(Path(place)).items():
            write(name, found)
        for name, words in CASES.items():
            write(name, losses(Path(place), [*words, f"name={name}"]))
