"""Random models of every published layout, under random values of every switch of the table in components/README.md:
exported, opened by transformers in one other process, and compared.

    python tests/export_sweep.py                        # 40 of each family; a line for each fault, 1 as exit status
    python tests/export_sweep.py seamless_m4t_v2 --count 200 --first 1000

For each model: an export that changes results is refused, and says by which switch; under `compat=transformers` it is
written, opened there with no key missing, made up or of another shape, and gives the states, ids, units and waveforms
of the model with the switches of transformers. An export that was not refused gives those of the model as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_models import FAMILIES, Draw, Drawn, Nodes, build
from torch import Tensor, nn

# Here


class Model:
    """What `to_transformers` asks of a task."""

    def __init__(self, nodes: Nodes, state: dict[str, Tensor], tokenizer: Any) -> None:
        self.config, self.tokenizer, self._parts = nodes, tokenizer, build(nodes, state)

    def parts(self) -> dict[str, nn.Module]:
        return self._parts


def export(drawn: Drawn, folder: Path) -> tuple[list[str], bool]:
    """Write it; faults of what is said, and whether the model goes out as it is."""
    from voxzoo.components.converters import to_transformers
    from voxzoo.components.errors import UserError

    model, said = Model(drawn.nodes, drawn.state, drawn.tokenizer), []
    try:
        to_transformers(model, folder, model_type=drawn.layout, note=said.append)
        return [], True
    except UserError as error:
        keys = [word.partition("=")[0] for word in str(error).split(", ") if "=" in word and "(transformers" in word]
        faults = [] if keys else [f"refused, but no switch is named: {error}"]
        for key in keys:
            role, _, name = key.partition(".")
            if drawn.nodes[role].get(name) == drawn.plain[role].get(name):
                faults.append(f"refused for {key}, which is as there")
    to_transformers(model, folder, model_type=drawn.layout, note=said.append, compat="transformers")
    return faults, False


@torch.no_grad()
def answers_here(drawn: Drawn, nodes: Nodes, single: bool = False) -> dict[str, list[Any]]:
    """Results of the model: key -> one for each batch of the inputs."""
    from voxzoo.components.types import Padded

    parts = build(nodes, drawn.state)
    rows = {key: [Padded.from_list(batch) for batch in batches[: 1 if single else None]]
            for key, batches in drawn.inputs.items()}  # fmt: skip
    found: dict[str, list[Any]] = {}
    if "speech" in rows:
        states = [parts["speech_encoder"](speech) for speech in rows["speech"]]
        if "adaptor" in parts:
            states = [parts["adaptor"](one).states for one in states]
        found["states"] = [one.unpad() for one in states]
    if drawn.layout == "whisper":
        found["ids"] = [whisper_ids(drawn, parts, one) for one in states]
    if drawn.layout == "m2m_100":
        found["ids"] = [m2m_ids(drawn, nodes, parts, text) for text in rows["text"]]
    if drawn.layout.startswith("seamless"):
        task = task_of(drawn, nodes, parts)
        for kind in ("speech", "text"):
            for batch in rows.get(kind, []):
                for key, value in task_answers(drawn, task, kind, batch).items():
                    found.setdefault(f"{kind} {key}", []).append(value)
        if "vocoder" in parts and not single:
            language = torch.tensor([1])
            found["waves"] = [parts["vocoder"](one, language.expand(len(one))).unpad() for one in rows["units"]]
    return found


def task_of(drawn: Drawn, nodes: Nodes, parts: dict[str, nn.Module]) -> Any:
    from voxzoo import tasks
    from voxzoo.components.converters.published import build_part
    from voxzoo.components.search import SearchOptions

    node = {key: value for key, value in nodes["task"].items() if key != "_target_"}
    node["search"] = SearchOptions(**{k: v for k, v in node["search"].items() if k != "_target_"})
    kind = getattr(tasks, nodes["task"]["_target_"].rpartition(".")[2])
    if kind is not tasks.TextToText:
        node["frontend"] = build_part("frontend", nodes["frontend"], "frontend") if "frontend" in nodes else None
        node["ctc_weight"] = 0.0
    return kind(**parts, tokenizer=drawn.tokenizer, **node).eval()


def task_answers(drawn: Drawn, task: Any, kind: str, given: Any) -> dict[str, Any]:
    from voxzoo.components.types import Batch
    from voxzoo.tasks.text import translate_text

    beams = drawn.options["beams"]
    options = replace(task.search, method="beam" if beams > 1 else "greedy", beam_size=beams,
                      suppress=tuple(drawn.options["unspoken"]))  # fmt: skip
    count = len(given)
    batch = Batch(ids=tuple(map(str, range(count))), src_lang=("spa",) * count, tgt_lang=("eng",) * count,
                  **{"speech" if kind == "speech" else "source": given})  # fmt: skip
    mode = ("s" if kind == "speech" else "t") + "2tt"
    memory = task.encode_speech(given) if kind == "speech" else task.text_seq2seq.encode(given)
    found = [row[0] for row in translate_text(task.text_seq2seq, memory, batch, mode, task.tokenizer, options)]
    answers: dict[str, Any] = {"ids": [one.tokens.tolist() for one in found]}
    if "vocoder" in drawn.nodes:
        said = task.predict(batch, task=mode[0] + "2st", options=options)
        answers["units"] = [one.units for one in said]
        answers["audio"] = [one.audio for one in said]
    return answers


def whisper_ids(drawn: Drawn, parts: dict[str, nn.Module], memory: Any) -> list[list[int]]:
    from voxzoo.components.search import SearchOptions, generate

    told = drawn.options
    options = SearchOptions(
        method="beam" if told["beams"] > 1 else "greedy", beam_size=told["beams"], score="generated", min_length=0,
        length_penalty=told["length_penalty"], max_length=told["longest"], max_length_a=0.0,
        max_length_b=told["longest"], force_eos=False, early_stopping=False, suppress=tuple(told["suppress_tokens"]),
        begin_suppress=tuple(told["begin_suppress_tokens"]), no_repeat_ngram=told["no_repeat_ngram_size"],
    )  # fmt: skip
    prefix = torch.tensor([told["prefix"]] * len(memory))
    model: Any = parts["text_seq2seq"]
    found = generate(model, memory, prefix, options, told["eos"], told["eos"], told["eos"])
    return [one[0].tokens.tolist() for one in found]


def m2m_ids(drawn: Drawn, nodes: Nodes, parts: dict[str, nn.Module], text: Any) -> list[list[int]]:
    from voxzoo.components.search import SearchOptions, generate

    options = SearchOptions(**{k: v for k, v in nodes["task"]["search"].items() if k != "_target_"})
    prefix = torch.tensor([[2, drawn.options["language"]]] * len(text))
    model: Any = parts["text_seq2seq"]
    found = generate(model, model.encode(text), prefix, options, 2, 1, 3)
    return [one[0].tokens.tolist() for one in found]


# There, in a process of its own that never imports voxzoo


def answer(root: Path) -> None:
    """Open every folder under `root` and leave what it gives in `theirs.pt` beside it."""
    for place in sorted(root.iterdir()):
        if not (place / "asked.pt").exists():
            continue
        asked = torch.load(place / "asked.pt")
        try:
            found = _answer(place / "out", asked)
        except Exception as error:  # a folder that cannot be opened is what is looked for
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        torch.save(found, place / "theirs.pt")


@torch.no_grad()
def _answer(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    import transformers

    transformers.logging.set_verbosity_error()
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    keys = {key: [str(one) for one in value] for key, value in info.items() if value}
    model.eval()
    layout, options = asked["layout"], asked["options"]
    found: dict[str, Any] = {"keys": keys}
    rows = {key: [_padded(batch, 1 if layout == "m2m_100" else 0) for batch in batches]
            for key, batches in asked["inputs"].items() if key != "units"}  # fmt: skip
    if layout == "whisper":
        found["states"] = [[*model.model.encoder(x.transpose(1, 2)).last_hidden_state] for x, _ in rows["speech"]]
        found["ids"] = [_whisper_ids(model, x.transpose(1, 2), options) for x, _ in rows["speech"]]
    elif layout == "m2m_100":
        told = {"suppress_tokens": [1], "forced_bos_token_id": options["language"]}
        found["ids"] = [_cut(model.generate(input_ids=x, attention_mask=m, **told), 2) for x, m in rows["text"]]
    elif layout in ("hubert", "wav2vec2"):
        found["states"] = []
        for x, mask in rows["speech"]:
            there = model(x, attention_mask=mask if options["masked"] else None, output_hidden_states=True)
            layer = options["layer"]
            found["states"].append([*(there.last_hidden_state if layer is None else there.hidden_states[layer])])
    elif layout == "wav2vec2-bert":
        found["states"] = [[*model(x, attention_mask=mask).last_hidden_state] for x, mask in rows["speech"]]
    else:
        if "speech" in rows:
            found["states"] = [
                [*model.speech_encoder(x, attention_mask=m).last_hidden_state] for x, m in rows["speech"]
            ]
        for kind, batches in rows.items():
            for x, mask in batches:
                for key, value in _seamless(model, kind, x, mask, asked).items():
                    found.setdefault(f"{kind} {key}", []).append(value)
        if "units" in asked["inputs"]:
            found["waves"] = [_waves(model, batch) for batch in asked["inputs"]["units"]]
    return found


def _waves(model: Any, batch: list[Tensor]) -> list[Tensor]:
    units, _ = _padded(batch, 1)
    ones = torch.ones(len(units), 1, dtype=torch.int64)
    waves, lengths = model.vocoder(units, 0 * ones, ones)
    waves = waves if len(units) > 1 else waves.reshape(1, -1)
    return [wave[:length] for wave, length in zip(waves, lengths.reshape(-1).tolist(), strict=True)]


def _padded(rows: list[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    data = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    return data, (torch.arange(data.shape[1])[None] < lengths[:, None]).long()


def _cut(rows: Tensor, eos: int, first: int = 2) -> list[list[int]]:
    cut = [row[first:] for row in rows.tolist()]
    return [row[: row.index(eos)] if eos in row else row for row in cut]


def _whisper_ids(model: Any, speech: Tensor, options: dict[str, Any]) -> list[list[int]]:
    import transformers

    prefix = torch.tensor([options["prefix"]] * len(speech))
    rows = transformers.GenerationMixin.generate(
        model, speech, decoder_input_ids=prefix, num_beams=options["beams"],
        max_length=options["longest"] + prefix.shape[1], length_penalty=options["length_penalty"],
        generation_config=transformers.GenerationConfig(
            eos_token_id=50, decoder_start_token_id=51, pad_token_id=50,
            no_repeat_ngram_size=options["no_repeat_ngram_size"],
            suppress_tokens=options["suppress_tokens"] or None,
            begin_suppress_tokens=options["begin_suppress_tokens"] or None,
        ),
    )  # fmt: skip
    return _cut(rows, 50, prefix.shape[1])


def _seamless(model: Any, kind: str, x: Tensor, mask: Tensor, asked: dict[str, Any]) -> dict[str, Any]:
    options, v1 = asked["options"], asked["layout"] == "seamless_m4t"
    name = type(model).__name__
    given = {"input_features" if kind == "speech" else "input_ids": x, "attention_mask": mask, "tgt_lang": "eng"}
    suppress = [0, *options["unspoken"]]
    told = {"max_new_tokens": options["max_new_tokens"], "length_penalty": options["length_penalty"],
            "num_beams": options["beams"], "suppress_tokens": suppress}  # fmt: skip
    if name.endswith("ToText"):
        return {"ids": _text_rows(model.generate(**given, **told))}
    units = {"suppress_tokens": options["no_units"], "num_beams": asked["t2u_beams"],
             "max_new_tokens": asked["t2u_longest"]} if v1 else {}  # fmt: skip
    told = {**{f"text_{key}": value for key, value in told.items()},
            **{f"speech_{key}": value for key, value in units.items()}}  # fmt: skip
    try:
        said = model.generate(**given, return_intermediate_token_ids=True, **told)
    except RuntimeError as error:
        if v1 or "Kernel size can't be greater" not in str(error):
            raise
        # "texts without a character" in the table: nothing to compare with.
        return dict.fromkeys(("ids", "units", "audio"), [None] * len(x))
    found: dict[str, Any] = {"ids": _text_rows(said.sequences)}
    # "texts of a beam search behind their end" in the table: a row that ended before others is read further there.
    whole = [row[-2:] != [3, 3] for row in said.sequences.tolist()]
    rows = said.unit_sequences.tolist()
    if v1:
        rows = [row[2:] for row in rows]
        rows = [[unit - 4 for unit in (row[: row.index(2)] if 2 in row else row) if unit != 1] for row in rows]
    else:
        rows = [[unit - 4 for unit in row] for row in rows]
    waves = said.waveform if said.waveform.dim() == 2 else said.waveform.reshape(len(rows), -1)
    lengths = said.waveform_lengths.reshape(-1).tolist()
    audio = [wave[:n] for wave, n in zip(waves, lengths, strict=True)]
    spoken = {"units": rows, "audio": audio}
    return {**found, **{k: [x if good else None for x, good in zip(v, whole, strict=True)] for k, v in spoken.items()}}


def _text_rows(rows: Any) -> list[list[int]]:
    rows = getattr(rows, "sequences", rows).tolist()
    return [[token for token in (row[: row.index(3)] if 3 in row else row) if token] for row in (r[2:] for r in rows)]


# Both


def compared(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> Iterator[str]:
    """What differs, a line each."""
    for key, batches in ours.items():
        for place, (here, there) in enumerate(zip(batches, theirs[key], strict=False)):
            where = f"{key}, {'padded' if place else 'single'}"
            for row, (one, other) in enumerate(zip(here, there, strict=True)):
                if other is None:
                    continue
                if isinstance(one, Tensor):
                    if key != "states" and len(one) != len(other):
                        yield f"{where}, row {row}: {len(one)} samples, there {len(other)}"
                        continue
                    scale = max(float(one.abs().max()) if one.numel() else 0.0, 1.0)
                    apart = float((one - other[: len(one)]).abs().max()) if one.numel() else 0.0
                    if not apart <= 2e-4 * scale:
                        yield f"{where}, row {row}: {apart:.2g} apart of {scale:.2g}"
                elif one != (other[: len(one)] if key.endswith("units") else other):
                    yield f"{where}, row {row}: {one}, there {other}"


def elsewhere(root: Path) -> None:
    """`answer` in a process of its own."""
    subprocess.run([sys.executable, __file__, "--answer", str(root)], check=True, stderr=subprocess.DEVNULL)


def sweep(family: str, seeds: range, root: Path) -> tuple[list[str], dict[str, int]]:
    """Faults of random models of a family, a line each, and counts of what was seen."""
    prepared = []
    counts = {"models": len(seeds), "as they are": 0, "ids": 0, "different ids": 0, "units": 0}
    faults: list[str] = []
    for seed in seeds:
        place = root / f"{family}-{seed:05d}"
        place.mkdir()
        drawn = FAMILIES[family](Draw(family, seed, root))
        said, whole = export(drawn, place / "out")
        faults += [f"{family} {seed}: {line}" for line in said]
        counts["as they are"] += whole
        search = (
            {"t2u_beams": drawn.plain["t2u"].get("beam_size", 1), "t2u_longest": 19} if "t2u" in drawn.nodes else {}
        )
        torch.save({"layout": drawn.layout, "inputs": drawn.inputs, "options": drawn.options, **search},
                   place / "asked.pt")  # fmt: skip
        prepared.append((seed, place, drawn, whole))
    elsewhere(root)
    seen: set[int] = set()
    for seed, place, drawn, whole in prepared:
        theirs = torch.load(place / "theirs.pt")
        lines = [theirs["error"]] if "error" in theirs else [f"{k}: {v}" for k, v in theirs["keys"].items()]
        if "error" not in theirs:
            ours = answers_here(drawn, drawn.plain)
            lines += compared(ours, theirs)
            if whole:  # nothing was said that changes results: so is the model itself, for one utterance
                states = {key: value for key, value in answers_here(drawn, drawn.nodes, single=True).items()
                          if key == "states"}  # fmt: skip
                lines += [f"as it is: {line}" for line in compared(states, theirs)]
            ids = [i for key, found in ours.items() if key.endswith("ids") for b in found for row in b for i in row]
            counts["ids"] += len(ids)
            seen.update(ids)
            counts["units"] += sum(len(row) for key, found in ours.items() if key.endswith("units")
                                   for b in found for row in b)  # fmt: skip
        faults += [f"{family} {seed}: {line}" for line in lines]
        shutil.rmtree(place)
    counts["different ids"] = len(seen)
    return faults, counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        answer(Path(args.answer))
        return 0
    failed = False
    for family in args.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            faults, counts = sweep(family, range(args.first, args.first + args.count), Path(folder))
        failed |= bool(faults)
        print(*faults, sep="\n", end="\n" if faults else "")
        print(f"{family}: {len(faults)} faults; " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
