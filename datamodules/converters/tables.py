"""Rows of tables that others wrote: tab-separated values with their quotes, JSON lines, and what columns are called."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...components.errors import UserError
from ...components.lines import open_text, parse_json, raw_lines

LeftOut = Callable[[str, object], None]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_text(path) as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                with gzip.open(file) as text:
                    yield text  # pyright: ignore[reportReturnType]
            else:
                file.seek(0)
                yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is cut off or damaged ({error})") from None


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, also of a gzip file. Raises UserError: it is missing, or no UTF-8 text."""
    with _opened(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 text: byte {line[error.start]:#04x} at column {error.start + 1}"
                ) from None


def json_lines(path: Path, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines, also of a gzip file."""
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            left_out(f"a line of {path.name} that is no JSON", f"line {number}: {error}")
            continue
        if isinstance(row, dict):
            yield row
        else:
            left_out(f"a line of {path.name} that is no JSON object", f"line {number}")


def tsv_rows(path: Path, left_out: LeftOut, header: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """Rows of tab-separated values; a quotation mark never joins lines.

    Args:
        path: the file.
        left_out: is told of rows with too few or too many columns.
        header: names of the columns, where the file has no line of them.
    """
    names = None if header is None else list(header)
    for number, line in enumerate(text_lines(path), 1):
        if names is None:
            names = line.split("\t")
            continue
        if not line.strip():
            continue
        values = line.split("\t")
        if len(values) != len(names):
            left_out(f"a row of {path.name} with {len(values)} columns in place of {len(names)}", f"line {number}")
            continue
        yield dict(zip(names, values))


def require_columns(path: Path, row: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises UserError: the table lacks one."""
    lacking = [name for name in names if name not in row]
    if lacking:
        raise UserError(f"{path}: has no column {', '.join(map(repr, lacking))}; it has {', '.join(map(repr, row))}")


_PAIRS = re.compile(r'(?:[^"]|"")*""(?:[^"]|"")*')


def unquoted(text: str) -> str:
    """A text as it was before a program for tables wrote it.

    One that writes CSV puts a text with quotation marks into others and doubles its own; one that writes none escapes
    them by a backslash. A text between two marks and without any inside is a quotation, and stays.
    """
    if len(text) > 2 and text[0] == text[-1] == '"' and _PAIRS.fullmatch(text[1:-1]):
        return text[1:-1].replace('""', '"')
    return text.replace('\\"', '"')


CALLED = {
    "id": ("id", "utt_id", "utterance_id", "key", "segment_id"),
    "audio": ("audio", "audio_filepath", "audio_path", "file_name", "path", "wav", "file"),
    "src_text": ("src_text", "text", "transcription", "transcript", "sentence", "source_text", "raw_transcription"),
    "tgt_text": ("tgt_text", "translation", "translated_text", "target_text"),
    "tgt_audio": ("tgt_audio", "target_audio", "tgt_file_name", "target_file_name"),
    "src_lang": ("src_lang", "source_lang", "source_language", "lang", "language", "locale"),
    "tgt_lang": ("tgt_lang", "target_lang", "target_language"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "duration": ("duration", "duration_seconds", "audio_duration"),
    "offset": ("offset", "start"),
    "channel": ("channel",),
    "split": ("split",),
}
"""Key of a manifest -> what tables call it, the usual name first."""


def named_values(row: Mapping[str, Any], columns: Mapping[str, str] = {}) -> dict[str, Any]:
    """What of a row of someone's table a manifest says: by `columns` (key -> column), else by usual names.

    Raises:
        UserError: a column of `columns` is not there.
    """
    for key, column in columns.items():
        if key not in CALLED:
            raise UserError(f"--column {key}={column}: a manifest has no such key; it has {', '.join(CALLED)}")
        if column not in row:
            raise UserError(f"--column {key}={column}: no such column; there are {', '.join(map(str, row))}")
    found = {}
    for key, names in CALLED.items():
        column = columns.get(key) or next((name for name in names if row.get(name) not in (None, "")), None)
        if column is not None and row[column] not in (None, ""):
            found[key] = row[column]
    return found
