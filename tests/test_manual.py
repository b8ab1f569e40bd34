"""What the pages of the manual show is run."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components.converters.compat import markdown
from voxzoo.components.converters.published import load_part
from voxzoo.components.errors import UserError
from voxzoo.configs import build, check, compose
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.planning.shapes import trace

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("configs/*/README.md")])
}


def block(words: str, kind: str = "python") -> str:
    """The one code block with these words in it, of all pages."""
    manual = "\n".join(PAGES.values())
    (found,) = [text for text in re.findall(rf"```{kind}\n(.*?)```", manual, re.DOTALL) if words in text]
    return found


def test_the_first_page_is_short():
    assert README.count("\n") <= 150


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_what_exists(name: str):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    for link in links:
        if not re.match(r"https?:", link):
            file, _, anchor = link.partition("#")
            path = (ROOT / name).parent.joinpath(file).resolve() if file else ROOT / name
            assert path.exists(), link
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), link


TINY = [
    *("data=tiny", "frontend=tiny", "speech_encoder=tiny", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny"),
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "frontend.stack=2", "tokenizer.vocab_size=200"),
    "data.batch_seconds=20",
]


def test_parts_from_python():
    names: dict = {}
    exec(block("build(config.speech_encoder)"), names)
    assert type(names["encoder"]).__name__ == "ConformerEncoder"
    assert names["adaptor"].input_dim == names["encoder"].output_dim


@pytest.mark.slow
def test_train_and_predict_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))
    training, prediction = block("import train"), block("load_run(")
    quickstart = '["experiment=quickstart", "t2u=none"]'
    assert quickstart in training
    # The same lines on tiny parts.
    exec(training.replace(quickstart, repr(["experiment=quickstart", "t2u=none", *TINY])), {})
    time = np.arange(16000) / 16000
    soundfile.write("clip.wav", 0.3 * np.sin(2 * np.pi * 300 * time), 16000)
    names: dict = {}
    exec(prediction, names)
    assert isinstance(names["task"].predict(names["batch"])[0].text, str)


def test_a_trainer_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))
    lines, words = block("import prepare"), '["experiment=quickstart", "t2u=none", "name=by_hand"]'
    assert words in lines
    names: dict = {}
    exec(lines.replace(words, repr([*ast.literal_eval(words), *TINY])).replace("max_steps=100", "max_steps=2"), names)
    (checkpoint,) = tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt")
    assert load_run(checkpoint).task.config["run_dir"] == names["task"].config["run_dir"]
    hand_made = type(names["task"])(**{**names["task"].parts(), "tokenizer": names["task"].tokenizer, "frontend": None})
    content = torch.load(checkpoint, weights_only=True)
    hand_made.on_save_checkpoint(content)
    torch.save(content, tmp_path / "hand.ckpt")
    with pytest.raises(UserError, match=r"hand\.ckpt: carries no config"):
        load_run(tmp_path / "hand.ckpt")


def test_the_shown_faults_are_what_check_says(capsys: pytest.CaptureFixture):
    shown = re.search(r"\$ voxzoo check (.*?)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert main(["check", *shown[1].split()]) == 1
    said = capsys.readouterr().err
    for line in shown[2].strip().splitlines():
        assert line.strip() in said


def test_every_override_in_the_parts_table_exists():
    section = PAGES["components/README.md"].partition("##")[0]
    role = ""
    for row in re.findall(r"^\|([^|]*)\|([^|]*)\|", section, re.MULTILINE):
        role = row[0].strip("` ") if row[0].strip() else role
        for choice in re.findall(r"`(\w+)`", row[1]):
            assert check(compose([f"{role}={choice}"])) == []


def test_the_table_of_switches_is_the_one_the_code_has():
    assert markdown() in PAGES["components/README.md"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A small w2v-BERT, NLLB and Whisper under the names that the manual uses."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**sizes)).save_pretrained(tmp_path / "w2v-bert-2.0")
    stacks = {f"{stack}_{key}": value for stack in ("encoder", "decoder") for key, value in
              {"layers": 2, "attention_heads": 2, "ffn_dim": 20}.items()}  # fmt: skip
    nllb = transformers.M2M100Config(d_model=16, vocab_size=300, scale_embedding=True, **stacks)
    transformers.M2M100ForConditionalGeneration(nllb).save_pretrained(tmp_path / "nllb-200-distilled-600M")
    whisper = transformers.WhisperConfig(d_model=16, max_source_positions=1500, num_mel_bins=80, **stacks)
    transformers.WhisperForConditionalGeneration(whisper).save_pretrained(tmp_path / "whisper-base")
    return tmp_path


def test_parts_of_different_models_in_one_config(published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(published)
    folder = published / "my_configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mixed.yaml").write_text(block("my_configs/experiment/mixed.yaml", "yaml"))
    # These folders hold no tokenizer.
    words = [
        "experiment=mixed",
        "tokenizer=tiny",
        "tokenizer.vocab_size=300",
        "data.train=t.jsonl",
        "data.batch_size=2",
    ]
    config = compose(words, config_dirs=["my_configs"])
    assert [str(fault) for fault in check(config)] == []
    assert (config.adaptor.input_dim, config.adaptor.output_dim) == (24, 16)
    assert [row.part for row in trace(config)] == ["speech_encoder", "adaptor", "text_seq2seq", "(heads)"]
    for role in ("speech_encoder", "text_seq2seq"):
        loaded = load_part(build(config[role]), role, config[role].pretrained)
        assert loaded.state
        assert not loaded.missing


def test_published_models_from_python(published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(published)
    exec(block("from_transformers("), {})
    assert (published / "again" / "model.safetensors").exists()


def test_every_trap_has_a_test():
    section = PAGES["tests/README.md"].partition("## What other training code lets happen")[2]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 23
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in next(Path(__file__).parent.rglob(file)).read_text(), f"{file}::{test}"
