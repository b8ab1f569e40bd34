"""Whisper on real speech, against transformers: the same files, the same words?

    python -m benchmarks.whisper_real_speech MODEL PROMPTS --languages eng,spa --limit 30 --json result.json

MODEL is a Whisper folder in the layout of transformers. PROMPTS holds a manifest for each language: `eng.jsonl` (audio,
text, split) is written down in English, `spa-eng.jsonl` (audio, tgt_text, split) is translated into it; audio paths are
relative to PROMPTS. Files of more than 30 s are cut at quiet places, as `voxzoo translate` does, and both sides read
the same pieces. Each side uses its own front end, tokenizer and search, as the folder sets them; times are CPU seconds
of the process, feature extraction included, and say something on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("prompts", metavar="PROMPTS", type=Path)
    parser.add_argument("--languages", default="eng,spa,fra,ita,rus", help="ISO 639-3 codes (default %(default)s)")
    parser.add_argument("--split", default="test", help="rows of this split (default %(default)s; all: every row)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N files a language")
    parser.add_argument("--beam", type=int, default=1, metavar="N", help="beam size (default 1: greedy)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    sides = {"transformers": Peer(args.model, args.beam), "voxzoo": Ours(args.model, args.beam)}
    rows = []
    print(f"{'':10} {'files':>5} {'audio s':>8} {'same text':>10} {'WER':>6} {'BLEU':>6} {'CPU s':>15} {'ratio':>6}")
    for lang in args.languages.split(","):
        row = compare(sides, args.prompts, lang, args.split, args.limit, args.batch_size)
        rows.append(row)
        wer, bleu = (f"{row[name]:.2f}" if row[name] is not None else "-" for name in ("wer", "bleu"))
        cpu = row["cpu_seconds"]
        print(
            f"{row['direction']:10} {row['files']:5} {row['audio_seconds']:8.1f} {row['same']:>4} of {row['files']:<3} "
            f"{wer:>6} {bleu:>6} {cpu['transformers']:7.1f} {cpu['voxzoo']:7.1f} {row['ratio']:6.2f}",
            flush=True,
        )
        for item in row["different"]:
            print(f"  {item['id']}\n    transformers: {item['transformers']}\n    voxzoo:       {item['voxzoo']}")
    if args.json is not None:
        settings = {"beam": args.beam, "batch_size": args.batch_size, "threads": args.threads, "split": args.split}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(row["same"] == row["files"] for row in rows) else 1


def compare(
    sides: dict[str, Any], prompts: Path, lang: str, split: str, limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Both sides over the files of one language, batch by batch in turns."""
    from voxzoo.datamodules.audio import load_audio
    from voxzoo.tasks.scoring.normalise import normalise
    from voxzoo.tasks.scoring.speech import cut_at_quiet
    from voxzoo.tasks.scoring.text import Bleu, ErrorRate

    name, text = ("eng", "text") if lang == "eng" else (f"{lang}-eng", "tgt_text")
    found = [json.loads(line) for line in (prompts / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [row for row in found if split in ("all", row["split"])][:limit]
    pieces: list[tuple[int, Tensor]] = []
    for number, row in enumerate(found):
        clip = load_audio(prompts / row["audio"], 16000)
        pieces += [(number, piece) for _, piece in cut_at_quiet(clip, 16000, 30.0)]
    said: dict[str, list[list[str]]] = {side: [[] for _ in found] for side in sides}
    spent = dict.fromkeys(sides, 0.0)
    for start in range(0, len(pieces), batch_size):
        numbers, clips = zip(*pieces[start : start + batch_size], strict=True)
        for side, model in sides.items():
            before = time.process_time()
            for number, text_of_piece in zip(numbers, model.english(list(clips), lang), strict=True):
                said[side][number].append(text_of_piece)
            spent[side] += time.process_time() - before
    seconds = sum(len(piece) for _, piece in pieces) / 16000
    ours, theirs = ([" ".join(texts) for texts in said[side]] for side in ("voxzoo", "transformers"))
    references = [row[text] for row in found]
    plain, wanted = ([normalise(line, "eng") for line in lines] for lines in (ours, references))
    wer, bleu = ErrorRate("word"), Bleu("eng")
    return {
        "direction": name,
        "files": len(found),
        "audio_seconds": round(seconds, 1),
        "same": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        "wer": wer.score(wer.statistics(plain, wanted).sum(0)) if lang == "eng" else None,
        "bleu": bleu.score(bleu.statistics(ours, references).sum(0)) if lang != "eng" else None,
        "cpu_seconds": {side: round(value, 2) for side, value in spent.items()},
        "ratio": spent["transformers"] / max(spent["voxzoo"], 1e-9),
        "different": [
            {"id": row["id"], "transformers": b, "voxzoo": a}
            for row, a, b in zip(found, ours, theirs, strict=True)
            if a != b
        ],
    }


class Ours:
    """voxzoo: the folder's parts as a `SpeechToText` task."""

    def __init__(self, folder: Path, beam: int) -> None:
        from voxzoo.components.converters import from_transformers
        from voxzoo.components.layers.linear import pack_for_inference
        from voxzoo.components.search import SearchOptions
        from voxzoo.tasks import SpeechToText

        model = from_transformers(folder)
        settings = {key: value for key, value in model.nodes["task"].items() if key not in ("_target_", "search")}
        search = {key: value for key, value in model.nodes["task"]["search"].items() if key != "_target_"}
        search.update(method="greedy" if beam == 1 else "beam", beam_size=beam)
        given: dict[str, Any] = {**model.parts(), "tokenizer": model.tokenizer, "frontend": model.frontend}
        self.task = SpeechToText(**given, **settings, search=SearchOptions(**search)).eval()
        pack_for_inference(self.task)

    def english(self, clips: list[Tensor], lang: str) -> list[str]:
        """English text of (N,) samples spoken in `lang`."""
        from voxzoo.components.types import Batch, Padded

        batch = Batch(
            ids=tuple(map(str, range(len(clips)))),
            src_lang=(lang,) * len(clips),
            tgt_lang=("eng",) * len(clips),
            speech=Padded.from_list([self.task.frontend(clip) for clip in clips]),
        )
        mode = "asr" if lang == "eng" else "s2tt"
        return [prediction.text or "" for prediction in self.task.predict(batch, task=mode)]


class Peer:
    """transformers, with the feature extractor and the tokenizer of the folder."""

    def __init__(self, folder: Path, beam: int) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.features = transformers.WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.beam = beam

    def english(self, clips: list[Tensor], lang: str) -> list[str]:
        """English text of (N,) samples spoken in `lang`, without the space that Whisper begins with."""
        from voxzoo.components.tokenizer.languages import WHISPER_LANGUAGES

        features = self.features([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            ids = self.model.generate(
                features.input_features,
                language=WHISPER_LANGUAGES[lang],
                task="transcribe" if lang == "eng" else "translate",
                num_beams=self.beam,
            )
        return [text.removeprefix(" ") for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


if __name__ == "__main__":
    sys.exit(main())
