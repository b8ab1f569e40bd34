"""What users hold on to, as a list: verbs, flags, keys of --json answers, config keys, public names, their arguments.

A change of it is seen in the review of tests/assets/surface.txt, and gets its line in CHANGELOG.md. The file is written
anew by

    python tests/test_surface.py
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
import yaml
from conftest import PARTS
from voxzoo import components, configs, datamodules, tasks
from voxzoo.configs.signatures import parameters_of
from voxzoo.tasks.commands.cli import VERBS, main

FILE = Path(__file__).parent / "assets" / "surface.txt"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HINT = f"Where that is meant: python tests/{Path(__file__).name} writes {FILE.name} anew, and CHANGELOG.md gets a line"
SHORT = "{_target_:voxzoo.components.search.SearchOptions,beam_size:1,max_length:8}"
TINY = [
    *PARTS, "data=tiny", "data.corpus.num_train=8", "data.corpus.num_valid=2", "data.corpus.num_test=2",
    "tokenizer.vocab_size=300", "logger=none", "trainer.max_steps=1", "trainer.val_check_interval=1",
]  # fmt: skip


def verbs_and_flags() -> Iterator[str]:
    """By what --help says: `voxzoo units fit`, `voxzoo units fit --out`."""
    waiting = [[verb] for verb in VERBS]
    while waiting:
        words = waiting.pop()
        text = _help(words)
        usage = text.partition("\n\n")[0]
        yield f"voxzoo {' '.join(words)}"
        for option in sorted(set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage))):
            yield f"voxzoo {' '.join(words)} {option}"
        below = re.search(r"^  {?([a-z]+\|[a-z|]+)}?$", text, re.MULTILINE)
        waiting += [[*words, name] for name in below.group(1).split("|")] if below else []


def _help(words: list[str]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


def config_keys() -> Iterator[str]:
    """By the YAML files: `config task/text_to_text label_smoothing`."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        choice = path.relative_to(CONFIGS).with_suffix("").as_posix()
        yield f"config {choice}"
        yield from (f"config {choice} {key}" for key in _keys(yaml.safe_load(path.read_text())))


def names() -> Iterator[str]:
    """`voxzoo.components.Fbank`, its role and its arguments, which are config keys too."""
    for role, parts in components.parts().items():
        yield from (f"part {role} {name}" for name in parts)
    for package in (components, configs, datamodules, tasks):
        for name in package.__all__:
            yield f"name {package.__name__}.{name}"
            yield from (f"name {package.__name__}.{name} {each}" for each in _arguments(getattr(package, name)))


def _arguments(value: Any) -> list[str]:
    return [name for name in parameters_of(value)[0] if name not in ("args", "kwargs")]


def answers(root: Path) -> Iterator[str]:
    """By running every verb on tiny parts in this process: `json translate results[].text`."""

    def call(*words: object) -> tuple[str, dict[str, Any]]:
        with tempfile.TemporaryFile("w+") as out:
            sys.stdout.flush()
            kept = os.dup(1)
            os.dup2(out.fileno(), 1)
            try:
                main([*map(str, words), "--json"])
            finally:
                os.dup2(kept, 1)
                os.close(kept)
            out.seek(0)
            answer = json.loads(out.read())
        assert answer["status"] == "ok", answer
        verb = " ".join(map(str, words[: 2 if words[0] in ("data", "units") or words[1:2] == ("check",) else 1]))
        return verb, answer

    cache = [f"cache_dir={root / 'cache'}", f"root={root}"]
    sizes = ["num_train=8", "num_valid=2", "num_test=2", "countries=8", "voice=tones", "num_workers=1"]
    corpus = call("data", "prepare", "spoken_phrases", *sizes, "--out", root / "cache" / "spoken_phrases")
    manifests = [Path(each["path"]) for each in corpus[1]["manifests"].values()]
    manifest = manifests[0].with_name("all.jsonl")
    manifest.write_text("".join(path.read_text() for path in manifests))
    parts = [*TINY, *cache, "t2u=tiny", "vocoder=tiny", "unit_extractor=tiny"]
    whole = [
        *parts, "task=speech_to_speech_unity", f"task.search={SHORT}", "init.unit_extractor=${root}/fitted",
        "data.units=${root}/fitted/units.jsonl", "name=run",
    ]  # fmt: skip
    made = [
        corpus,
        call("data", "validate", manifest, manifest),
        call("data", "convert", "iwslt", manifest.parent, "--out", root / "converted.jsonl"),
        call("data", "stats", manifest, "--pictures", root / "pictures"),
        call("data", "split", manifest, "valid=0.2", "--by", "recording", "--out", root / "parts"),
        call("data", "mix", manifest),
        call("data", "pack", manifest, "--out", root / "packed"),
        call("data", "unpack", root / "packed" / "manifest.jsonl", "--out", root / "unpacked"),
        call("units", "fit", manifest, "--out", root / "units", "--set", "unit_extractor=tiny"),
        call("units", "extract", root / "units", manifest, "--out", root / "units.jsonl"),
        call("train", *parts, "task=fit_units", "name=fitted"),
        call("check", *whole, "--memory", "64"),
        call("parts"),
        call("parts", "check", "adaptor=tiny"),
        call("train", *whole),
    ]
    run = root / "run"
    audio = sorted(path for path in manifest.parent.rglob("*") if path.suffix in (".wav", ".flac", ".opus"))
    made.append(call("evaluate", run, "--recogniser", "none", "--quality", "none", "--split", "test"))
    written = run / "evaluation" / "test.hypotheses.jsonl"
    (root / "same.jsonl").write_bytes(written.read_bytes())
    made += [
        call("score", written, root / "same.jsonl", "--task", "s2st", "--by", "tgt_lang", "--metrics", "bleu,wer"),
        call("report", run, "--task", "s2st", "--out", root / "page.html"),
        call("translate", run, audio[0], "--task", "s2st", "--to", "eng", "--out", root / "wavs"),
        call("units", "resynthesise", run, root / "fitted" / "units.jsonl", "--out", root / "again", "--limit", "1"),
        call("consolidate", run),
        call("import", _published(root / "published"), root / "imported"),
        call("export", root / "imported", root / "exported"),
    ]
    for verb, answer in made:
        yield from (f"json {verb} {key}" for key in _keys(answer))


def _published(folder: Path) -> Path:
    """A small w2v-BERT in the published layout."""
    sizes = {"feature_projection_input_dim": 80, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Wav2Vec2BertConfig(**sizes, intermediate_size=20, conv_depthwise_kernel_size=5)
    transformers.Wav2Vec2BertModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_mel_bins": 20, "stride": 4}))
    return folder


def _keys(value: Any, before: str = "") -> Iterator[str]:
    """Dotted keys at all depths; what a list holds stands behind []; paths are not names."""
    if isinstance(value, list):
        found = {key: None for item in value for key in _keys(item, f"{before}[]")}
        yield from found
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = "PATH" if str(key).startswith(os.sep) else str(key)
            path = f"{before}.{name}" if before else name
            yield path
            yield from _keys(inner, path)


def write(path: Path, root: Path) -> None:
    lines = {*verbs_and_flags(), *config_keys(), *names(), *answers(root)}
    path.write_text("".join(f"{line}\n" for line in sorted(lines)))


def test_the_surface_is_as_listed(tmp_path: Path):
    write(tmp_path / FILE.name, tmp_path)
    listed, found = (path.read_text().splitlines() for path in (FILE, tmp_path / FILE.name))
    moved = [line for line in difflib.unified_diff(listed, found, n=0, lineterm="") if re.match(r"[-+](?![-+])", line)]
    assert not moved, "\n".join(["The surface has changed (- gone, + new):", *moved, HINT])


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        write(FILE, Path(place))
