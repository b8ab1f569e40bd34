"""`voxzoo translate`"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ...components.errors import printable
from ...components.lines import json_line
from ..serving.choices import TRANSLATED
from . import flags

HELP = "translate audio files, folders or text with a trained run"
EXAMPLE = "voxzoo translate runs/quickstart recordings/ --task s2st --to eng --out translated"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="audio files or folders of them; for t2tt and t2st text files, one sentence a line; - reads standard "
        "input: a path a line for speech, a sentence a line for text",
    )
    parser.add_argument("--task", choices=TRANSLATED, required=True, help="what to do with the inputs")
    parser.add_argument(
        "--to", required=True, metavar="LANG", help="ISO 639-3 code to translate into; what is spoken, for asr"
    )
    parser.add_argument("--from", dest="source", metavar="LANG", help="ISO 639-3 code of the input; needed for text")
    flags.device(parser)
    flags.precision(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the audio of s2st and t2st")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="segments at a time (default 8)")
    flags.beam(parser)
    parser.add_argument(
        "--segment",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="longer audio is cut at quiet places into pieces of at most this length (default 30)",
    )
    flags.verify(parser)


def run(args: argparse.Namespace) -> dict:
    from ..serving.translator import translate

    results, failures, served = [], [], 0
    for result in translate(
        args.run,
        args.inputs,
        args.task,
        args.to,
        source=args.source,
        out=args.out,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        beam=args.beam,
        segment=args.segment,
        verify=args.verify,
    ):
        if "error" in result:
            failures.append(result)
            print(printable(f"voxzoo translate: {result['input']}: {result['error']}"), file=sys.stderr, flush=True)
            continue
        served += 1
        if args.json:
            results.append(result)
        else:
            print(json_line(result), flush=True)
    answer: dict[str, Any] = {"status": "failed" if failures else "ok", "results": results, "failures": failures}
    if failures:
        rest = "; the others were" if served else ""
        answer["error"] = f"{len(failures)} of {served + len(failures)} inputs could not be served{rest}"
    return answer
