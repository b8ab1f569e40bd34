"""A folder of Lhotse Shar: cuts and, in tar files of the same numbers, their recordings.

    cuts.000000.jsonl.gz, recording.000000.tar, target_recording.000000.tar ...

The members of a tar file are pairs in the order of the cuts: `CUT.flac` and its description `CUT.json`; `CUT.nodata`
and `CUT.nometa` where a cut has none. Of other fields, `target_recording` and `target_audio` are target speech. The
audio stays where it is: rows name bytes of the tar file. Layout: `lhotse/shar` of https://github.com/lhotse-speech/lhotse.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from ...components.errors import UserError
from ..archives import Stored, members
from ..segments import member_name
from .conversion import Asked, Row
from .lhotse import rows_of_cut
from .tables import json_lines

_TARGETS = ("target_recording", "target_audio")


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of all shards of a folder; of several splits each has a folder of its own."""
    folders = sorted({path.parent for path in source.rglob("cuts.*.jsonl*")}) if source.is_dir() else []
    if not folders:
        raise UserError(f"{source}: expected a folder of Shar, with cuts.000000.jsonl.gz and recording.000000.tar")
    for folder in folders:
        split = folder.relative_to(source).parts[0] if folder != source else ""
        if split and not asked.wants(split):
            continue
        for cuts in sorted(folder.glob("cuts.*.jsonl*")):
            for row in _shard(cuts, cuts.name.split(".")[1], asked):
                yield {"split": split, **row}


def _shard(cuts: Path, number: str, asked: Asked) -> Iterator[Row]:
    path = cuts.parent / f"recording.{number}.tar"
    packed = next(cuts.parent.glob(f"recording.{number}.tar.*"), None)
    if packed is not None and not path.is_file():
        raise UserError(f"{packed}: compressed, so that nothing in it can be read in place; unpack it to {path.name}")
    target = next((one for name in _TARGETS if (one := cuts.parent / f"{name}.{number}.tar").is_file()), None)
    others = _pairs(target) if target is not None else iter(())
    for cut, one, other in zip_longest(json_lines(cuts, asked.left_out), _pairs(path), others):
        if cut is None or one is None:
            what = "fewer cuts than recordings" if cut is None else "fewer recordings than cuts"
            raise UserError(f"{cuts}: {what} in {path.name}: nothing fits")
        name = str(cut.get("id"))
        for stored, where in ((one, path), (other, target)):
            if stored is not None and stored.name.rpartition(".")[0] != name:
                raise UserError(f"{where}: {stored.name} stands where the cut {name!r} is expected: nothing fits")
        if one.name.endswith(".nodata"):
            asked.left_out("a cut without a recording", name)
            continue
        # The recording in the tar file is what was cut out, whatever the cut says of its own.
        whole = {**cut, "start": 0.0, "recording": {"duration": cut.get("duration")}}
        for row in rows_of_cut(whole, member_name(str(path), one.place, one.size), asked):
            if target is not None and other is not None and not other.name.endswith(".nodata"):
                row["tgt_audio"] = member_name(str(target), other.place, other.size)
            yield row


def _pairs(path: Path) -> Iterator[Stored]:
    """The first of each pair."""
    for place, one in enumerate(members(path)):
        if place % 2 == 0:
            yield one
