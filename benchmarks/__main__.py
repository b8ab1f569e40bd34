"""All paths: `python -m benchmarks` prints the table; `--save` appends the run to the history, `--out FILE` writes
everything as JSON.

`python -m benchmarks history` says what moved since the runs before, `table` renders the table of its page from
the history, `scale` measures what grows with the size of data and models, and `plan` compares the memory that `voxzoo
check` plans with a measured peak.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from .harness.case import Unequal
from .harness.compare import run_path
from .harness.machine import elsewhere, without_isa
from .harness.options import arguments, options_of
from .harness.report import report

PATHS = (
    "speech_encoder",
    "s2tt_training",
    "text_beam",
    "s2tt_beam",
    "s2st",
    "vocoder",
    "speech_lm",
    "codec",
    "hubert",
    "whisper",
)
VERBS = {"plan": ".plan", "history": ".harness.history", "table": ".harness.page", "scale": ".scale"}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in VERBS:
        return importlib.import_module(VERBS[words[0]], __package__).main(words[1:])
    parser = arguments(__doc__ or "")
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)} (default: all)")
    args = parser.parse_args(words)
    unknown = sorted(set(args.paths) - set(PATHS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such path; there are {', '.join(PATHS)}")
    if args.isa:
        return elsewhere(args.isa, "benchmarks", without_isa(words))
    options = options_of(args)
    results, errors = [], []
    # A new process for each: what one path leaves in the allocator makes the next up to twice as fast or slow, on
    # either side.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for path in args.paths or PATHS:
            try:
                results += processes.submit(run_path, path, options).result()
            except Unequal as error:  # the others are still worth knowing
                errors.append(str(error))
                print(error, file=sys.stderr, flush=True)
    return report(results, options, args.out, errors, save=args.save and not errors)


if __name__ == "__main__":
    sys.exit(main())
