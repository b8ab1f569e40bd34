"""`voxzoo codec`: what a codec loses at each bandwidth."""

from __future__ import annotations

import argparse

from ..serving.choices import QUALITIES, RECOGNISERS
from . import flags

HELP = "the rate-distortion table of a trained or imported codec"
EXAMPLE = "voxzoo codec runs/train_codec --split test_unseen --recogniser base --limit 50"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder or checkpoint with a codec")
    parser.add_argument("manifest", nargs="?", help="a manifest (TSV or JSONL); without: the run's own data")
    parser.add_argument("--split", default="test", help="name of the split in the run's data (default test)")
    parser.add_argument(
        "--codebooks", type=int, nargs="+", default=[], metavar="K", help="how many (default: 1 2 4 ... up to all)"
    )
    flags.column(parser)
    parser.add_argument("--limit", type=int, help="only the first so many utterances")
    parser.add_argument(
        "--recogniser",
        choices=RECOGNISERS,
        default="none",
        help="also word error rates by this Whisper model: base, or tiny.en (default: none)",
    )
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default="all",
        help="how near the voice stays to the recording's: all (default) measures it where resemblyzer is installed; "
        "none",
    )
    flags.device(parser)


def run(args: argparse.Namespace) -> dict:
    from ...datamodules.manifest import read_manifest
    from ..serving.rates import rates
    from .units import Bar

    found = rates(
        args.run,
        None if args.manifest is None else read_manifest(args.manifest),
        split=args.split,
        codebooks=args.codebooks,
        column=args.column,
        limit=args.limit,
        recogniser=None if args.recogniser == "none" else args.recogniser,
        quality=args.quality,
        device=args.device,
        progress=Bar("coding", "rows"),
    )
    if not args.json:
        _print(found)
    return {"status": "ok", **found}


def _print(found: dict) -> None:
    columns = {"codebooks": "codebooks", "kbps": "kbps", "mel": "mel", "wer": "WER"}
    form = {"codebooks": "9d", "kbps": "6.2f", "mel": "6.3f", "wer": "6.2f", "speaker_similarity": "6.3f"}
    rows = [dict(row) for row in found["rows"]]
    for lang in rows[0].get("wer_by_language", ()):
        columns[lang], form[lang] = f"WER {lang}", "8.2f"
        for row in rows:
            row[lang] = row["wer_by_language"][lang]
    columns["speaker_similarity"] = "voice"
    there = [name for name in columns if name in rows[0]]
    print(" ".join(f"{columns[name]:>{form[name].split('.')[0].rstrip('d')}}" for name in there))
    for row in rows:
        print(" ".join(f"{row[name]:{form[name]}}" for name in there))
    if "wer_of_recordings" in found:
        each = found.get("wer_of_recordings_by_language", {})
        apart = "".join(f", {lang} {rate:.2f}" for lang, rate in each.items())
        print(f"WER of the recordings {found['wer_of_recordings']:.2f}{apart} ({found['recogniser']})")
    if "speaker_similarity_control" in found:
        print(f"voice: cosine to the recording's; of another speaker's {found['speaker_similarity_control']:.3f}")
    print("entries in use: " + ", ".join(f"{share:.0%}" for share in found["use"]))
    print(f"perplexity of {found['codebook_size']}: " + ", ".join(f"{one:.0f}" for one in found["perplexity"]))
    for line in found["notes"]:
        print(f"note: {line}")
