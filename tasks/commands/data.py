"""`voxzoo data`: validate manifests, make the built-in corpus; the verbs on corpora are in `corpora`."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ...components.errors import UserError, printable
from . import corpora

if TYPE_CHECKING:
    from ...datamodules.validation import Report

HELP = "manifests: convert corpora to them, check, count, split, mix and pack them; make the built-in corpus"
EXAMPLE = """voxzoo data validate train.jsonl valid.jsonl
  voxzoo data convert common_voice cv-corpus-22.0/es --out es.jsonl
  voxzoo data prepare spoken_phrases num_train=2000 source_languages=[spa,fra] --out corpora"""

CORPORA = ("spoken_phrases",)


def configure(parser: argparse.ArgumentParser) -> None:
    names = "|".join(("validate", "prepare", *corpora.VERBS))
    verbs = parser.add_subparsers(dest="data_verb", metavar=names, required=True)

    check = verbs.add_parser("validate", help="read every row and every file; exit status 1 where training would fail")
    check.add_argument(
        "manifests",
        nargs="+",
        metavar="MANIFEST",
        help="a manifest (JSONL or TSV), or several of one split as data.train takes them: '[a.jsonl,b.jsonl]'",
    )
    check.add_argument("--min-seconds", type=float, default=0.1, help="report shorter audio (default 0.1)")
    check.add_argument("--max-seconds", type=float, default=30.0, help="report longer audio (default 30)")
    check.add_argument(
        "--run", metavar="RUN", help="also name what this run's model, tokenizer and data settings would leave out"
    )
    check.add_argument("--show", type=int, default=5, metavar="N", help="ids to show of each finding (default 5)")

    make = verbs.add_parser("prepare", help="make a built-in corpus (again: finds it)")
    make.add_argument("corpus", choices=CORPORA)
    make.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as num_train=2000 or voice=tones")
    make.add_argument("--out", metavar="DIR", help="folder of the corpora (default: where training looks)")
    corpora.configure(verbs)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.data_verb in corpora.VERBS:
        return corpora.VERBS[args.data_verb](args)
    return _validate(args) if args.data_verb == "validate" else _prepare(args)


def _validate(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from ...datamodules.manifest import of_a_split
    from ...datamodules.validation import shared_texts, validate  # torch loads only for the work, not for --help

    asked = None
    if args.run:
        from ..planning.leaving_out import left_out_by
        from ..runs.run import load_run

        run = load_run(args.run)
        asked = partial(left_out_by, run)
    reports = []
    splits = [of_a_split(text) for text in args.manifests]
    for path, text in zip(splits, args.manifests):
        with Progress(transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task(f"reading the audio of {escape(text)}", total=None)
            reports.append(
                validate(
                    path,
                    min_seconds=args.min_seconds,
                    max_seconds=args.max_seconds,
                    progress=lambda done, total, bar=bar, task=task: bar.update(task, completed=done, total=total),
                )
            )
        if asked is not None:
            reports[-1].findings.extend(asked(path))
        _print_report(reports[-1], args.show)
    shared = shared_texts(splits) if len(splits) > 1 else []
    for first, second, count, name in shared:
        print(f"{count} rows of {second} have the texts of a row of {first}, such as {name}")
    errors = sum(report.num_errors for report in reports)
    return {
        "status": "failed" if errors else "ok",
        "errors": errors,
        "manifests": {report.path: _as_dict(report, args.show) for report in reports},
        "shared_texts": [{"first": a, "second": b, "rows": count, "id": name} for a, b, count, name in shared],
    }


def _as_dict(report: Report, shown: int) -> dict[str, Any]:
    findings = [
        {"kind": item.kind, "error": item.is_error, "count": len(item.places), "first": item.places[:shown]}
        for item in report.findings
    ]
    return {"utterances": report.utterances, "hours": round(report.seconds / 3600, 4), "findings": findings}


def _print_report(report: Report, shown: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{report.path}: {report.utterances} utterances, {report.seconds / 3600:.2f} h, {report.num_errors} errors"
    if not report.findings:
        print(f"{title}: nothing to report")
        return
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("finding")
    table.add_column("rows", justify="right")
    table.add_column("first", overflow="fold")
    for item in report.findings:
        style = "red" if item.is_error else None
        more = [f"and {len(item.places) - shown} more"] if len(item.places) > shown else []
        first = "\n".join([*map(printable, item.places[:shown]), *more])
        table.add_row(
            escape(item.kind),
            str(len(item.places)),
            escape(first),
            style=style,
        )
    Console().print(table)


def _prepare(args: argparse.Namespace) -> dict[str, Any]:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ...configs.build import build
    from ...configs.check import require_valid
    from ...configs.compose import compose
    from ...configs.targets import allow_list
    from ...datamodules.datamodule import describe
    from ...datamodules.manifest import read_manifest

    odd = [setting for setting in args.settings if "=" not in setting]
    if odd:
        raise UserError(f"{odd[0]!r}: expected KEY=VALUE, such as num_train=2000")
    overrides = [f"data={args.corpus}", *(f"data.corpus.{setting.removeprefix('+')}" for setting in args.settings)]
    if args.out:
        overrides.append(f"data.corpus.root={args.out!r}")
    config = compose(overrides)
    require_valid(config)
    corpus = build(config.data.corpus, allowed=allow_list(config))
    begin, made = time.monotonic(), not corpus.is_prepared
    paths = corpus.prepare()
    seconds = round(time.monotonic() - begin, 1)
    about = {split: describe(read_manifest(path)) for split, path in paths.items()}
    words = f"made in {seconds} s" if made else "was there"
    table = Table(title=escape(f"{corpus.folder}: {words}"), box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("manifest", "utterances", "hours", "longest (s)", "source words", "target words"):
        table.add_column(column, justify="left" if column == "manifest" else "right")
    for split, row in about.items():
        numbers = (row["utterances"], row["hours"], row["longest"], row["src_words"], row["tgt_words"])
        table.add_row(paths[split].name, *map(str, numbers))
    Console().print(table)
    return {
        "status": "ok",
        "folder": str(corpus.folder),
        "made": made,
        "seconds": seconds,
        "manifests": {split: {"path": str(path), **about[split]} for split, path in paths.items()},
    }
