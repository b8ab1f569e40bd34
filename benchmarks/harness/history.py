"""The history of the benchmarks: one JSON line a run in a kept file, and what moved between them.

    python -m benchmarks history

compares, for each kind of machine, the last line with those before it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .machine import commit, machine, versions
from .options import Options

FILE = Path(__file__).parents[1] / "history.jsonl"
_NOISE = 0.1  # of a ratio: what two runs of one commit differ by where the rounds of one do not show it
_CLOCKS = ("wall", "cpu")

Key = tuple[str, str, str]
"""Path, case and peer."""


def line_of(rows: Sequence[dict[str, Any]], options: Options) -> dict[str, Any]:
    """A run as a line of the history."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(options.threads, options.device, options.dtype),
        "versions": versions(),
        "rounds": options.rounds,
        "packed": options.pack,
        "weights": "published" if options.whisper else "random",
        "rows": [_kept(row) for row in rows],
    }


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """What the history keeps of a row; ratios as [median, min, max]."""
    kept = {key: row[key] for key in ("path", "case", "peer", "least", "aim", "unit") if row.get(key) is not None}
    if row.get("note"):
        kept["note"] = row["note"]
    if "ratio" not in row:
        return kept
    for clock in _CLOCKS:
        kept[clock] = [round(row["ratio"][clock][key], 4) for key in ("median", "min", "max")]
    kept["rate"] = {side: _digits(row["amount"] / row["seconds"][side]["wall"]) for side in ("peer", "ours")}
    if row["limit"]:
        kept["limit"] = {key: _digits(value) for key, value in row["limit"].items()}
    if row.get("memory_bytes"):
        kept["memory"] = row["memory_bytes"]
    kept |= {key: _digits(row[key]) for key in ("difference", "equal") if key in row}
    return kept


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def append(file: Path, line: dict[str, Any]) -> None:
    """Add a line at the end of the file."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """All lines, oldest first; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def kinds(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Lines by kind of machine, under a name that says what the kind is."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(kind_of(line["machine"]), []).append(line)
    return found


def kind_of(machine: dict[str, Any]) -> str:
    """The name of a kind of machine."""
    threads = f"{machine['threads']} of {machine['cores']} cores"
    kept = ", kept to it" if machine["isa"] else ""
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    return f"{gpu}{machine['cpu']} ({machine['capability']}{kept}), {threads}, {machine['dtype']}"


def clock_of_line(line: dict[str, Any]) -> str:
    """As `report.clock_of`."""
    return "cpu" if line["machine"]["threads"] == 1 and not line["machine"].get("gpu") else "wall"


@dataclass(frozen=True)
class Move:
    """A row then and now.

    Attributes:
        before, now: the ratio, median of a run; `before` is that of the last run that had the row. None: not there.
        low, high: between which the ratio was in all rounds of all earlier runs, and at least `_NOISE` to either side.
        share_before, share_now: of the limit of the machine.
    """

    key: Key
    before: float | None
    now: float | None
    low: float = 0.0
    high: float = 0.0
    share_before: float | None = None
    share_now: float | None = None

    @property
    def change(self) -> float | None:
        """Relative."""
        return self.now / self.before - 1 if self.before and self.now else None

    @property
    def flagged(self) -> bool:
        """Whether it moved beyond what the earlier runs vary by."""
        return self.before is not None and self.now is not None and not self.low <= self.now <= self.high


def moves(lines: Sequence[dict[str, Any]]) -> list[Move]:
    """What moved between the last of the lines, all of one kind of machine, and those before it."""
    *earlier, last = lines
    clock = clock_of_line(last)
    then: dict[Key, list[dict[str, Any]]] = {}
    for line in earlier:
        for row in line["rows"]:
            if clock in row:
                then.setdefault(_key(row), []).append(row)
    now = {_key(row): row for row in last["rows"] if clock in row}
    return [_move(key, then.get(key, []), now.get(key), clock) for key in dict.fromkeys([*now, *then])]


def _key(row: dict[str, Any]) -> Key:
    return row["path"], row["case"], row["peer"]


def _move(key: Key, then: Sequence[dict[str, Any]], now: dict[str, Any] | None, clock: str) -> Move:
    value, share = (now[clock][0], now.get("limit", {}).get("share")) if now else (None, None)
    if not then:
        return Move(key, None, value, share_now=share)
    before = then[-1][clock][0]
    low, high = min(row[clock][1] for row in then), max(row[clock][2] for row in then)
    low, high = min(low, before * (1 - _NOISE)), max(high, before * (1 + _NOISE))
    return Move(key, before, value, low, high, then[-1].get("limit", {}).get("share"), share)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks history`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=FILE, help="default: the kept file of the repository")
    parser.add_argument("--moved", action="store_true", help="only what moved beyond the noise")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    found = kinds(read(args.file))
    if not found:
        print(f"{args.file}: no run kept yet; `python -m benchmarks --save` keeps one")
        return 0
    if args.json:
        print(json.dumps({kind: [_as_dict(move) for move in moves(lines)] for kind, lines in found.items()}, indent=1))
        return 0
    for kind, lines in found.items():
        print(f"{kind}: {len(lines)} run{'s' * (len(lines) != 1)}, last {lines[-1]['date']} at {lines[-1]['commit']}")
        shown = [move for move in moves(lines) if move.flagged or not args.moved]
        if len(lines) == 1:
            print("  nothing to compare with yet\n")
            continue
        for move in shown:
            print(f"  {_said(move)}")
        print(f"  {sum(move.flagged for move in shown)} of {len(shown)} moved beyond the noise\n")
    return 0


def _as_dict(move: Move) -> dict[str, Any]:
    return {**vars(move), "change": move.change, "flagged": move.flagged}


def _said(move: Move) -> str:
    path, case, peer = move.key
    name = f"{path}, {case}, {peer}:"
    if move.before is None or move.now is None:
        return f"{name} {'new' if move.now else 'gone'}, {move.now or move.before:.2f}"
    share = ""
    if move.share_before and move.share_now:
        share = f"; of the limit {move.share_before:.2f} -> {move.share_now:.2f}"
    flag = f"  <-- outside {move.low:.2f} to {move.high:.2f}" if move.flagged else ""
    return f"{name} {move.before:.2f} -> {move.now:.2f} ({move.change:+.0%}){share}{flag}"
