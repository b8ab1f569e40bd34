"""`voxzoo distil`: targets, probabilities."""

from __future__ import annotations

import argparse

from . import flags

HELP = "write what a run says of a corpus, for other runs to learn from"
EXAMPLE = """voxzoo distil targets runs/mt --split train --out distilled.jsonl
  voxzoo distil probabilities runs/mt --split train --top 16 --out teacher"""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="distil_verb", metavar="targets|probabilities", required=True)
    targets = verbs.add_parser(
        "targets", help="a manifest whose target texts are the run's: sequence-level distillation"
    )
    _common(targets, "a run folder or a checkpoint; RUN+RUN: a cascade", "FILE", "the manifest to write")
    targets.add_argument(
        "--task", choices=("s2tt", "t2tt"), help="what is read (default: text, where the run reads it)"
    )
    flags.beam(targets)
    words = verbs.add_parser("probabilities", help="the most probable words of each token: task.teacher.stored=FOLDER")
    _common(words, "a run folder or a checkpoint", "FOLDER", "the folder to write")
    words.add_argument("--top", type=int, default=16, metavar="K", help="words of each token (default 16)")
    words.add_argument(
        "--reads", choices=("text", "speech"), help="what the run reads (default: text, where the run reads it)"
    )


def _common(parser: argparse.ArgumentParser, run: str, kind: str, out: str) -> None:
    parser.add_argument("run", metavar="RUN", help=run)
    parser.add_argument("--split", default="train", help="name of the split in the run's data (default train)")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="another corpus than the run's: a .jsonl or .tsv manifest, or '[a.jsonl,b.jsonl]'",
    )
    parser.add_argument("--out", required=True, metavar=kind, help=out)
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="utterances at a time (default 16)")
    flags.device(parser)


def run(args: argparse.Namespace) -> dict:
    from ...datamodules.manifest import of_a_split
    from ..serving.distillation import left_out_lines, write_probabilities, write_targets

    common = {
        "split": args.split, "manifest": None if args.manifest is None else of_a_split(args.manifest),
        "device": args.device, "batch_size": args.batch_size,
    }  # fmt: skip
    if args.distil_verb == "targets":
        answer = write_targets(args.run, args.out, task=args.task, beam=args.beam, **common)
        lines = [f"written: {answer['manifest']}, {answer['rows']} rows"]
        lines += [f"left out: {len(answer['empty'])} rows of which nothing was written"] if answer["empty"] else []
    else:
        answer = write_probabilities(args.run, args.out, reads=args.reads, top=args.top, **common)
        size = f"{answer['bytes'] / 1e6:.1f} MB"
        lines = [f"written: {answer['folder']}, {answer['words']} words of {answer['tokens']} tokens, {size}"]
    if not args.json:
        for line in (*lines, *left_out_lines(answer["left_out"])):
            print(line)
    return answer
