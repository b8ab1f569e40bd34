"""`voxzoo consolidate`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make one file of each checkpoint that was written in shards (trainer.strategy.sharded_checkpoints=true)"
EXAMPLE = "voxzoo consolidate runs/seamless"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, all its checkpoints; or one checkpoint")
    parser.add_argument(
        "--out", metavar="FILE", help="write the best checkpoint of the run here (default: replace all in place)"
    )


def run(args: argparse.Namespace) -> dict:
    from ..runs.consolidate import consolidate

    out = None if args.out is None else Path(args.out)
    written = consolidate(Path(args.run), out)
    if not args.json:
        for path in written:
            print(f"done: {path}")
        if not written:
            print(f"{args.run}: nothing is in shards")
    return {"status": "ok", "files": [str(path) for path in written]}
