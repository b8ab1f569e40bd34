"""The table of an ablation: on the terminal, as CSV, Markdown, LaTeX and JSON. The same results give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .results import IN_CONDITIONS, SHOWN

_LABELS = {
    "bleu": "BLEU", "chrf": "chrF", "wer": "WER %", "cer": "CER %", "asr_bleu": "ASR-BLEU", "asr_wer": "ASR-WER %",
    "speaker_similarity": "similarity", "dnsmos": "DNSMOS", "f0_correlation": "F0 corr.",
    "coef_var_ms": "CoefVar", "added_toxicity": "added toxicity %", "asr_added_toxicity": "ASR added toxicity %",
    "parameters": "parameters", "trainable": "trainable", "steps": "steps", "audio_hours": "audio h",
    "seconds": "seconds", "cpu_seconds": "CPU s", "peak_mb": "MB at most", "scoring_seconds": "scoring s",
}  # fmt: skip

FACTS = ("parameters", "trainable", "steps", "audio_hours")
COSTS = ("seconds", "cpu_seconds", "peak_mb", "scoring_seconds")


def shown_scores(results: Mapping[str, Any]) -> list[str]:
    """Names of the scores that the table has: the usual ones, also in conditions; of others the first four."""
    known = [name for name in SHOWN if name in results["scores"]]
    harder = [name for name in results["scores"] if " in " in name and name.partition(" in ")[0] in IN_CONDITIONS]
    return [*known, *harder] or list(results["scores"])[:4]


def label(name: str) -> str:
    """How a score, a fact or a cost is written."""
    score, within, condition = name.partition(" in ")
    return f"{_LABELS.get(score, score)}{within}{condition}"


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, without what was measured of time and memory."""
    names = shown_scores(results)
    repeated = any(len(system["seeds"]) > 1 for system in results["systems"].values())
    head = ["system", *(["seeds"] if repeated else [])]
    for name in names:
        head += [label(name), "95 %"]
        if _is_compared(results, name):
            head += ["difference", "p"]
    facts = [name for name in FACTS if any(name in system["facts"] for system in results["systems"].values())]
    head += map(label, facts)
    rows = []
    for system, about in results["systems"].items():
        row = [system, *([str(len(about["seeds"]))] if repeated else [])]
        for name in names:
            row += _score_cells(results, name, system)
        row += [_number(about["facts"].get(name)) for name in facts]
        rows.append(row)
    return head, rows


def _is_compared(results: Mapping[str, Any], name: str) -> bool:
    return any("difference" in one for one in results["scores"][name]["systems"].values())


def _score_cells(results: Mapping[str, Any], name: str, system: str) -> list[str]:
    one = results["scores"][name]["systems"].get(system)
    empty = 4 if _is_compared(results, name) else 2
    if one is None:
        return ["failed" if results["systems"][system]["failed"] else "", *[""] * (empty - 1)]
    found = [f"{one['score']:.2f}" if abs(one["score"]) >= 10 else f"{one['score']:.3f}"]
    if one.get("low") is not None:
        found.append(
            f"{one['low']:.1f} - {one['high']:.1f}"
            if abs(one["high"]) >= 10
            else f"{one['low']:.3f} - {one['high']:.3f}"
        )
    else:
        found.append(f"+- {one['spread']:.3g}" if one.get("spread") is not None else "")
    if empty == 4:
        if one.get("difference") is None:
            found += ["base" if system == results["base"] else "", ""]
        else:
            found += [f"{one['difference']:+.{2 if abs(one['score']) >= 10 else 3}f}", _p(one)]
    return found


def _p(one: Mapping[str, Any]) -> str:
    p = p_value(one)
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def p_value(one: Mapping[str, Any]) -> float | None:
    """The p-value of a row, after Holm's correction: of the bootstrap, which knows of seeds, where there are several of
    them, else of approximate randomisation."""
    name = "p_randomisation_holm" if one.get("num_runs") == 1 else "p_bootstrap_holm"
    found = one.get(name)
    return found if found is not None else one.get("p_bootstrap_holm")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def explanation(results: Mapping[str, Any]) -> list[str]:
    """Lines below the table: what the numbers are, failures, what could be seen."""
    lines = []
    seeds = any(len(system["seeds"]) > 1 for system in results["systems"].values())
    compared = [name for name in shown_scores(results) if _is_compared(results, name)]
    if compared:
        drawn = "seeds and utterances" if seeds else "utterances"
        test = "the paired bootstrap over seeds and utterances" if seeds else "approximate randomisation"
        lines.append(
            f"95 %: bootstrap of {drawn}. difference: from {results['base']}. p: {test}, after Holm's correction."
        )
        for name in compared:
            found = [
                one["smallest_difference"] for one in results["scores"][name]["systems"].values() if "difference" in one
            ]
            many = results["scores"][name]["num_utterances"]
            things = "contents" if name == "coef_var_ms" else "utterances"
            least, most = min(found), max(found)
            least, most = [f"{one:.2f}" if one >= 0.1 else f"{one:.3f}" for one in (least, most)]
            span = least if least == most else f"{least} to {most}"
            lines.append(f"{label(name)}: {many} {things}; a true difference of {span} is found 4 times out of 5.")
    for name in shown_scores(results):
        if results["scores"][name]["signature"]:
            lines.append(f"{label(name)}: {results['scores'][name]['signature']}")
    for system, about in results["systems"].items():
        for seed, why in about["failed"].items():
            run = system if seed == system else f"{system} seed={seed}"
            lines.append(f"failed: {run}: {why.splitlines()[0]}")
    return [*lines, *(f"note: {note}" for note in results["notes"])]


def as_csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """RFC 4180, but lines end at LF. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[f"'{cell}" if cell[:1] in ("=", "@") else cell for cell in row] for row in rows])
    return out.getvalue()


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    def line(one: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in one) + " |"

    rule = "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"
    return "\n".join([line(head), rule, *map(line, rows), "", *below, ""])


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """A tabular with booktabs' rules."""

    def tex(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text.replace("+- ", "± ")).replace("±", r"$\pm$")

    def line(one: Sequence[str]) -> str:
        return " & ".join(map(tex, one)) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {text}" for text in below),
            "",
        ]
    )


def cost_cells(costs: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of what was measured of time and memory: another run of the same measures other numbers."""
    names = [name for name in COSTS if any(name in one for one in costs.values())]
    rows = [[system, *(_number(_round(one.get(name))) for name in names)] for system, one in costs.items()]
    return ["system", *map(label, names)], rows


def _round(value: float | None) -> float | None:
    return None if value is None else round(value) if value >= 100 else round(value, 1)


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table of scores."""
    console = console or Console(width=None if Console().is_terminal else 160)
    print_cells(*cells(results), console)
    for line in explanation(results):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def print_cells(head: Sequence[str], rows: Iterable[Sequence[str]], console: Console) -> None:
    """Print a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
