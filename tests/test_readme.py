"""What the README shows is run."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from voxzoo.configs import check, compose
from voxzoo.tasks.cli import main

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TINY = [
    *("data=tiny", "frontend=tiny", "speech_encoder=tiny", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny"),
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "frontend.stack=2", "tokenizer.vocab_size=200"),
    "data.batch_seconds=20",
]


def test_parts_from_python():
    names: dict = {}
    exec(BLOCKS[0], names)
    assert type(names["encoder"]).__name__ == "ConformerEncoder"
    assert names["adaptor"].input_dim == names["encoder"].output_dim


@pytest.mark.slow
def test_train_and_predict_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))
    training, prediction = BLOCKS[1:]
    quickstart = '["experiment=quickstart", "t2u=none"]'
    assert quickstart in training
    # The same lines on tiny parts.
    exec(training.replace(quickstart, repr(["experiment=quickstart", "t2u=none", *TINY])), {})
    time = np.arange(16000) / 16000
    soundfile.write("clip.wav", 0.3 * np.sin(2 * np.pi * 300 * time), 16000)
    names: dict = {}
    exec(prediction, names)
    assert isinstance(names["task"].predict(names["batch"])[0].text, str)


def test_the_shown_faults_are_what_check_says(capsys: pytest.CaptureFixture):
    shown = re.search(r"\$ voxzoo check (.*?)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert main(["check", *shown[1].split()]) == 1
    said = capsys.readouterr().err
    for line in shown[2].strip().splitlines():
        assert line.strip() in said


def test_every_override_in_the_parts_table_exists():
    section = README.partition("## Parts")[2].partition("##")[0]
    role = ""
    for row in re.findall(r"^\| (.*?) \|(.*?)\|", section, re.MULTILINE):
        role = row[0].strip("` ") if row[0].strip() else role
        for choice in re.findall(r"`(\w+)`", row[1]):
            assert check(compose([f"{role}={choice}"])) == []
