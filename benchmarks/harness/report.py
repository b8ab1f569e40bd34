"""What a run prints and writes."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .case import PEER
from .history import FILE, append, line_of
from .machine import machine, versions
from .options import Options


def environment(options: Options) -> dict[str, Any]:
    """Versions, machine and settings: what a ratio depends on."""
    return {
        **versions(),
        "python": platform.python_version(),
        **machine(options.threads, options.device, options.dtype),
        "device": options.device,
        "quick": options.quick,
    }


def clock_of(options: Options) -> str:
    """Which clock the table shows: CPU seconds of one thread are steady on a busy machine; otherwise the wall's."""
    return "cpu" if options.threads == 1 and options.device == "cpu" else "wall"


def table(rows: Sequence[dict[str, Any]], options: Options) -> str:
    """Rows as a Markdown table."""
    clock = clock_of(options)
    lines = [
        "| path | workload | peer | its rate | voxzoo | faster (min - max) | aim | of the limit "
        "| memory, of the peer's | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(row, clock)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: dict[str, Any], clock: str) -> list[str]:
    named = [row["path"].replace("_", " "), row["case"], row["peer"]]
    if "ratio" not in row:
        return [*named, "", "", f"not run: {row['note']}", "", "", "", ""]
    ratio, memory, limit = row["ratio"][clock], row.get("memory_bytes"), row["limit"]
    rates = [f"{_short(row['amount'] / row['seconds'][side][clock])} {row['unit']}/s" for side in ("peer", "ours")]
    aim = f"{row['least']}" + (f" ({row['aim']})" if row["aim"] else "") if "least" in row else f"{row['aim'] or ''}"
    saved = ""
    if memory:
        saved = f"{memory['ours'] / 1e6:.0f} of {memory['peer'] / 1e6:.0f} MB ({row['memory_ratio']:.2f})"
    apart = f"{row['difference']:.0e}" if row["peer"] == PEER else f"{row['equal']:.0%} equal"
    return [
        *named,
        *rates,
        f"**{ratio['median']:.2f}** ({ratio['min']:.2f} - {ratio['max']:.2f})",
        aim,
        f"{limit['share']:.2f} ({_bound(limit)})" if limit else "",
        saved,
        apart + (f"; {row['note']}" if row.get("note") else ""),
    ]


def _bound(limit: dict[str, float]) -> str:
    """What the limit is made of."""
    if limit["memory"] > 0.9:
        return "reading"
    return "arithmetic" if limit["memory"] < 0.1 else f"{limit['memory']:.0%} reading"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def report(
    rows: Sequence[dict[str, Any]],
    options: Options,
    out: Path | None,
    errors: Sequence[str] = (),
    save: bool = False,
) -> int:
    """Print the table, write the JSON, append to the history; return the exit status."""
    about = environment(options)
    kept = f" kept to {about['isa']}" if about["isa"] else ""
    print(f"torch {about['torch']}, transformers {about['transformers']}, {about['gpu'] or about['cpu']}, ", end="")
    print(f"{about['capability']}{kept}, {options.threads} thread{'s' * (options.threads != 1)}, ", end="")
    print(f"{options.dtype}, {clock_of(options)} time\n")
    print(table(rows, options))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"environment": about, "results": list(rows), "errors": list(errors)}, indent=1))
    if save:
        append(FILE, line_of(rows, options))
        print(f"\nadded to {FILE.name}; `python -m benchmarks history` says what moved")
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0
