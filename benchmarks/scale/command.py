"""What grows with the size of data and models, and by which law: `python -m benchmarks scale`.

    python -m benchmarks scale                # all rows at small sizes
    python -m benchmarks scale score load     # some of them
    python -m benchmarks scale start --full   # up to the size that the aims are for: minutes and gigabytes

Each row is measured at three sizes, each the same factor above the one before, in processes of their own with one
thread: CPU seconds, which hold on a busy machine, and memory that is a process's own. From the differences comes the
exponent, and from the law what is to be expected at the size of the aims.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import data, models, scoring, startup, sweep
from .law import law
from .row import Row

ROWS = {row.name: row for module in (models, data, scoring, startup, sweep) for row in module.ROWS}
_ELSEWHERE = "G13 the demo: `make demo` prints its own times."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--full", action="store_true", help="up to the size that the aims are for")
    parser.add_argument("--sizes", type=_sizes, metavar="N,N,N", help="sizes of one row instead of its own")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    parser.add_argument("--out", "--json", type=Path, dest="out", help="write everything there as JSON")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.rows) - set(ROWS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such row; there are {', '.join(ROWS)}")
    if args.sizes and len(args.rows) != 1:
        parser.error("--sizes are those of one row: name it")
    found, failed = {}, []
    for name in args.rows or ROWS:
        row = ROWS[name]
        try:
            found[name] = measure(row, args.sizes or (row.full if args.full else row.sizes), args.folder)
        except RuntimeError as error:  # the others are still worth knowing
            failed.append(f"{row.what}: {error}")
            print(failed[-1], file=sys.stderr, flush=True)
            continue
        print("\n".join(lines(row, found[name])), flush=True)
    if not args.rows:
        print(_ELSEWHERE)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rows": found, "failed": failed}, indent=1))
    return 1 if failed else 0


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def measure(row: Row, sizes: Sequence[int], within: Path | None = None) -> dict[str, Any]:
    """Costs of a row at each size, and what follows from them."""
    costs = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix=f"{row.name}-", dir=within) as folder:
            costs.append(dict(row.measure(size, Path(folder))))
    quantities = {}
    for name in costs[0]:
        values = [cost[name] for cost in costs]
        quantity: dict[str, Any] = {"values": values, "aim": (row.aims or {}).get(name)}
        if len(sizes) == 3:
            found = law(sizes, values)
            quantity |= {"law": str(found), "expected": found.at(row.target)}
            if sizes[-1] == row.target:
                quantity["expected"] = values[-1]
        elif sizes[-1] == row.target:
            quantity["expected"] = values[-1]
        quantities[name] = quantity
    return {"what": row.what, "unit": row.unit, "sizes": list(sizes), "target": row.target, "quantities": quantities}


def lines(row: Row, found: dict[str, Any]) -> list[str]:
    """A row for people."""
    sizes = found["sizes"]
    of = f" ({', '.join(f'{size:,}' for size in sizes)} {row.unit})" if row.unit else ""
    said = [f"{row.what}{of}"]
    for name, quantity in found["quantities"].items():
        line = f"  {name}: {', '.join(_short(value) for value in quantity['values'])}"
        if "law" in quantity:
            line += f"; {quantity['law']}"
        expected = quantity.get("expected")
        if "law" in quantity and expected is not None and sizes[-1] != row.target:
            line += f", {_short(expected)} expected at {row.target:,}"
        if quantity["aim"] is not None:
            line += f"; aim {quantity['aim']:g}"
            if expected is not None and expected > quantity["aim"]:
                line += "  <-- more than that"
        said.append(line)
    return said


def _short(value: float) -> str:
    if value == math.inf:
        return "out of memory"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
