"""A data folder of Kaldi or ESPnet.

    wav.scp: recording, file (or a command that ends in |, or an archive and a place in it: neither is read here)
    segments: utterance, recording, begin, end (seconds; end -1: to the end), and of old a channel; without it
        utterances are recordings
    text: utterance, words; utt2spk, utt2lang, utt2dur, reco2dur: utterance or recording, value
    text.LANG, text.tc.LANG, text.lc.LANG, text.lc.rm.LANG: the same of other languages and spellings, as ESPnet has it

Cased texts go before others. The files may be in any order. Layout: https://kaldi-asr.org/doc/data_prep.html, and
`egs2/TEMPLATE/st1` of ESPnet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ...components.languages import is_language, match
from ..lookup import Lookup
from .conversion import Asked, Row
from .tables import text_lines

_SPELLINGS = ("tc.", "", "lc.", "lc.rm.")
_ARCHIVE = re.compile(r":\d+(?:\[.*\])?$")


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a folder; it is named after its split where that is a usual name."""
    if not (source / "wav.scp").is_file():
        raise UserError(f"{source}: expected the data folder of Kaldi, with wav.scp")
    recordings = Lookup(_recordings(source / "wav.scp", source))
    texts = _lookup(_text(source, asked.src_lang) or source / "text")
    path = _text(source, asked.tgt_lang) if asked.tgt_lang else None
    translations = _lookup(path)
    speakers, languages = _lookup(source / "utt2spk"), _lookup(source / "utt2lang")
    lengths, whole = _lookup(source / "utt2dur"), _lookup(source / "reco2dur")
    if asked.tgt_lang and path is None:
        raise UserError(
            f"{source}: no text in {asked.tgt_lang}; expected text.{asked.tgt_lang} or text.tc.{asked.tgt_lang}"
        )
    cut = source / "segments"
    for name, recording, part in _segments(cut, asked) if cut.is_file() else _whole(source / "wav.scp"):
        audio = recordings.get(recording)
        if audio is None:
            asked.left_out("a segment of a recording that wav.scp does not have", name)
            continue
        seconds = None if "offset" in part else lengths.get(name) or whole.get(recording)
        yield {
            "id": name,
            "audio": audio,
            "duration": seconds,
            **part,
            "src_lang": languages.get(name),
            "src_text": texts.get(name),
            "tgt_text": translations.get(name),
            "tgt_lang": asked.tgt_lang if path is not None else None,
            "speaker": speakers.get(name),
        }


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for line in text_lines(path):
        words = line.split(None, 1)
        if words:
            yield words[0], words[1].strip() if len(words) > 1 else ""


def _lookup(path: Path | None) -> Lookup:
    return Lookup(_pairs(path) if path is not None and path.is_file() else ())


def _text(source: Path, lang: str) -> Path | None:
    """The file of texts in a language, the best spelling that there is."""
    for spelling in _SPELLINGS:
        files = {path.name.removeprefix(f"text.{spelling}"): path for path in source.glob(f"text.{spelling}*")}
        files = {code: path for code, path in files.items() if is_language(code)}
        found = match(lang, files) if lang else None
        if found is not None:
            return files[found]
    return None


def _recordings(path: Path, source: Path) -> Iterator[tuple[str, str]]:
    for number, (name, place) in enumerate(_pairs(path), 1):
        if place.endswith("|"):
            raise UserError(
                f"{path}, line {number}: the recording {name!r} is a command, which is not run here; run it once, "
                f"`{place.removesuffix('|').strip()[:60]} > wav/{name}.wav`, and name the files in wav.scp "
                "(`wav-copy scp:wav.scp scp:files.scp` writes all)"
            )
        if _ARCHIVE.search(place):
            raise UserError(
                f"{path}, line {number}: the recording {name!r} lies in an archive of Kaldi; write it as a file, "
                "`wav-copy scp:wav.scp scp:files.scp`, and name the files in wav.scp"
            )
        file = Path(place)
        # As Kaldi reads it: from where its commands are called, the folder above `data`; or beside the list.
        yield name, str(file if file.is_absolute() or file.is_file() else source / file)


def _whole(path: Path) -> Iterator[tuple[str, str, Row]]:
    for name, _ in _pairs(path):
        yield name, name, {}


def _segments(path: Path, asked: Asked) -> Iterator[tuple[str, str, Row]]:
    for number, line in enumerate(text_lines(path), 1):
        words = line.split()
        if not words:
            continue
        try:
            name, recording, begin, end = words[0], words[1], float(words[2]), float(words[3])
        except (IndexError, ValueError):
            asked.left_out("a line of segments without recording, begin and end", f"line {number}")
            continue
        part: Row = {"offset": begin}
        if end != -1:
            if end <= begin:
                asked.left_out("a segment that ends before it begins", name)
                continue
            part["duration"] = end - begin
        if len(words) > 4 and words[4].isdigit():
            part["channel"] = int(words[4])
        yield name, recording, part
