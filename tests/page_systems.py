"""Systems of which a page is made: references of a manifest, and what each made of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import soundfile

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", "<img src=x onerror=alert(3)>", "<!-- <script>",
    "{{ 7 * 7 }} {% raw %}", "&lt;b&gt; &amp;", "\u2028 and \u2029 inside", "'\"` onload='alert(4)'",
    "\u202eback\ud800",
    "javascript:alert(5)", "\x00\x1b[31m",
)  # fmt: skip
WORDS = ("uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "perro", "gato", "casa", "árbol", "niño", "señal")


def corpus(folder: Path, utterances: int, systems: int = 2, hostile: bool = False, clips: int = 0) -> list[Path]:
    """Write references.jsonl, a manifest, and a file of hypotheses for each system, with audio of the first ones."""
    drawn = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows, texts = [], []
    for number in range(utterances):
        words = [drawn.choice(WORDS) for _ in range(drawn.randrange(3, 16))]
        text = HOSTILE[number % len(HOSTILE)].replace("\x00", "") if hostile and number < len(HOSTILE) else ""
        texts.append(" ".join([*words, text]).strip())
        row = {
            "id": f"u{number:05d}{text[:20] if hostile else ''}", "src_lang": ("que", "ayr")[number % 2],
            "tgt_lang": "spa", "src_text": f"{text} qhichwa {number}", "tgt_text": texts[-1],
            "duration": round(len(texts[-1]) / 13, 2), "speaker": f"<i>speaker {number % 7}</i>",
            "<b>field</b>": ("<u>one</u>", "two")[number % 2],
        }  # fmt: skip
        if number < clips:
            row["audio"] = f"audio/{number}.wav"
            speech(folder / row["audio"], 1.0, 200)
        rows.append(row)
    (folder / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for system in range(systems):
        path = folder / f"system{system}.jsonl"
        lines = []
        for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
            said = " ".join(w if drawn.random() > 0.1 * (system + 1) else drawn.choice(WORDS) for w in text.split(" "))
            line = {
                "id": row["id"], "task": "s2st", "src_lang": row["src_lang"], "tgt_lang": "spa",
                "reference": row["tgt_text"], "hypothesis": said,
            }  # fmt: skip
            if number < clips:
                line["audio"] = f"audio/{number}.{system}.wav"
                speech(folder / line["audio"], 1.0, 300 + 100 * system)
            lines.append(json.dumps(line) + "\n")
        path.write_text("".join(lines))
        files.append(path)
    return files


def speech(path: Path, seconds: float, pitch: float) -> None:
    """A buzz with a melody and noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = np.sign(np.sin(2 * np.pi * pitch * time + 3 * np.sin(4 * time))) * np.abs(np.sin(5 * time))
    noise = np.random.default_rng(int(pitch)).normal(size=len(time))
    soundfile.write(path, 0.2 * wave + 0.01 * noise, 16000)
