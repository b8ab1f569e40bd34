"""Cuts of Lhotse, `cuts.jsonl` or `cuts.jsonl.gz`.

    {"id": "c1", "start": 1.5, "duration": 3.2, "channel": 0, "type": "MonoCut",
     "supervisions": [{"id": "s1", "start": 0.0, "duration": 3.2, "text": "...", "language": "en",
                       "speaker": "a", "custom": {...}}],
     "recording": {"sources": [{"type": "file", "channels": [0], "source": "talk.wav"}],
                   "sampling_rate": 16000, "num_samples": ..., "duration": 600.0, "transforms": null}}

A cut with several supervisions becomes a row for each of them. A translation stands in `custom` of the supervision or
of the cut: `translated_text` (a text, or a map of language to text, as `iwslt22_ta` writes it), `tgt_text`,
`translation` or `answer`, with `target_lang`. Mixed cuts, transforms, and recordings that are no files are left out.
Layout: https://lhotse.readthedocs.io/en/latest/cuts.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ...components.languages import match
from .conversion import Asked, Row
from .tables import json_lines

_TRANSLATIONS = ("translated_text", "tgt_text", "translation", "target_text", "answer")
_NEAR = 0.001  # seconds by which a cut may miss the ends of its recording


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a file of cuts, or of the one in a folder."""
    if source.is_dir():
        files = sorted(source.glob("*cuts*.jsonl*"))
        if len(files) != 1:
            there = ", ".join(path.name for path in files) or "none"
            raise UserError(f"{source}: expected one file of cuts; there are {there}: name it (or use `shar`)")
        (source,) = files
    for cut in json_lines(source, asked.left_out):
        audio = recording_of(cut, source.parent, asked)
        if audio is not None:
            yield from rows_of_cut(cut, audio, asked)


def recording_of(cut: Mapping[str, Any], folder: Path, asked: Asked) -> str | None:
    """The file that a cut is cut out of; None, and said, where there is none."""
    name, kind, recording = cut.get("id", "?"), cut.get("type", "MonoCut"), cut.get("recording")
    reason = None
    if kind not in ("MonoCut", "MultiCut"):
        reason = f"a {kind}, which is no part of one recording"
    elif not isinstance(recording, dict):
        reason = "a cut without a recording (features alone)"
    elif recording.get("transforms"):
        reason = "a cut whose recording is transformed (speed, volume ...): write its audio first, `cuts.save_audios`"
    if reason is not None:
        asked.left_out(reason, name)
        return None
    assert isinstance(recording, dict)
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") != "file":
        kinds = ", ".join(sorted({str(one.get("type")) for one in sources})) or "none"
        asked.left_out("a recording in several files" if len(sources) > 1 else f"a recording of the kind {kinds}", name)
        return None
    path = Path(str(sources[0]["source"]))
    return str(path if path.is_absolute() or path.is_file() else folder / path)


def rows_of_cut(cut: Mapping[str, Any], audio: str, asked: Asked) -> Iterator[Row]:
    """A row for each supervision.

    Args:
        cut: as it is written.
        audio: its recording, or a member.
        asked: what is asked.
    """
    recording, spoken = cut.get("recording") or {}, cut.get("supervisions") or [{}]
    start, whole = float(cut.get("start") or 0.0), recording.get("duration")
    channel = cut.get("channel")
    channels = recording.get("channel_ids") or (recording.get("sources") or [{}])[0].get("channels") or [0]
    for one in spoken:
        alone = len(spoken) == 1
        offset = start if alone else start + float(one.get("start") or 0.0)
        duration = cut.get("duration") if alone else one.get("duration")
        row: Row = {
            "id": cut.get("id") if alone else one.get("id"),
            "audio": audio,
            "duration": duration,
            "src_lang": one.get("language"),
            "src_text": one.get("text"),
            "speaker": one.get("speaker"),
            **_translation({**(cut.get("custom") or {}), **(one.get("custom") or {})}, asked),
        }
        if offset > _NEAR or (whole is not None and duration is not None and abs(whole - offset - duration) > _NEAR):
            row["offset"] = offset
        if isinstance(channel, int) and len(channels) > 1:
            row["channel"] = channel
        yield row


def _translation(custom: Mapping[str, Any], asked: Asked) -> Row:
    found = next((custom[key] for key in _TRANSLATIONS if custom.get(key)), None)
    lang = custom.get("target_lang") or custom.get("tgt_lang")
    if isinstance(found, dict):
        lang = match(asked.tgt_lang, found) if asked.tgt_lang else (next(iter(found)) if len(found) == 1 else None)
        found = found.get(lang) if lang else None
    if not isinstance(found, str):
        return {}
    source = custom.get("source_lang")
    return {"tgt_text": found, "tgt_lang": lang, **({"src_lang": source} if source else {})}
