"""The table of benchmarks/README.md, out of the history: no number in it is typed.

    python -m benchmarks table            # prints it
    python -m benchmarks table --write    # puts it between the marks in benchmarks/README.md

Columns of both kinds of processor come from runs of one machine, with and without `--isa avx2`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .case import PEER
from .history import FILE, Key, clock_of_line, kinds, read

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- benchmarks table: written by `python -m benchmarks table --write` -->", "<!-- end of the table -->"


def newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each kind of machine like the newest (same processor, cores, threads and dtype), the fastest kind
    first. A run of some paths alone is passed over where there is one of more."""
    if not lines:
        return []

    def alike(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line["machine"].get(key) for key in ("cpu", "cores", "threads", "gpu", "dtype"))

    like = [line for line in lines if alike(line) == alike(lines[-1])]
    # max takes the first of equals: the newest.
    found = [max(reversed(same), key=lambda line: len(_paths(line))) for same in kinds(like).values()]
    return sorted(found, key=lambda line: line["machine"]["isa"] is not None)


def _paths(line: dict[str, Any]) -> set[str]:
    return {row["path"] for row in line["rows"]}


def render(lines: Sequence[dict[str, Any]]) -> str:
    """The table and what it was measured with, as Markdown; a sentence where there is no history."""
    shown = newest(lines)
    if not shown:
        return "No run has been kept yet: `python -m benchmarks --save`."
    names = [line["machine"]["capability"] for line in shown]
    head = ["path", "workload", "beside"]
    head += [f"faster, {name} (min - max)" for name in names]
    head += ["aim", *(f"of the limit, {name}" for name in names), "memory, of the peer's", "equal to"]
    table: dict[Key, list[dict[str, Any] | None]] = {}
    for place, line in enumerate(shown):
        for row in line["rows"]:
            key = (row["path"], row["case"], row["peer"])
            table.setdefault(key, [None] * len(shown))[place] = row
    clocks = [clock_of_line(line) for line in shown]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows += ["| " + " | ".join(_cells(key, found, clocks)) + " |" for key, found in table.items()]
    return "\n".join([_about(shown), "", *rows])


def _about(shown: Sequence[dict[str, Any]]) -> str:
    first = shown[0]
    machine, versions = first["machine"], first["versions"]
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "voxzoo")
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)} of {machine['cores']} cores"
    kinds = "; ".join(
        f"{line['machine']['capability']}{' (the same processor kept to it)' if line['machine']['isa'] else ''}: "
        f"commit {line['commit']}, {line['date'][:10]}, {line['rounds']} round{'s' * (line['rounds'] != 1)}"
        for line in shown
    )
    return f"{machine['cpu']}, {threads}, {machine['dtype']}; {used}. {kinds}."


def _cells(key: Key, found: Sequence[dict[str, Any] | None], clocks: Sequence[str]) -> list[str]:
    path, case, peer = key
    some = next(row for row in found if row)
    ratios = [_ratio(row, clock) for row, clock in zip(found, clocks, strict=True)]
    shares = [_share(row) if peer == PEER else "" for row in found]
    aim = str(some["least"]) + (f" ({some['aim']})" if some.get("aim") else "") if "least" in some else ""
    aim = aim or str(some.get("aim", ""))
    memory, saved = some.get("memory"), ""
    if memory:
        ours, theirs = memory["ours"] / 1e6, memory["peer"] / 1e6
        saved = f"{ours:.0f} of {theirs:.0f} MB ({ours / max(theirs, 1e-6):.2f})"
    equal = f"{some['difference']:.0e}" if "difference" in some else ""
    if "equal" in some:
        equal = "the same" if some["equal"] == 1 else f"{some['equal']:.0%}"
    return [path.replace("_", " "), case, peer, *ratios, aim, *shares, saved, equal]


def _ratio(row: dict[str, Any] | None, clock: str) -> str:
    if row is None:
        return ""
    if clock not in row:
        return f"not run: {row.get('note', '')}"
    median, low, high = row[clock]
    return f"**{median:.2f}** ({low:.2f} - {high:.2f})"


def _share(row: dict[str, Any] | None) -> str:
    if row is None or "limit" not in row:
        return ""
    return f"{row['limit']['share']:.2f}"


def replaced(text: str, table: str) -> str:
    """A page with the table between its marks. Raises ValueError where it has none."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no place for the table: a line {BEGIN} and below it {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", text, count=1)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks table`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=FILE, help="default: the kept file of the repository")
    parser.add_argument("--write", action="store_true", help="into the page instead of printing")
    args = parser.parse_args(argv)
    table = render(read(args.file))
    if not args.write:
        print(table)
        return 0
    try:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    except ValueError as error:
        print(f"{PAGE}: {error}", file=sys.stderr)
        return 1
    print(PAGE.relative_to(ROOT))
    return 0
