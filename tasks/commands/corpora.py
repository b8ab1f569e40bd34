"""The verbs of `voxzoo data` on corpora: convert, stats, split, mix, pack, unpack."""

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

    from ...datamodules.statistics import Statistics


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

    count = verbs.add_parser("stats", help="hours, lengths, languages, speakers and texts of manifests")
    count.add_argument("manifests", nargs="+", metavar="MANIFEST", help="as for `voxzoo data validate`")
    count.add_argument("--pictures", metavar="FOLDER", help="write histograms there, as SVG")

    part = verbs.add_parser("split", help="a manifest in parts that share no speaker, or no recording")
    part.add_argument("manifest", metavar="MANIFEST", help="a manifest, or several as one: '[a.jsonl,b.jsonl]'")
    part.add_argument("parts", nargs="+", metavar="PART=SHARE", help="such as valid=0.05 test=0.05; the rest is train")
    part.add_argument("--out", metavar="FOLDER", required=True, help="of PART.jsonl")
    part.add_argument(
        "--by",
        default="speaker",
        metavar="KEY[,KEY]",
        help="what no two parts share: speaker, recording (which they never do), text; or row (default: speaker)",
    )
    part.add_argument("--seed", type=int, default=1, help="of the choice (default 1)")
    _overwrite(part)

    mix = verbs.add_parser("mix", help="shares of the training data: what `data.mix` would take, without training")
    mix.add_argument("manifests", nargs="+", metavar="MANIFEST", help="those of data.train")
    mix.add_argument(
        "--by",
        default="languages",
        choices=("languages", "src_lang", "tgt_lang", "speaker", "manifest"),
        help="what makes a group (default: languages)",
    )
    mix.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="a group of n gets n to the power of 1/T"
    )
    mix.add_argument("--weights", default="", metavar="GROUP=SHARE,...", help="in place of the temperature")
    mix.add_argument("--count", default="utterances", choices=("utterances", "hours"), help="what shares are of")
    mix.add_argument("--size", type=int, metavar="N", help="utterances of an epoch (default: as many as there are)")

    for name, what in (
        ("pack", "into a few tar files, which are read in place"),
        ("unpack", "into files of their own"),
    ):
        move = verbs.add_parser(name, help=f"copy the recordings of a manifest {what}")
        move.add_argument("manifest", metavar="MANIFEST", help="a manifest, or several as one: '[a.jsonl,b.jsonl]'")
        move.add_argument("--out", metavar="FOLDER", required=True, help="a new one, of manifest.jsonl and the audio")
        if name == "pack":
            move.add_argument(
                "--megabytes", type=float, default=1024, metavar="N", help="of a tar file (10^6 bytes, default 1024)"
            )


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
def _counting(what: str, of: str = "rows") -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.description}}: {{task.completed:,}} {of}"))
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


def _stats(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import of_a_split
    from ...datamodules.statistics import statistics, write_pictures

    found, pictures = {}, []
    for text in args.manifests:
        about = statistics(of_a_split(text))
        _print_statistics(text, about)
        if args.pictures:
            folder = Path(args.pictures)
            folder = folder / Path(text.strip("[]").split(",")[0]).stem if len(args.manifests) > 1 else folder
            pictures += map(str, write_pictures(about, folder))
        found[text] = about.as_dict()
    if pictures:
        print(printable(f"pictures: {few(pictures)}"))
    return {"status": "ok", "manifests": found, "pictures": pictures}


def _print_statistics(name: str, about: Statistics) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ...datamodules.statistics import SHARES

    whole = about.whole
    title = f"{name}: {whole.rows:,} rows, {whole.hours:.2f} h"
    table = Table(title=escape(printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "rows", "hours", "speakers", "target speech", "source words", "target words"):
        table.add_column(column, justify="right" if column else "left")
    for group in (*about.languages, *about.splits, whole):
        numbers = (group.rows, group.hours, group.speakers, group.target_speech, group.source_words, group.target_words)
        table.add_row(
            escape(printable(group.name)), *(f"{n:,.2f}" if isinstance(n, float) else f"{n:,}" for n in numbers)
        )
    Console().print(table)
    for what, values in (("seconds", about.seconds), ("characters a second", about.characters_a_second)):
        if values:
            ends = ("shortest", *(f"{share:.0%}" for share in SHARES[1:-1]), "longest")
            ends = ends if what == "seconds" else ("slowest", *ends[1:-1], "fastest")
            print(f"{what}: {', '.join(f'{end} {value:g}' for end, value in zip(ends, values))}")
    said = [f"{about.recordings:,} recordings"]
    if whole.unsaid:
        said.append(f"{whole.unsaid:,} rows do not say how long they are (`voxzoo data validate` reads them)")
    if about.largest_speaker:
        said.append(f"the speaker with most rows has {about.largest_speaker:.2%} of those that say one")
    print("; ".join(said))


def _split(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import of_a_split
    from ...datamodules.splitting import BY, split_manifest

    by = tuple(args.by.split(","))
    odd = [key for key in by if key not in BY]
    if odd:
        raise UserError(f"--by {odd[0]}: expected some of {', '.join(BY)}")
    shares = {}
    for word in args.parts:
        name, _, share = word.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"{word}: expected PART=SHARE, such as valid=0.05") from None
        if not name or Path(name).name != name:
            raise UserError(f"{word}: {name!r} cannot be the name of a part")
    out = Path(args.out)
    for name in ("train", *shares):
        _new(str(out / f"{name}.jsonl"), args.overwrite)
    found = split_manifest(of_a_split(args.manifest), out, shares, by, args.seed)
    total = sum(part.rows for part in found.parts.values())
    for part in found.parts.values():
        print(
            printable(
                f"{part.path}: {part.rows:,} rows ({part.rows / total:.1%}, asked {part.share:.1%}), "
                f"{part.seconds / 3600:.2f} h, {part.speakers:,} speakers"
            )
        )
    print(f"{found.groups:,} groups by {', '.join(by)}; the largest has {found.largest:.1%} of the rows")
    if found.unsaid:
        print(f"{found.unsaid:,} rows say no speaker: they are told apart by their recording alone")
    return {
        "status": "ok",
        "groups": found.groups,
        "largest": round(found.largest, 4),
        "without_speaker": found.unsaid,
        "parts": {
            name: {
                "path": str(part.path),
                "rows": part.rows,
                "hours": round(part.seconds / 3600, 4),
                "speakers": part.speakers,
                "asked": part.share,
            }
            for name, part in found.parts.items()
        },
    }


def _mix(args: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    import numpy as np

    from ...datamodules.mixing import Mix
    from ...datamodules.rows import groups_of, open_rows

    weights = {}
    for word in filter(None, args.weights.split(",")):
        name, _, share = word.rpartition("=")
        try:
            weights[name] = float(share)
        except ValueError:
            raise UserError(f"--weights {word}: expected GROUP=SHARE, such as que-spa=2") from None
    mix = Mix(by=args.by, temperature=args.temperature, weights=weights, count=args.count, size=args.size)
    with tempfile.TemporaryDirectory() as folder:  # columns of large manifests are mapped from there
        rows = open_rows(args.manifests, folder)
        found = mix.mixture(*groups_of(rows, args.by, args.manifests), np.nan_to_num(rows.durations()))
    groups = [
        {
            "group": name,
            "rows": int(found.sizes[n]),
            "hours": round(float(found.hours[n]), 4),
            "share": round(float(found.shares[n]), 6),
            "an_epoch": int(found.counts[n]),
        }
        for n, name in enumerate(found.names)
    ]
    groups.sort(key=lambda group: -group["share"])
    for group in groups:
        often = f"{group['an_epoch']:,} an epoch, each {group['an_epoch'] / group['rows']:.2f} times"
        print(
            printable(
                f"{group['group'] or '(none)'}: {group['rows']:,} rows, {group['hours']:,.2f} h, "
                f"share {group['share']:.2%}: {often}"
            )
        )
    words = [f"data.mix.by={args.by}"]
    words += [f"data.mix.temperature={args.temperature:g}"] if args.temperature != 1 else []
    words += [f"'data.mix.weights={{{args.weights.replace('=', ': ')}}}'"] if weights else []
    words += [f"data.mix.count={args.count}"] if args.count != "utterances" else []
    words += [f"data.mix.size={args.size}"] if args.size else []
    print(printable(f"to train so: {' '.join(words)}"))
    return {"status": "ok", "groups": groups, "overrides": words}


def _pack(args: argparse.Namespace) -> dict[str, Any]:
    from ...datamodules.manifest import of_a_split
    from ...datamodules.packing import pack, unpack

    out, manifest = Path(args.out), of_a_split(args.manifest)
    with _counting("copying recordings", "recordings") as progress:
        if args.data_verb == "unpack":
            made = unpack(manifest, out, progress)
        elif args.megabytes > 0:
            made = pack(manifest, out, int(args.megabytes * 1e6), progress)
        else:
            raise UserError(f"--megabytes {args.megabytes:g}: expected more than 0")
    size = f"{made.num_bytes / 1e6:,.1f} MB in {made.files:,} file{'s' * (made.files != 1)}"
    print(printable(f"{made.manifest}: {made.rows:,} rows, {made.recordings:,} recordings, {size}"))
    print_left_out(made.left_out, made.first)
    return {
        "status": "ok",
        "manifest": str(made.manifest),
        "rows": made.rows,
        "recordings": made.recordings,
        "files": made.files,
        "bytes": made.num_bytes,
        "left_out": [
            {"reason": reason, "count": count, "first": made.first[reason]} for reason, count in made.left_out.items()
        ],
    }


VERBS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "convert": _convert,
    "stats": _stats,
    "split": _split,
    "mix": _mix,
    "pack": _pack,
    "unpack": _pack,
}
