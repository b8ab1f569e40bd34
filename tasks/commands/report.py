"""`voxzoo report`"""

from __future__ import annotations

import argparse

from ..serving.choices import EVALUATED

HELP = "one HTML page of runs and other systems' output: scores, curves, groups, examples, sounds, a blind comparison"
EXAMPLE = "voxzoo report small=runs/small large=runs/large --hypotheses theirs.tsv --references test.jsonl"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a folder of a run that `voxzoo evaluate` has scored, or that it wrote into (--out); NAME=RUN gives it a "
        "name, and several of one name are the seeds of one system",
    )
    parser.add_argument(
        "--hypotheses",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="output of other systems, as for score: plain text, .tsv or .jsonl; also NAME=FILE",
    )
    parser.add_argument(
        "--references",
        metavar="FILE",
        help="what is right, by id (plain text: by line); a manifest also gives the fields of groups, and audio "
        "(default: what the rows hold, and the manifest that was evaluated)",
    )
    parser.add_argument("--split", help="of the runs (default: the only one that was scored, or test)")
    parser.add_argument("--task", choices=EVALUATED, help="one of several tasks (default: the first of a run)")
    parser.add_argument("--lang", help="ISO 639-3 code of the text, where no row says (default eng)")
    parser.add_argument("--base", metavar="NAME", help="the system that others are compared with (default: the first)")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="utterances that can be heard (default 12)")
    parser.add_argument("--title", help="of the page (default: the names of the systems)")
    parser.add_argument("--out", default="page.html", metavar="FILE", help="where the page goes (default page.html)")


def run(args: argparse.Namespace) -> dict:
    from ..ablation.report import report, show

    answer = report(
        args.runs,
        args.hypotheses,
        out=args.out,
        references=args.references,
        split=args.split,
        task=args.task,
        lang=args.lang,
        base=args.base,
        clips=args.clips,
        title=args.title,
    )
    if not args.json:
        show(answer)
    return answer
