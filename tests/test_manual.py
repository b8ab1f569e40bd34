"""What the pages of the manual show is run."""

import ast
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import published
import pytest
import soundfile
import torch
from pages import PAGES, ROOT, Block, Shell, blocks, tiny
from voxzoo.components.converters.compat import markdown
from voxzoo.components.converters.published import load_part
from voxzoo.components.errors import UserError
from voxzoo.configs import build, check, compose
from voxzoo.configs.compose import compose_choices
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.planning.shapes import trace

README = PAGES["README.md"]


def block(words: str, kind: str = "python") -> str:
    """The first code block with these words in it, of all pages."""
    return next(each.text for page in PAGES for each in blocks(page) if each.language == kind and words in each.text)


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


TEXTS = [f"{name} llega el {day} a las {day} y media" for name in ("el tren", "María", "tu amigo") for day in range(30)]


def clip(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(16000 * seconds)) / 16000), 16000)


def manifests(folder: Path) -> None:
    """Rows with the keys of the one that the page shows."""
    row = json.loads(block('"src_text"', "json"))
    for split, texts in zip(("train", "valid", "test"), (TEXTS[:-4], TEXTS[-4:-2], TEXTS[-2:])):
        lines = []
        for i, text in enumerate(texts):
            changed = {"id": f"{split}{i}", "audio": f"clips/{split}{i}.wav", "duration": 1 + i % 5 / 10}
            clip(folder / changed["audio"], changed["duration"])
            lines.append(json.dumps({**row, **changed, "src_text": text, "tgt_text": text.swapcase()}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def pairs(folder: Path) -> None:
    """The same with target speech."""
    manifests(folder)
    for split in ("train", "valid"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        lines = [json.dumps({**row, "tgt_audio": row["audio"]}) + "\n" for row in rows]
        (folder / f"s2st_{split}.jsonl").write_text("".join(lines))


def xls_r(folder: Path) -> None:
    """As many layers as the 35th needs, and clusters of which the first few are near."""
    published.publish_xls_r(folder / "wav2vec2-xls-r-1b", layers=36, dim=12)
    clusters = np.full((10000, 12), 1e6, np.float32)
    clusters[: published.NUM_UNITS] = np.random.default_rng(0).normal(size=(published.NUM_UNITS, 12))
    np.save(folder / "kmeans_10k.npy", clusters)


def encoder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**sizes)).save_pretrained(folder / "w2v-bert-2.0")


def nllb(folder: Path) -> None:
    published.publish_nllb(folder / "nllb-200-distilled-600M", ("eng_Latn", "quy_Latn", "spa_Latn"))


# What pages take for given: words of a block, and what makes it.
def outputs(folder: Path) -> None:
    """Of two systems, with what they are scored by."""
    rows = [{"id": f"u{n}", "reference": text, "hypothesis": text[:-3]} for n, text in enumerate(TEXTS)]
    (folder / "test.hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "theirs.tsv").write_text("id\ttext\n" + "".join(f"u{n}\t{text}\n" for n, text in enumerate(TEXTS)))
    (folder / "speakers.tsv").write_text("id\tgender\n" + "".join(f"u{n}\tf\n" for n in range(len(TEXTS))))
    for name in ("ours", "theirs", "ref", "seed1", "seed2"):
        (folder / f"{name}.txt").write_text("\n".join(TEXTS))


FILES = {
    r"\btheirs\.tsv": outputs,
    "w2v-bert-2.0/": encoder,
    "whisper-base": lambda folder: published.publish_whisper(folder / "whisper-base"),
    "nllb-200-distilled-600M/": nllb,
    "seamless-m4t-v2-large/": lambda folder: published.publish_seamless(folder / "seamless-m4t-v2-large", 2),
    r"\btrain\.jsonl": manifests,
    r"\bs2st_train\.jsonl": pairs,
    "kmeans_10k": xls_r,
    r"\bclip\.wav": lambda folder: clip(folder / "clip.wav"),
}


@pytest.fixture
def shell(voxzoo, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Shell, in the folder that is the current one too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(shared / "corpora"))
    environment = {"VOXZOO_CACHE": str(shared / "corpora")}

    def quickstart(folder: Path) -> None:
        if not (folder / "runs" / "quickstart").exists():
            words = tiny(["experiment=quickstart", "t2u=none"])
            assert voxzoo("train", *words, cwd=folder, env=environment).returncode == 0

    def imported(folder: Path) -> None:
        if not (folder / "runs" / "whisper").exists():
            published.publish_whisper(folder / "whisper")
            assert voxzoo("import", "whisper", "runs/whisper", cwd=folder, env=environment).returncode == 0

    files = {**FILES, "load_run": quickstart, "=runs/whisper": imported}
    return partial(Shell, tmp_path, voxzoo, files, environment)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_run(page: str, shell):
    """In order, in one folder: what stands in a block finds what the blocks before it made."""
    session = shell(trains=False)
    for each in blocks(page):
        if each.mark != "not run":
            session.run(each)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(each.mark == "test-all" for each in blocks(page))])
def test_all_that_a_page_shows_is_run(page: str, shell):
    session = shell(trains=True)
    for each in blocks(page):
        if each.mark != "not run":
            session.run(each)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_seen_and_says_why_it_is_not_run(page: str):
    seen = list(blocks(page))
    assert len(re.findall(r"^\s*(```|~~~)", PAGES[page], re.MULTILINE)) == 2 * len(seen)
    assert len(re.findall(r"^<!-- (?:not run|test-all)", PAGES[page], re.MULTILINE)) == sum(
        bool(each.mark) for each in seen
    )
    for each in seen:
        assert not each.mark or len(each.reason.split()) > 1, str(each)


@pytest.mark.parametrize("text", ["ls\n", "voxzoo check adaptor=nonesuch\n", "$ voxzoo check\nnever said\n"])
def test_a_block_that_does_not_do_what_it_shows_fails(text: str, shell):
    with pytest.raises(AssertionError) as error:
        shell(trains=True).run(Block("README.md", 7, "", text, "", ""))
    assert error.value.__notes__ == ["in README.md:7"]


def test_parts_from_python():
    names: dict = {}
    exec(block("build(config.speech_encoder)"), names)
    assert type(names["encoder"]).__name__ == "ConformerEncoder"
    assert names["adaptor"].input_dim == names["encoder"].output_dim


def test_a_trainer_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))
    lines, words = block("import prepare"), '["experiment=quickstart", "t2u=none", "name=by_hand"]'
    assert words in lines
    names: dict = {}
    exec(lines.replace(words, repr(tiny(ast.literal_eval(words)))).replace("max_steps=100", "max_steps=2"), names)
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
            assert check(compose_choices([f"{role}={choice}"])) == []


def test_the_table_of_switches_is_the_one_the_code_has():
    assert markdown() in PAGES["components/README.md"]


def test_parts_of_different_models_in_one_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mixed.yaml").write_text(block("my_configs/experiment/mixed.yaml", "yaml"))
    for name in ("w2v-bert-2.0/", "nllb-200-distilled-600M/"):
        FILES[name](tmp_path)
    config = compose(["experiment=mixed", "data.train=t.jsonl", "data.batch_size=2"], config_dirs=["my_configs"])
    assert [str(fault) for fault in check(config)] == []
    assert (config.adaptor.input_dim, config.adaptor.output_dim) == (24, 12)
    assert [row.part for row in trace(config)] == ["speech_encoder", "adaptor", "text_seq2seq", "(heads)"]
    for role in ("speech_encoder", "text_seq2seq"):
        loaded = load_part(build(config[role]), role, config[role].pretrained)
        assert loaded.state
        assert not loaded.missing


EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))


def experiment_rows() -> dict[str, list[str]]:
    """name: command, machine, minutes, score, as the table has them."""
    table = PAGES["configs/experiment/README.md"].partition("##")[0]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| [")]
    return {re.match(r"\| \[(\w+)\]\(\1\.yaml\)", row[0])[1]: [cell.strip("`| ") for cell in row[1:]] for row in rows}


def test_every_experiment_has_a_row():
    assert sorted(experiment_rows()) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_what_its_row_says(name: str, shell):
    package, *lines = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text().splitlines()
    command, machine, minutes, score = experiment_rows()[name]
    assert package == "# @package _global_"
    assert lines[:4] == [f"# {command}", f"# machine: {machine}", f"# minutes: {minutes}", f"# score: {score}"]
    shell(trains=False).give(command)
    verb, *words = command.removeprefix("voxzoo ").split()
    assert verb in ("train", "check")
    assert f"experiment={name}" in words
    assert [str(fault) for fault in check(compose(words))] == []


@pytest.mark.parametrize(
    ("title", "count"), [("What other training code lets happen", 23), ("Inputs that broke it once", 42)]
)
def test_every_trap_has_a_test(title: str, count: int):
    section = PAGES["tests/README.md"].partition(f"## {title}")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == count
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            found = [path.read_text() for path in Path(__file__).parent.rglob(file)]
            assert any(f"def {test}(" in text for text in found), f"{file}::{test}"
