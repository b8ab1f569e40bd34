"""Codec frames of a corpus, found by id.

A line is `{"id": "a", "streams": 8, "codes": "..."}`: 16-bit numbers (little-endian), frame by frame, in base64. A
second of 75 frames and 8 streams is 1.6 kB.

Letters: T frames, K streams.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..components.errors import UserError
from ..components.lines import open_text, parse_json, raw_lines
from .array_file import Arrays
from .derived import arrays_of
from .units import Units, columns

_VERSION = 1


class Codes(Mapping[str, np.ndarray]):
    """Utterance id -> (T, K) int32.

    Attributes:
        streams: K, the same for all.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._flat = Units(arrays)
        self._arrays = arrays
        self.streams = int(arrays.about["streams"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes, (self._arrays,)

    def __len__(self) -> int:
        return len(self._flat)

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._flat[name].reshape(-1, self.streams)

    def lengths(self, names: Iterable[str]) -> np.ndarray:
        """(N,) frames of each utterance, -1 where there are none."""
        found = self._flat.lengths(names)
        return np.where(found < 0, found, found // self.streams)


def read_codes(path: Path, cache: str | Path | None = None) -> Codes:
    """Read a file of codes; of several lines of an id the last one counts. Arguments as of `read_units`.

    Raises:
        UserError: a line that is not of this form, or one of another number of streams, with its number.
    """

    def make(folder: Path | None) -> Any:
        streams: list[int] = []
        about, arrays = columns(_lines(path, streams), folder)
        return {**about, "streams": streams[0] if streams else 1}, arrays

    return Codes(arrays_of(path, cache, "codes", _VERSION, make))


def line_of(name: str, codes: np.ndarray, recording: str | None = None) -> str:
    """One line of a file of codes, of (T, K) numbers below 65,536. `recording`: what they were made of."""
    content = base64.b64encode(np.ascontiguousarray(codes, "<u2").tobytes()).decode()
    made_of = {} if recording is None else {"recording": recording}
    line = {"id": name, **made_of, "streams": int(codes.shape[1]), "codes": content}
    return json.dumps(line, separators=(",", ":")) + "\n"


def parse_line(line: str | bytes) -> tuple[str, np.ndarray]:
    """The id and the (T, K) codes of a line. Raises ValueError for anything else."""
    try:
        row = parse_json(line)
        name, streams = row["id"], row["streams"]
        if not isinstance(name, str) or type(streams) is not int or streams < 1:
            raise ValueError(line)
        return name, np.frombuffer(base64.b64decode(row["codes"], validate=True), "<u2").reshape(-1, streams)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(line) from error


def _lines(path: Path, streams: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    with open_text(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            try:
                name, codes = parse_line(line)
            except ValueError:
                expected = '{"id": ..., "streams": 8, "codes": base64}'
                raise UserError(f"{path}, line {number}: expected {expected}") from None
            if codes.shape[1] != (streams or [codes.shape[1]])[0]:
                raise UserError(
                    f"{path}, line {number}: {codes.shape[1]} streams, but those before have {streams[0]}; write the "
                    "file anew"
                )
            streams[:] = [codes.shape[1]]
            yield name, codes.reshape(-1).astype(np.int32)
