"""`voxzoo codec`: what a codec loses at each bandwidth."""

from __future__ import annotations

import argparse

HELP = "the rate-distortion table of a trained or imported codec"
EXAMPLE = "voxzoo codec runs/train_codec test.tsv --codebooks 1 2 4 8 --limit 50"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder or checkpoint with a codec")
    parser.add_argument("manifest", help="a manifest (TSV or JSONL)")
    parser.add_argument(
        "--codebooks", type=int, nargs="+", default=[], metavar="K", help="how many (default: 1 2 4 ... up to all)"
    )
    parser.add_argument(
        "--column", choices=("tgt_audio", "audio"), default="tgt_audio", help="which speech (tgt_audio)"
    )
    parser.add_argument("--limit", type=int, help="only the first so many utterances")
    parser.add_argument(
        "--recogniser", metavar="NAME", help="also word error rates by this recogniser, such as tiny (extra `eval`)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> dict:
    from ...datamodules.manifest import read_manifest
    from ..serving.rates import rates
    from .units import Bar

    found = rates(
        args.run,
        read_manifest(args.manifest),
        codebooks=args.codebooks,
        column=args.column,
        limit=args.limit,
        recogniser=args.recogniser,
        device=args.device,
        progress=Bar("coding", "rows"),
    )
    if not args.json:
        print("codebooks   kbps    mel" + ("    WER" if args.recogniser else ""))
        for row in found["rows"]:
            wer = f"{row['wer']:7.2f}" if "wer" in row else ""
            print(f"{row['codebooks']:9d} {row['kbps']:6.2f} {row['mel']:6.3f}{wer}")
        if "wer_of_recordings" in found:
            print(f"recordings                {found['wer_of_recordings']:7.2f}  ({found['recogniser']})")
        print("entries in use: " + ", ".join(f"{share:.0%}" for share in found["use"]))
        for line in found["notes"]:
            print(f"note: {line}")
    return {"status": "ok", **found}
