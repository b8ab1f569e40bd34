"""`voxzoo data convert`: corpora as others publish them, to manifests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.errors import UserError, few, printable
from ...components.languages import language_name

if TYPE_CHECKING:
    from collections.abc import Callable


def configure(verbs: Any) -> None:
    """Add the verbs on corpora to those of `voxzoo data`."""
    from ...datamodules.converters import KINDS

    kinds = "\n".join(f"  {name:14}{what}" for name, what in KINDS.items())
    make = verbs.add_parser(
        "convert",
        help="a corpus in the layout in which it is published, to a manifest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"layouts (KIND):\n{kinds}",
    )
    make.add_argument("kind", metavar="KIND", help="the layout, see below")
    make.add_argument("source", metavar="SOURCE", help="the folder or file of the corpus; nothing in it is changed")
    make.add_argument("--out", metavar="MANIFEST", required=True, help="the manifest to write, .jsonl or .tsv")
    make.add_argument("--src-lang", metavar="CODE", default="", help="in place of what the corpus says")
    make.add_argument("--tgt-lang", metavar="CODE", default="", help="likewise, of the translation")
    make.add_argument("--split", metavar="NAME", default="", help="this one alone (default: all, named by `split`)")
    make.add_argument("--with", dest="beside", metavar="FOLDER", help="another corpus that belongs to it, see below")
    make.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=COLUMN",
        help="what the corpus calls a key, such as tgt_text=translation_es; again for others",
    )
    make.add_argument(
        "--no-durations",
        action="store_true",
        help="leave out the durations that the corpus does not say, in place of reading the headers of its audio",
    )
    _overwrite(make)


def _overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="write over what is there")


def _new(out: str, overwrite: bool) -> Path:
    """Where to write. Raises UserError where something is there."""
    path = Path(out)
    if path.exists() and not overwrite:
        raise UserError(f"--out {path}: is there already: name another, or write over it with --overwrite")
    return path


def _code(option: str, code: str) -> str:
    try:
        return language_name(code) if code else ""
    except ValueError as error:
        raise UserError(f"{option} {code}: {error}") from None


def _columns(pairs: list[str]) -> dict[str, str]:
    odd = [pair for pair in pairs if not all(pair.partition("="))]
    if odd:
        raise UserError(f"--column {odd[0]}: expected KEY=COLUMN, such as tgt_text=translation_es")
    return {key: column for key, _, column in (pair.partition("=") for pair in pairs)}


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} rows"))
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done: bar.update(task, completed=done)


def print_left_out(counts: Mapping[str, int], first: Mapping[str, list[str]]) -> None:
    """A line for each reason."""
    for reason, count in counts.items():
        shown = first.get(reason, [])
        more = "" if count <= len(shown) else " ..."
        print(printable(f"  left out {count:,}: {reason}: {few(shown, len(shown))}{more}"))


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.converters.conversion import Asked, convert

    asked = Asked(
        out=_new(args.out, args.overwrite),
        src_lang=_code("--src-lang", args.src_lang),
        tgt_lang=_code("--tgt-lang", args.tgt_lang),
        split=args.split,
        beside=Path(args.beside) if args.beside else None,
        columns=_columns(args.column),
    )
    with _counting(f"converting {args.source}") as progress:
        made = convert(args.kind, Path(args.source), asked, durations=not args.no_durations, progress=progress)
    splits = {name: count for name, count in made.splits.items() if name}
    parts = f" ({', '.join(f'{name} {count:,}' for name, count in splits.items())})" if splits else ""
    print(printable(f"{asked.out}: {made.rows:,} rows{parts}, {made.seconds / 3600:.2f} h"))
    print_left_out(made.left_out, made.first)
    for line in made.said:
        print(printable(f"  {line}"))
    return {
        "status": "ok",
        "manifest": str(asked.out),
        "rows": made.rows,
        "hours": round(made.seconds / 3600, 4),
        "splits": splits,
        "left_out": [
            {"reason": reason, "count": count, "first": made.first.get(reason, [])}
            for reason, count in made.left_out.items()
        ],
        "notes": made.said,
    }


VERBS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"convert": _convert}
