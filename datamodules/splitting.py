"""A manifest in parts, none of which knows a speaker, a recording or a text of another.

Letters: N rows, G groups of rows that must stay together, P parts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..components.errors import UserError
from ..components.lines import json_line
from ..components.whole import whole_file
from .manifest import PATHS, Paths, path_from, paths_of, written_rows
from .rows import Rows, open_rows

By = Literal["speaker", "recording", "text", "row"]
BY: tuple[By, ...] = ("speaker", "recording", "text", "row")


@dataclass(frozen=True)
class Part:
    """What became of a part.

    Attributes:
        path: its manifest.
        rows: in it.
        seconds: of their source speech, as far as they are known.
        groups: of rows that had to stay together.
        speakers: in it.
        share: of all rows that was asked for.
    """

    path: Path
    rows: int
    seconds: float
    groups: int
    speakers: int
    share: float


@dataclass(frozen=True)
class Split:
    """A split manifest.

    Attributes:
        parts: by name.
        groups: of rows that had to stay together.
        largest: share of all rows in the largest group.
        unsaid: rows that say nothing of what they were to be told apart by.
    """

    parts: dict[str, Part]
    groups: int
    largest: float
    unsaid: int


def split_manifest(
    manifest: Paths, out: Path, shares: Mapping[str, float], by: Sequence[By] = ("speaker",), seed: int = 1
) -> Split:
    """Write the rows of a manifest into one for each part, each row into one of them, with all its keys.

    Rows that share one of `by` are in one part, and so are rows that share another one with these; rows of one
    recording always are. Which rows they are is a function of the ids, `by` and the seed, whatever their order.

    Args:
        manifest: one, or several as one.
        out: folder of `NAME.jsonl`.
        shares: part -> share of the rows; the rest of them to 1 is of `train`, where that is not named.
        by: what must not be in two parts. `text` is that of either side, `row` nothing.
        seed: of the choice.

    Raises:
        UserError: the manifest is faulty, or the shares cannot be had.
    """
    shares = _whole(shares)
    paths = paths_of(manifest)
    with tempfile.TemporaryDirectory() as folder:  # columns of large manifests are mapped from there
        rows = open_rows(manifest, folder)
        group, unsaid = _groups(rows, by)
        counts = np.bincount(group)
        if len(counts) < len(shares):
            raise UserError(
                f"{len(rows)} rows make {len(counts)} group{'s' * (len(counts) != 1)} by {', '.join(by)}, too few for "
                f"{len(shares)} parts: split by less, such as --by recording"
            )
        part = _deal(counts, _order(rows, group, seed), np.array([*shares.values()]))[group]
        found = _written(paths, out, [*shares], part)
        seconds, (speaker, _) = np.nan_to_num(rows.durations()), rows.codes("speaker")
        named = ~rows.labelled("speaker", [""])
        parts = {}
        for number, (name, share) in enumerate(shares.items()):
            these = part == number
            parts[name] = Part(
                found[name], int(these.sum()), float(seconds[these].sum()), len(np.unique(group[these])),
                len(np.unique(speaker[these & named])), share,
            )  # fmt: skip
    return Split(parts, len(counts), float(counts.max() / len(part)), unsaid)


def _whole(shares: Mapping[str, float]) -> dict[str, float]:
    given = dict(shares)
    wrong = next((f"{name}={share:g}" for name, share in given.items() if not 0 < share < 1), None)
    total = sum(given.values())
    if wrong is None and total > 1 + 1e-9:
        wrong = " ".join(f"{name}={share:g}" for name, share in given.items())
    if wrong is not None or not given:
        expected = "expected shares of the rows between 0 and 1, 1 together, such as valid=0.05"
        raise UserError(f"{wrong or 'no parts'}: {expected}")
    if total < 1 - 1e-9:
        if "train" in given:
            raise UserError(f"the shares make {total:g} together: expected 1, or leave out train, which is the rest")
        given = {"train": 1 - total, **given}
    return given


def _groups(rows: Rows, by: Sequence[By]) -> tuple[np.ndarray, int]:
    """(N,) number of the group of each row, and rows of which `speaker` is asked and not said."""
    count, unsaid = len(rows), 0
    columns = [rows.recordings("audio"), rows.recordings("tgt_audio")] if "row" not in by else []
    if "speaker" in by:
        codes, names = rows.codes("speaker")
        if names and names[0] == "":
            unsaid = int((codes == 0).sum())
            codes = np.where(codes == 0, -1, codes)
        if unsaid == count:
            raise UserError("no row says a speaker: split --by recording, or name the speakers")
        columns.append(codes)
    if "text" in by:
        for key in ("src_text", "tgt_text"):
            hashes = np.fromiter((hash(text) for text in rows.texts(key)), np.int64, count)
            codes = np.unique(hashes, return_inverse=True)[1]
            columns.append(np.where(rows.has(key), codes, -1))
    group = np.arange(count)
    while columns:  # the least number of those that share something, until nothing changes
        before = group
        for column in columns:
            said = column >= 0
            least = np.full(int(column.max(initial=-1)) + 1, count)
            np.minimum.at(least, column[said], group[said])
            group = group.copy()
            group[said] = np.minimum(group[said], least[column[said]])
            group = group[group]  # what a row was joined with may have been joined itself
        if (group == before).all():
            break
    return np.unique(group, return_inverse=True)[1], unsaid


def _order(rows: Rows, group: np.ndarray, seed: int) -> np.ndarray:
    """Groups in an order that the ids and the seed decide."""
    from hashlib import blake2b

    key = str(seed).encode()
    least = np.full(int(group.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    drawn = np.fromiter(
        (int.from_bytes(blake2b(name.encode(), digest_size=8, key=key).digest()) for name in rows.texts("id")),
        np.uint64,
        len(group),
    )
    np.minimum.at(least, group, drawn)
    return np.argsort(least, kind="stable")


def _deal(counts: np.ndarray, order: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(G,) the part of each group: the one that lacks most for its share. Each part gets one."""
    lacking = shares * counts.sum()
    part, empty = np.empty(len(counts), np.int64), set(range(len(shares)))
    for left, group in zip(range(len(order), 0, -1), order.tolist()):
        open_parts = sorted(empty) if left <= len(empty) else range(len(shares))
        chosen = max(open_parts, key=lambda number: lacking[number])
        part[group] = chosen
        lacking[chosen] -= counts[group]
        empty.discard(chosen)
    return part


def _written(paths: Sequence[Path], out: Path, names: Sequence[str], part: np.ndarray) -> dict[str, Path]:
    found = {name: out / f"{name}.jsonl" for name in names}
    with ExitStack() as stack:
        files = [stack.enter_context(whole_file(path)) for path in found.values()]
        for (_, row), number in zip(written_rows(paths), part.tolist(), strict=True):
            for key in PATHS:
                if row.get(key):
                    row[key] = path_from(out, row[key])
            row.pop("split", None)  # what it was before
            files[number].write(json_line(row).encode() + b"\n")
    return found
