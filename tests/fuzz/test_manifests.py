"""Any content of a manifest is read, or refused with the line and the key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from voxzoo.components.errors import UserError
from voxzoo.datamodules.manifest import KEYS, Utterance, read_manifest
from voxzoo.datamodules.rows import open_rows

from .attempts import Attempt

GOOD = {"id": "a", "src_lang": "spa", "src_text": "hola", "tgt_lang": "eng", "tgt_text": "hello"}

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "a/b", "..", "\x1b[31m", "a\nb", "\u2028", "\u200c", "\ud800", "\0", "x" * 5000]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([10**19, -(10**400), 2**63, 1e308, 1e-320, 0.5, 1e9]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
LANGS = st.sampled_from(["spa", "eng", "zh", "en_US", "eng_Latn", "xx-yy", "tlh", "qaa", "ENG", "sr-Latn-RS", ""])
PATHS = st.sampled_from(
    ["clip.wav", "./clip.wav", "none.wav", ".", "", "/", "pipe", "loop", "folder", "/dev/zero", "/dev/null", "text.txt",
     "clip.wav#1", "x" * 300 + ".wav", "a\0b.wav", "clip.wav/x", "~", "http://h/x.wav", "\ud800.wav", "noread.wav",
     "data::x", "$HOME/x.wav", "clip.wav:16000:8000"]
)  # fmt: skip
OTHER = ("audio_filepath", "start", "end", "sentence", "lang", "text", "offset", "channel", "Id", "\x1b", "", "task")
OF = {
    **dict.fromkeys(("src_lang", "tgt_lang", "lang"), LANGS),
    **dict.fromkeys(("audio", "tgt_audio", "audio_filepath"), PATHS),
    **dict.fromkeys(("duration", "offset", "channel", "start", "end"), NUMBERS),
    "tgt_text": st.one_of(TEXTS, st.lists(st.one_of(TEXTS, st.none(), VALUES), max_size=3)),
}


def rows() -> st.SearchStrategy[dict[str, Any]]:
    """A good row, some keys of which are another value or of another kind, or are not there."""
    names = st.sampled_from([*KEYS, *OTHER])
    changed = st.lists(
        names.flatmap(lambda name: st.tuples(st.just(name), st.one_of(OF.get(name, TEXTS), VALUES))), max_size=4
    )
    gone = st.lists(st.sampled_from(sorted(GOOD)), max_size=1)
    return st.builds(
        lambda change, without: {k: v for k, v in {**GOOD, **dict(change)}.items() if k not in without}, changed, gone
    )


def lines() -> st.SearchStrategy[bytes]:
    def spoiled(text: bytes, place: int, by: bytes) -> bytes:
        place %= len(text) + 1
        return text[:place] + by + text[place + len(by) :]

    good = st.builds(lambda row: json.dumps(row).encode(), rows())
    return st.one_of(
        good,
        st.builds(spoiled, good, st.integers(0, 200), st.binary(max_size=3)),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=20),
        st.sampled_from(
            [b'{"id": ' + b"1" * 5000 + b"}", b"[" * 20000, b'{"a":' * 20000, b"\xff\xfe{", b"\xef\xbb\xbf{}", b"NaN"]
        ),
    )


CONTENT = st.builds(
    lambda mark, parts, end: mark + b"".join(line + behind for line, behind in parts) + end,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(st.tuples(lines(), st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8"])), max_size=4),
    st.sampled_from([b"", b"", b"\x1a", b"{"]),
)

CELLS = st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=4))
TABLE = st.builds(
    lambda header, cells, mark: mark + b"\n".join(b"\t".join(row) for row in [[h.encode() for h in header], *cells]),
    st.lists(st.sampled_from([*KEYS, *KEYS, "lang", "text", "start", "offset", "channel", ""]), max_size=9),
    st.lists(
        st.lists(
            st.one_of(CELLS, LANGS.map(str.encode), PATHS.map(lambda p: p.encode("utf-8", "surrogatepass"))),
            min_size=3, max_size=9,
        ),
        max_size=3,
    ),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A folder with a clip and things that are none."""
    folder = tmp_path_factory.mktemp("manifests")
    shutil.copy(clip, folder / "clip.wav")
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("no audio")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    shutil.copy(clip, folder / "noread.wav")
    (folder / "noread.wav").chmod(0)
    return folder


def check(content: bytes, name: str, place: Path, attempt: Attempt) -> None:
    path = place / name
    path.write_bytes(content)
    done = attempt("data", "validate", path, names=(name,))
    # The list and the columns of a manifest are two readers: they take the same, and read the same.
    listed, columns = (outcome(read, path) for read in (read_manifest, open_rows))
    assert listed == columns
    assert done.code == 1 or isinstance(listed, list)


def outcome(read: Callable[[Path], Sequence[Utterance]], path: Path) -> list[Utterance] | str:
    try:
        return list(read(path))
    except UserError as error:
        return str(error)


@given(content=CONTENT)
@example(content=b'{"id": ' + b"1" * 5000 + b"}\n")
@example(content=json.dumps({**GOOD, "duration": 10**400}).encode())
@example(content=json.dumps({**GOOD, "audio": "clip.wav", "offset": 10**400}).encode())
@example(content=json.dumps({**GOOD, "id": "\ud800"}).encode())
@example(content=json.dumps({**GOOD, "audio": "pipe"}).encode())
@example(content=json.dumps({**GOOD, "audio": "/dev/zero"}).encode())
@example(content=json.dumps({**GOOD, "audio": "a\0b.wav"}).encode())
def test_json_lines(content: bytes, place: Path, attempt: Attempt):
    check(content, "rows.jsonl", place, attempt)


@given(content=TABLE)
@example(content=b"id\tid\nx\ty\n")
@example(content=b"id\tsrc_lang\tsrc_text\n\xed\xa0\x80\tspa\tx\n")
def test_tables(content: bytes, place: Path, attempt: Attempt):
    check(content, "rows.tsv", place, attempt)
