"""`voxzoo units`: fit, extract, codes, resynthesise."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ...components.errors import UserError
from . import flags

HELP = "fit discrete units, write those of a corpus or its codec frames, and hear them again"
EXAMPLE = """voxzoo units fit train.tsv --column tgt_audio --out units --set unit_extractor.num_units=200
  voxzoo units extract units train.tsv --column tgt_audio --out train.units.jsonl
  voxzoo units codes runs/codec train.tsv --column tgt_audio --out train.codes.jsonl
  voxzoo units resynthesise runs/vocoder train.units.jsonl --out wavs --limit 10"""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="units_verb", metavar="fit|extract|codes|resynthesise", required=True)

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
    flags.column(fit)
    fit.add_argument("--max-hours", type=float, default=1.0, help="speech to fit on (default 1)")
    fit.add_argument("--seed", type=int, default=0)
    flags.device(fit)
    fit.add_argument("--encoder", metavar="RUN", help="cluster states of this run's speech encoder instead of log-mels")
    fit.add_argument("--layer", type=int, help="with --encoder: the output of this layer, counted from 1")

    extract = verbs.add_parser("extract", help="write the units of a manifest as JSON lines")
    extract.add_argument("extractor", help="a folder of `units fit`, or a run that holds a unit extractor")
    extract.add_argument("manifest", help="a manifest (TSV or JSONL)")
    extract.add_argument("--out", required=True, metavar="FILE", help="the JSONL file to write")
    flags.column(extract)
    flags.device(extract)
    extract.add_argument("--batch-seconds", type=float, default=20.0, help="audio in a batch (default 20)")

    codes = verbs.add_parser("codes", help="write the codec frames of a manifest, compactly")
    codes.add_argument("codec", help="a run that holds a codec")
    codes.add_argument("manifest", help="a manifest (TSV or JSONL)")
    codes.add_argument("--out", required=True, metavar="FILE", help="the JSONL file to write")
    codes.add_argument("--num-codebooks", type=int, metavar="K", help="the first K streams (default: all)")
    flags.column(codes)
    flags.device(codes)
    codes.add_argument("--batch-seconds", type=float, default=20.0, help="audio in a batch (default 20)")

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
    flags.device(again)


def run(args: argparse.Namespace) -> dict:
    result = {"fit": _fit, "extract": _extract, "codes": _codes, "resynthesise": _resynthesise}[args.units_verb](args)
    if not args.json:
        for name, value in result.items():
            if name not in ("status", "files"):
                print(f"{name}: {value}")
    return {"status": "ok", **result}


def _fit(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import read_manifest
    from ..distributed.devices import pick_device  # torch loads only for the work, not for --help
    from ..runs.unit_extractors import new_extractor, save_extractor
    from ..units import fit_units

    if args.layer is not None and not args.encoder:
        raise UserError("--layer chooses a layer of an encoder: give --encoder RUN as well")
    device = pick_device(args.device)
    extractor, config = new_extractor(args.overrides, args.encoder, args.layer)
    extractor.to(device)
    statistics = fit_units(
        extractor, read_manifest(args.manifest), args.column, args.max_hours, args.seed, Bar("fitting units", "h")
    )
    save_extractor(extractor, config, args.out)
    return {"extractor": str(args.out), **statistics}


def _extract(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import read_manifest
    from ..distributed.devices import pick_device
    from ..runs.unit_extractors import load_extractor
    from ..units import extract_units

    device = pick_device(args.device)
    extractor = load_extractor(args.extractor).to(device)
    bar = Bar("extracting", "rows")
    return extract_units(extractor, read_manifest(args.manifest), args.column, args.out, bar, args.batch_seconds)


def _codes(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import read_manifest
    from ..distributed.devices import pick_device
    from ..runs.codecs import load_codec
    from ..units import extract_codes

    device = pick_device(args.device)
    codec, bar = load_codec(args.codec).to(device), Bar("coding", "rows")
    rows = read_manifest(args.manifest)
    return extract_codes(codec, rows, args.column, args.out, args.num_codebooks, bar, args.batch_seconds)


def _resynthesise(args: argparse.Namespace) -> dict[str, Any]:
    from ..serving.resynthesis import resynthesise

    return resynthesise(
        args.run,
        args.units,
        args.out,
        limit=args.limit,
        predict_durations=args.predict_durations,
        speaker=args.speaker,
        lang=args.lang,
        batch_size=args.batch_size,
        device=args.device,
        progress=Bar("resynthesising", "rows"),
    )


class Bar:
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
