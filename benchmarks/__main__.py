"""All paths: `python -m benchmarks` prints the README's table; `--out FILE` writes everything as JSON."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .harness import Unequal, arguments, options_of, report, run

PATHS = ("speech_encoder", "s2tt_training", "text_beam", "s2tt_beam", "s2st", "vocoder", "hubert")


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)} (default: all)")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.paths) - set(PATHS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such path; there are {', '.join(PATHS)}")
    options = options_of(args)
    results, errors = [], []
    for path in args.paths or PATHS:
        module = importlib.import_module(f".{path}", __package__)
        try:
            results += run(path, module.cases, options)
        except Unequal as error:  # the others are still worth knowing
            errors.append(str(error))
            print(error, file=sys.stderr, flush=True)
    return report(results, options, args.out, errors)


if __name__ == "__main__":
    sys.exit(main())
