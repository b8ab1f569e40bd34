"""`voxzoo score`"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from typing import Any

from ..serving.choices import NORMALISERS, TOKENIZERS
from . import flags

HELP = "score any system's text: BLEU, chrF, TER, WER, CER with intervals, and compare systems"
EXAMPLE = "voxzoo score ours.jsonl theirs.txt --reference test.tsv --normalise iwslt --by gender"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="[NAME=]FILE",
        help="output of a system: plain text (a sentence a line), .tsv with a header, .jsonl, or what `voxzoo "
        "evaluate` wrote (.hypotheses.jsonl); rows are matched by id, plain text by line. Files of one NAME are runs "
        "of one system, such as of several seeds, whose scores are averaged",
    )
    parser.add_argument(
        "--reference", metavar="FILE", help="what is right, in any of these forms (default: `reference` of the rows)"
    )
    parser.add_argument("--metrics", metavar="NAMES", help="of bleu,chrf2,chrf2++,ter,wer,cer (default: all)")
    parser.add_argument(
        "--normalise",
        choices=NORMALISERS,
        default="none",
        help="before scoring: none (default); iwslt, lower case without punctuation; speech, as evaluate does before "
        "WER and ASR-BLEU",
    )
    parser.add_argument("--keep", default="", metavar="MARKS", help='punctuation that iwslt leaves, such as "\'"')
    parser.add_argument(
        "--tokenize",
        choices=TOKENIZERS,
        help="of BLEU (default: 13a, or char for languages without spaces)",
    )
    parser.add_argument("--lang", help="ISO 639-3 code of the text (default: tgt_lang of the rows, or eng)")
    parser.add_argument("--base", metavar="NAME", help="the system that others are compared with (default: the first)")
    parser.add_argument("--by", metavar="FIELDS", help="score each group of a field too, such as gender,tgt_lang")
    parser.add_argument("--manifest", metavar="FILE", help="where the fields of --by are, by id (default: in the rows)")
    parser.add_argument("--task", help="the rows of one task, of a file that has several (asr, s2tt ...)")
    parser.add_argument(
        "--field", metavar="KEY", help="of the output (default: hypothesis, translation or text; heard is ASR-BLEU's)"
    )
    parser.add_argument(
        "--reference-field", metavar="KEY", help="of the reference (default: reference, tgt_text or text)"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000; 0: no intervals)"
    )
    parser.add_argument(
        "--trials", type=int, default=10000, metavar="N", help="of approximate randomisation (default 10000; 0: none)"
    )
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the draws (default 12345)")
    parser.add_argument(
        "--format",
        choices=("text", "csv", "markdown"),
        default="text",
        help="text (default), csv (a line for each score of each system and group), or markdown",
    )


def run(args: argparse.Namespace) -> dict:
    from ...components.errors import UserError
    from ..scoring.systems import METRICS, Normaliser, metrics_of, read_corpus, score_systems

    for name, least in (("resamples", 0), ("trials", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected {least} or more")
    if args.resamples == 1:
        raise UserError("--resamples 1: expected at least 2, or 0 for no intervals")
    corpus = read_corpus(
        args.systems,
        args.reference,
        manifest=args.manifest,
        task=args.task,
        field=args.field,
        reference_field=args.reference_field,
        lang=args.lang,
        by=flags.words(args.by),
    )
    normaliser = Normaliser(args.normalise, corpus.lang, args.keep)
    metrics = metrics_of(flags.words(args.metrics) or list(METRICS), normaliser, corpus.lang, args.tokenize)
    compared = len(corpus.systems) > 1 and args.resamples > 0
    answer = score_systems(
        corpus,
        metrics,
        normaliser,
        base=(args.base or next(iter(corpus.systems))) if compared else None,
        resamples=args.resamples,
        trials=args.trials,
        seed=args.seed,
    )
    if not args.json:
        {"text": show, "csv": _print_csv, "markdown": _print_markdown}[args.format](answer)
    return {"status": "ok", **answer}


def show(answer: dict[str, Any]) -> None:
    """Print a table for each metric, one for each field of groups, then signatures and notes."""
    from rich.console import Console

    from ...components.errors import printable
    from ..scoring.systems import METRICS

    console = Console(width=None if Console().is_terminal else 140)
    console.print(f"{answer['num_utterances']} utterances", highlight=False)
    for key, metric in answer["metrics"].items():
        console.print(_metric_table(METRICS[key], metric, answer["base"]))
    for field, values in answer["groups"].items():
        console.print(_group_table(field, values))
    for metric in answer["metrics"].values():
        for line in (metric["signature"], metric["signature_randomisation"]):
            if line:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if answer["base"] is not None:
        tests = "paired bootstrap, approximate randomisation (two-sided)"
        if _has_seeds(answer):
            tests = (
                "paired bootstrap over runs and utterances, of single runs approximate randomisation too (two-sided)"
            )
        console.print(
            f"  p: {tests}; Holm: after correction over the table; found: the smallest true difference that this table "
            "finds in 80 % of cases",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    for note in answer["notes"]:
        console.print(printable(f"note: {note}"), markup=False, highlight=False)


def _has_seeds(answer: dict[str, Any]) -> bool:
    """Whether a system has several runs."""
    return any(row["num_runs"] > 1 for metric in answer["metrics"].values() for row in metric["systems"].values())


def _metric_table(label: str, metric: dict[str, Any], base: str | None) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ...components.errors import printable

    arrow = "" if metric["higher_is_better"] else " (lower is better)"
    table = Table(title=f"{label}{arrow}", box=box.SIMPLE_HEAD, title_justify="left")
    others = [name for name in metric["systems"] if name != base] if base is not None else []
    repeated = any(row["num_runs"] > 1 for row in metric["systems"].values())
    table.add_column("system", overflow="fold")
    shown = ["runs", "spread", "score", "95 %"][0 if repeated else 2 :]
    for column in (*shown, *(("difference", "95 %", "p", "Holm", "found") if others else ())):
        table.add_column(column, justify="right")
    for name, row in metric["systems"].items():
        cells = [f"{row['score']:.2f}", _between(row["low"], row["high"])]
        if repeated:
            cells[:0] = [str(row["num_runs"]), "" if row["spread"] is None else f"{row['spread']:.2f}"]
        if name in others:
            pairs = [("p_bootstrap", "p_randomisation"), ("p_bootstrap_holm", "p_randomisation_holm")]
            cells += [
                f"{row['difference']:+.2f}",
                _between(row["difference_low"], row["difference_high"]),
                *(" ".join(f"{row[key]:.4f}" for key in pair if row[key] is not None) for pair in pairs),
                f"{row['smallest_difference']:.2f}",
            ]
        elif others:
            cells += ["base", *[""] * 4]
        table.add_row(Text(printable(name)), *cells)
    return table


def _group_table(field: str, values: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ...components.errors import printable
    from ..scoring.systems import METRICS

    table = Table(title=f"by {printable(field)}", box=box.SIMPLE_HEAD, title_justify="left")
    keys = list(next(iter(values.values()))["metrics"])
    for column in (printable(field), "utterances", "system", *(METRICS[key] for key in keys)):
        table.add_column(column, justify="left" if column in (field, "system") else "right", overflow="fold")
    for value, group in values.items():
        for place, name in enumerate(next(iter(group["metrics"].values()))):
            first = (Text(printable(value)), str(group["num_utterances"])) if place == 0 else ("", "")
            rows = [group["metrics"][key][name] for key in keys]
            cells = [f"{row['score']:.2f} [{_between(row['low'], row['high'])}]".replace(" []", "") for row in rows]
            table.add_row(*first, Text(printable(name)), *map(Text, cells))
    return table


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.2f} - {high:.2f}"


_COLUMNS = (
    "score", "low", "high", "difference", "difference_low", "difference_high", "p_bootstrap", "p_bootstrap_holm",
    "p_randomisation", "p_randomisation_holm", "smallest_difference", "num_runs", "spread",
)  # fmt: skip


def _cells(answer: dict[str, Any]) -> Iterator[tuple[str, str, int, str, str, dict[str, Any]]]:
    """field and value of a group ("" of the whole), number of utterances, metric, system, row."""
    for key, metric in answer["metrics"].items():
        for name, row in metric["systems"].items():
            yield "", "", answer["num_utterances"], key, name, row
    for field, values in answer["groups"].items():
        for value, group in values.items():
            for key, systems in group["metrics"].items():
                for name, row in systems.items():
                    yield field, value, group["num_utterances"], key, name, row


def _print_csv(answer: dict[str, Any]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["field", "group", "utterances", "metric", "system", *_COLUMNS, "signature"])
    for field, value, count, key, name, row in _cells(answer):
        numbers = ["" if row.get(column) is None else repr(row[column]) for column in _COLUMNS]
        writer.writerow([field, value, count, key, name, *numbers, answer["metrics"][key]["signature"]])


def _print_markdown(answer: dict[str, Any]) -> None:
    from ...components.errors import printable
    from ..scoring.systems import METRICS

    keys = list(answer["metrics"])

    def plain(text: str) -> str:
        return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    def line(*cells: str) -> None:
        print(f"| {' | '.join(cells)} |")

    def scores(rows: list[dict[str, Any]]) -> list[str]:
        """A star where both tests say so after Holm's correction."""
        cells = []
        for row in rows:
            found = [row.get(f"{key}_holm") for key in ("p_bootstrap", "p_randomisation")]
            star = "*" if any(p is not None for p in found) and all(p is None or p < 0.05 for p in found) else ""
            between = _between(row["low"], row["high"])
            cells.append(f"{row['score']:.2f}{star}" + (f" [{between}]" if between else ""))
        return cells

    whole = answer["metrics"]
    line("system", *(METRICS[key] for key in keys))
    line("---", *["---:"] * len(keys))
    for name in next(iter(whole.values()))["systems"]:
        line(plain(name), *scores([whole[key]["systems"][name] for key in keys]))
    for field, values in answer["groups"].items():
        print()
        line(plain(field), "utterances", "system", *(METRICS[key] for key in keys))
        line("---", "---:", "---", *["---:"] * len(keys))
        for value, group in values.items():
            for name in next(iter(group["metrics"].values())):
                rows = [group["metrics"][key][name] for key in keys]
                line(plain(value), str(group["num_utterances"]), plain(name), *scores(rows))
    print()
    for key in keys:
        print(f"- {METRICS[key]}: `{whole[key]['signature']}`")
    if answer["base"] is not None:
        print(
            f"- *: differs from {plain(answer['base'])} at 0.05 by each paired test, after Holm's correction; "
            f"{answer['num_utterances']} utterances{', several runs' if _has_seeds(answer) else ''}, 95 % intervals"
        )
