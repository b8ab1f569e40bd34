"""`voxzoo units`: fit, extract, resynthesise."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from omegaconf import OmegaConf

from ...components.errors import UserError
from ...components.layers.runs import reduce_runs
from ...components.types import Padded
from ...configs.build import build
from ...configs.check import require_valid
from ...configs.compose import compose
from ...configs.targets import allow_list
from ...datamodules.manifest import read_manifest
from ..distributed.devices import pick_device
from ..runs.initial import load_pretrained_encoder
from ..runs.run import load_run
from ..runs.unit_extractors import load_extractor, save_extractor
from ..units import BATCH_SECONDS, card_of, card_path, extract_units, fit_units, read_units

HELP = "fit discrete units, write those of a corpus, and hear them again"
EXAMPLE = """voxzoo units fit train.tsv --column tgt_audio --out units --set unit_extractor.num_units=200
  voxzoo units extract units train.tsv --column tgt_audio --out train.units.jsonl
  voxzoo units resynthesise runs/vocoder train.units.jsonl --out wavs --limit 10"""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="units_verb", metavar="fit|extract|resynthesise", required=True)

    fit = verbs.add_parser("fit", help="fit the clusters on the speech of a manifest")
    fit.add_argument("manifest", help="a manifest (TSV or JSONL)")
    # Not positional: argparse takes no second group of positionals after an option.
    fit.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="config overrides, such as unit_extractor.num_units=200",
    )
    fit.add_argument("--out", required=True, metavar="FOLDER", help="where the extractor goes")
    _column(fit)
    fit.add_argument("--max-hours", type=float, default=1.0, help="speech to fit on (default 1)")
    fit.add_argument("--seed", type=int, default=0)
    _device(fit)
    fit.add_argument("--encoder", metavar="RUN", help="cluster states of this run's speech encoder instead of log-mels")
    fit.add_argument("--layer", type=int, help="with --encoder: the output of this layer, counted from 1")

    extract = verbs.add_parser("extract", help="write the units of a manifest as JSON lines")
    extract.add_argument("extractor", help="a folder of `units fit`, or a run that holds a unit extractor")
    extract.add_argument("manifest", help="a manifest (TSV or JSONL)")
    extract.add_argument("--out", required=True, metavar="FILE", help="the JSONL file to write")
    _column(extract)
    _device(extract)
    extract.add_argument("--batch-seconds", type=float, default=BATCH_SECONDS, help="audio in a batch (default 20)")

    again = verbs.add_parser("resynthesise", help="units to audio files through a run's vocoder")
    again.add_argument("run", metavar="RUN", help="a run folder or checkpoint with a vocoder")
    again.add_argument("units", help="a JSONL file of units, one per frame")
    again.add_argument("--out", required=True, metavar="FOLDER", help="where the wav files go")
    again.add_argument("--limit", type=int, help="only the first so many")
    again.add_argument(
        "--predict-durations", action="store_true", help="merge runs and let the vocoder say how long each unit lasts"
    )
    again.add_argument("--speaker", type=int, help="speaker index, for a vocoder of several")
    again.add_argument("--lang", type=int, help="language index, for a vocoder of several")
    again.add_argument("--batch-size", type=int, default=8)
    _device(again)


def _column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column", choices=("tgt_audio", "audio"), default="tgt_audio", help="which speech (tgt_audio)"
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> dict:
    result = {"fit": _fit, "extract": _extract, "resynthesise": _resynthesise}[args.units_verb](args)
    if not args.json:
        for name, value in result.items():
            if name not in ("status", "files"):
                print(f"{name}: {value}")
    return {"status": "ok", **result}


def _fit(args: argparse.Namespace) -> dict[str, Any]:
    if args.layer is not None and not args.encoder:
        raise UserError("--layer chooses a layer of an encoder: give --encoder RUN as well")
    device = pick_device(args.device)
    extractor, config = _new_extractor(args)
    extractor.to(device)
    statistics = fit_units(
        extractor, read_manifest(args.manifest), args.column, args.max_hours, args.seed, _Bar("fitting units", "h")
    )
    save_extractor(extractor, config, args.out)
    return {"extractor": str(args.out), **statistics}


def _new_extractor(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The extractor that the options describe, not fitted, and the config to build it again from."""
    choice = [] if any(word.startswith("unit_extractor=") for word in args.overrides) else ["unit_extractor=log_mel"]
    composed = compose([*choice, *args.overrides])
    source = None
    if args.encoder:
        source = load_run(args.encoder)
        if getattr(source.task, "speech_encoder", None) is None:
            raise UserError(f"--encoder {args.encoder}: this run has no speech encoder")
        OmegaConf.set_struct(composed, False)
        composed.speech_encoder = OmegaConf.create(OmegaConf.to_container(source.config.speech_encoder, resolve=True))
        composed.frontend = OmegaConf.create(OmegaConf.to_container(source.config.frontend, resolve=True))
        composed.unit_extractor.update(
            features="encoder", encoder=composed.speech_encoder, frontend=composed.frontend, layer=args.layer
        )
    require_valid(composed)
    config = OmegaConf.to_container(composed.unit_extractor, resolve=True)
    assert isinstance(config, dict)
    if config.get("_target_") is None:
        raise UserError("unit_extractor=none: there is nothing to fit")
    extractor = build(config, allowed=allow_list(composed))
    if source is not None:
        extractor.encoder.load_state_dict(source.task.speech_encoder.state_dict())  # pyright: ignore
    else:
        for line in load_pretrained_encoder(extractor, composed):
            print(line, file=sys.stderr)
    return extractor.eval(), {str(key): value for key, value in config.items()}


def _extract(args: argparse.Namespace) -> dict[str, Any]:
    device = pick_device(args.device)
    extractor = load_extractor(args.extractor).to(device)
    bar = _Bar("extracting", "rows")
    return extract_units(extractor, read_manifest(args.manifest), args.column, args.out, bar, args.batch_seconds)


@torch.inference_mode()
def _resynthesise(args: argparse.Namespace) -> dict[str, Any]:
    device = pick_device(args.device)
    task = load_run(args.run, device=args.device).task
    vocoder = getattr(task, "vocoder", None)
    if vocoder is None:
        raise UserError(f"{args.run}: this run has no vocoder")
    _same_card(Path(args.units), getattr(task, "unit_extractor", None), args.run)
    rows = list(read_units(args.units))[: args.limit]
    if not rows:
        raise UserError(f"{args.units}: no units in it")
    for name, units in rows:
        if units and max(units) >= vocoder.num_units:
            raise UserError(
                f"{args.units}: {name} has unit {max(units)}, but the vocoder knows 0 to {vocoder.num_units - 1}"
            )
    empty = [name for name, units in rows if not units]
    rows = [(name, units) for name, units in rows if units]
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    bar, files, seconds = _Bar("resynthesising", "rows"), [], 0.0
    for start in range(0, len(rows), args.batch_size):
        chunk = rows[start : start + args.batch_size]
        units = Padded.from_list([torch.tensor(row) for _, row in chunk]).to(device)
        durations = None if args.predict_durations else units.with_data(torch.ones_like(units.data)).zeroed()
        if args.predict_durations:
            units, _ = reduce_runs(units)
        conditions = [
            None if v is None else torch.full((len(chunk),), v, device=device) for v in (args.lang, args.speaker)
        ]
        try:
            audio = vocoder(units, *conditions, durations=durations)
        except (ValueError, IndexError) as error:
            raise UserError(f"{args.run}: {error} (see --speaker and --lang)") from error
        for (name, _), samples in zip(chunk, audio.unpad(), strict=True):
            files.append(_write(folder, name, samples, vocoder.sample_rate))
            seconds += len(samples) / vocoder.sample_rate
        bar(start + len(chunk), len(rows))
    return {
        "folder": str(folder),
        "utterances": len(files),
        "seconds": round(seconds, 2),
        "empty": empty,
        "files": files,
    }


def _same_card(units: Path, extractor: Any, run: str) -> None:
    beside = card_path(units)
    if extractor is None or not beside.exists():
        return
    theirs, ours = json.loads(beside.read_text("utf-8")), card_of(extractor)
    if theirs != ours:
        differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        raise UserError(
            f"{units}: these units are not those that the vocoder of {run} was trained on; their cards differ in "
            f"{', '.join(differing)}. Extract them with that run: `voxzoo units extract {run} MANIFEST --out {units}`"
        )


def _write(folder: Path, name: str, samples: torch.Tensor, sample_rate: int) -> str:
    path = folder / (name.replace("/", "_").replace("\\", "_") + ".wav")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    soundfile.write(temporary, samples.float().cpu().numpy(), sample_rate, format="WAV", subtype="PCM_16")
    os.replace(temporary, path)
    return str(path)


class _Bar:
    """How far it is: one line that moves on a terminal, a line every few seconds elsewhere."""

    def __init__(self, what: str, unit: str):
        self.what, self.unit, self.said = what, unit, time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        live, now = sys.stderr.isatty(), time.monotonic()
        if now - self.said < (0.1 if live else 10) and done < total:
            return
        self.said = now
        end = "\r" if live and done < total else "\n"
        print(f"{self.what}: {done:.4g} of {total:.4g} {self.unit}", end=end, file=sys.stderr, flush=True)
