"""Text by lines, in and out: a line ends at LF or CRLF and nowhere else.

Python's own line ends (`str.splitlines`, U+2028, a lone CR, form feeds) stand inside sentences of real corpora.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

LONGEST_LINE = 1 << 26
"""Bytes: no row is as long, and a file without line ends is not read whole."""

_BOM = b"\xef\xbb\xbf"


def raw_lines(file: BinaryIO, name: object) -> Iterator[bytes]:
    """Lines of an open file without their ends, and without a byte order mark.

    Args:
        file: open for reading bytes.
        name: for messages.

    Raises:
        UserError: a line over `LONGEST_LINE`.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"{name}, line {number}: longer than {LONGEST_LINE >> 20} MB: this is no text by lines")
        if number == 1:
            line = line.removeprefix(_BOM)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def open_text(path: Path) -> BinaryIO:
    """Open a file that is read by lines.

    Raises:
        UserError: it is no regular file (a device or a pipe that nobody writes to would be read for ever); what a shell
            passes under /dev/fd is.
        OSError: it cannot be opened.
    """
    if not str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: a folder; expected a file")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: no regular file; to read a pipe, give it on standard input")
    return path.open("rb")


def parse_json(text: str | bytes) -> Any:
    """The value in a text of JSON that someone else wrote.

    Raises:
        ValueError: it is none, or nested deeper or with longer numbers than can be read: what and where, in one line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.object[error.start]:#04x} at byte {error.start + 1}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deep") from None
    except ValueError:  # Python's own guard against quadratic time
        raise ValueError("not JSON that can be read: a number with thousands of digits") from None


def read_json(path: Path, kind: type = dict, advice: str = "") -> Any:
    """The value in a small file of JSON that voxzoo wrote.

    Args:
        path: the file.
        kind: what the value must be, dict or list.
        advice: what to do where it is damaged, for the end of the message.

    Raises:
        UserError: it cannot be read, or holds another kind of value.
    """
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}{advice}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{advice}") from None
    if not isinstance(found, kind):
        raise UserError(f"{path}: damaged: holds a {type(found).__name__}, expected a {kind.__name__}{advice}")
    return found


_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def json_line(content: Any, default: Callable[[Any], Any] | None = None) -> str:
    """One line of JSON, without its end, that every reader takes for one line and that can be written as UTF-8: lone
    surrogates, and what some readers take for line ends, are escaped. `default`: as of `json.dumps`."""
    text = json.dumps(content, ensure_ascii=False, default=default)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
