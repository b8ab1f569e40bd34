"""Cases of a path, one after another: compare, time in turns, look at memory and at the limit of the machine."""

from __future__ import annotations

import gc
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .case import OURS, PEER, Case, Other, Unequal, difference, equal_share
from .growth import peak_growth
from .limits import Limit, limit_of
from .machine import elsewhere, without_isa
from .memory import measure_apart, quiet
from .options import Options, arguments, options_of
from .report import clock_of, report

_LEAST_SECONDS = 1.0  # of one side in one round: a single run of 0.2 s is as much the machine's noise
_LOW_PRECISION = 0.5  # states of size 1 after many layers in bfloat16


@dataclass
class Result:
    """What a case gave; see `rows`.

    Attributes:
        difference: from transformers.
        rounds: for each turn, side -> clock -> seconds.
        equal: peer -> share of its results that are ours, see `equal_share`.
        memory: bytes, of transformers ("peer") and of ours.
        limit: of ours.
    """

    path: str
    case: Case
    difference: float
    tolerance: float
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    equal: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    limit: Limit | None = None

    def ratio(self, clock: str, peer: str = PEER) -> dict[str, float]:
        """Peer's time over ours, round by round: median, min, max."""
        ratios = [turn[peer][clock] / turn[OURS][clock] for turn in self.rounds]
        return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}

    def seconds(self, side: str) -> dict[str, float]:
        """Clock -> median over the rounds."""
        return {clock: statistics.median(turn[side][clock] for turn in self.rounds) for clock in ("wall", "cpu")}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each peer, transformers first."""
        case, ours = self.case, self.seconds(OURS)
        common = {
            "path": self.path,
            "case": case.name,
            "tolerance": self.tolerance,
            "amount": case.amount,
            "unit": case.unit,
            "limit": self.limit and self.limit.as_dict(ours["wall"]),
        }
        rows = [
            {
                **common,
                **self._times(PEER),
                "difference": self.difference,
                "least": case.least,
                "aim": case.aim,
                "memory_bytes": self.memory,
                "memory_ratio": self.memory["ours"] / max(self.memory["peer"], 1) if self.memory else None,
                "memory_aim": case.memory_aim,
            }
        ]
        for name, other in case.others.items():
            aim = case.others_aim if other.exact else None
            row = {**common, "peer": name, "note": other.note, "aim": aim}
            if other.run is not None:
                row |= {**self._times(name), "equal": self.equal[name]}
            rows.append(row)
        return rows

    def _times(self, peer: str) -> dict[str, Any]:
        return {
            "peer": peer,
            "seconds": {"peer": self.seconds(peer), "ours": self.seconds(OURS)},
            "ratio": {clock: self.ratio(clock, peer) for clock in ("wall", "cpu")},
            "rounds": [{"peer": turn[peer], "ours": turn[OURS]} for turn in self.rounds],
        }


def measure(path: str, case: Case, options: Options, memory: dict[str, float] | None = None) -> Result:
    """Compare, then time in turns, then look at memory and at the limit.

    Args:
        memory: side -> bytes, where another process has measured it.

    Raises:
        Unequal: the outputs differ by more than the case's tolerance.
    """
    precise = options.dtype == "float32"
    tolerance = case.tolerance if precise else _LOW_PRECISION
    run_peer, run_ours = case.check or (case.peer, case.ours)
    ours = run_ours()
    gap = difference(run_peer(), ours, precise)
    if not gap <= tolerance:
        raise Unequal(f"{path}, {case.name}: outputs differ by {gap:.3g}, allowed {tolerance:.3g}; not timed")
    result = Result(path, case, gap, tolerance)
    for name, other in case.others.items():
        if other.run is not None:
            result.equal[name] = _equal(path, case, name, other, ours, precise)
    sides = case.sides()
    for number in range(min(options.rounds, case.rounds or options.rounds)):
        turn: dict[str, dict[str, float]] = {}
        # Whoever runs first alternates, so that a drift of the machine favours neither.
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            turn[side] = _clocked(sides[side], options.device, 0.0 if options.quick else _LEAST_SECONDS)
        result.rounds.append(turn)
    if memory is not None:
        result.memory = memory
    elif case.memory and options.memory:
        for side, run in (("peer", case.peer), ("ours", case.ours)):
            result.memory[side] = float(peak_growth(run, options.device))
    if options.device == "cpu":
        result.limit = limit_of(case.ours, options.torch_dtype, case.steps)
    return result


def _equal(path: str, case: Case, name: str, other: Other, ours: Any, precise: bool) -> float:
    """The share of another peer's results that are ours."""
    assert other.run is not None
    theirs = other.run()
    if not other.exact:
        return equal_share(theirs, ours)
    gap = difference(theirs, ours, precise)
    if not gap <= other.tolerance:
        allowed = f"allowed {other.tolerance:.3g}"
        raise Unequal(f"{path}, {case.name}: outputs of {name} differ by {gap:.3g}, {allowed}; not timed")
    return 1.0


def _clocked(run: Callable[[], Any], device: str, least: float) -> dict[str, float]:
    """Mean seconds of a run, over as many as take `least` seconds together."""
    gc.collect()
    _synchronise(device)
    wall, cpu, runs = time.perf_counter(), time.process_time(), 0
    while not runs or time.perf_counter() - wall < least:
        run()
        _synchronise(device)
        runs += 1
    return {"wall": (time.perf_counter() - wall) / runs, "cpu": (time.process_time() - cpu) / runs}


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def run(path: str, cases: Callable[[Options], Iterator[Case]], options: Options) -> list[dict[str, Any]]:
    """All cases of a path, as rows; says each as soon as it is known.

    Raises:
        Unequal: see `measure`.
    """
    quiet(options)
    rows = []
    clock = clock_of(options)
    apart = options.memory and options.device == "cpu" and sys.platform == "linux" and not options.quick
    memory = measure_apart(path, options) if apart else {}
    for case in cases(options):
        for row in measure(path, case, options, memory.get(case.name)).rows():
            rows.append(row)
            print(f"{path}, {case.name}: {_said(row, clock)}", file=sys.stderr, flush=True)
        del case
        gc.collect()
    return rows


def _said(row: dict[str, Any], clock: str) -> str:
    if "ratio" not in row:
        return f"{row['peer']}: not run: {row['note']}"
    ratio, limit = row["ratio"][clock], row["limit"]
    words = f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f}) times as fast as {row['peer']}"
    if row["peer"] != PEER:
        return f"{words}, equal {row['equal']:.0%}"
    share = f", {limit['share']:.0%} of the limit" if limit else ""
    return f"{words}{share}, memory {row['memory_ratio'] or math.nan:.2f}, difference {row['difference']:.1e}"


def run_path(path: str, options: Options) -> list[dict[str, Any]]:
    """`run` for the module of a path."""
    return run(path, importlib.import_module(f"benchmarks.{path}").cases, options)


def main(path: str, cases: Callable[[Options], Iterator[Case]], argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.PATH`."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = arguments((sys.modules[cases.__module__].__doc__ or "").strip()).parse_args(words)
    if args.isa:
        return elsewhere(args.isa, f"benchmarks.{path}", without_isa(words))
    options = options_of(args)
    try:
        return report(run(path, cases, options), options, args.out, save=args.save)
    except Unequal as error:
        print(error, file=sys.stderr)
        return 1
