"""`voxzoo evaluate`"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HELP = "score a run on a split: text, and speech through a recogniser"
EXAMPLE = "voxzoo evaluate runs/quickstart --split test_seen --limit 200"

TASKS = ("s2st", "t2st", "s2tt", "t2tt", "u2s", "asr")
"""In the order in which a task lends its scores to the top of the answer."""
RECOGNISERS = ("base", "tiny.en", "none")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("--split", default="test", help="name of the split in the run's data (default test)")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="another corpus than the run's: a .jsonl or .tsv manifest; give --task with it",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances alone")
    parser.add_argument(
        "--task", choices=TASKS, help="what to do (default: what the data says, with speech where the run speaks)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="utterances at a time (default 16)")
    parser.add_argument(
        "--beam", type=int, metavar="N", help="beam size of the text (default: as the run was configured)"
    )
    parser.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help="cut longer audio at quiet places and join what comes of the pieces (default: what the model cannot "
        "take whole)",
    )
    parser.add_argument(
        "--recogniser",
        choices=RECOGNISERS,
        default="base",
        help="Whisper model that judges speech output: base (default), tiny.en (faster, many more errors), or none",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--out", metavar="DIR", help="where the files go (default RUN/evaluation)")


def run(args: argparse.Namespace) -> dict:
    from ...components.errors import UserError
    from ..run import load_run
    from ..training import quiet_libraries

    for flag in ("--limit", "--batch-size", "--beam", "--segment"):
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: expected at least 1")
    quiet_libraries()
    loaded = load_run(args.run, device=args.device, pack=True)
    folder = Path(args.run) if Path(args.run).is_dir() else loaded.folder
    answer = {"status": "ok", "run": str(args.run), "checkpoint": str(getattr(loaded, "checkpoint", ""))}
    answer |= evaluate(
        loaded.task,
        loaded.datamodule(args.manifest, args.split),
        args.split,
        Path(args.out) if args.out else folder / "evaluation",
        limit=args.limit,
        task=args.task,
        batch_size=args.batch_size,
        beam=args.beam,
        segment=args.segment,
        recogniser=args.recogniser,
    )
    if not args.json:
        show(answer)
    return answer


def evaluate(
    model: Any,
    data: Any,
    split: str,
    out: Path,
    *,
    limit: int | None = None,
    task: str | None = None,
    batch_size: int = 16,
    beam: int | None = None,
    segment: float | None = None,
    recogniser: str = "base",
) -> dict[str, Any]:
    """Predict a split and score it; write `<split>.json`, `<split>.hypotheses.jsonl`, `<split>/<id>.wav` into `out`.

    Args:
        model: a `tasks.Task` in evaluation mode.
        data: the DataModule of its config.
        split, limit: which utterances; None for all.
        task: what to do with every utterance; None for what the data says.
        batch_size, beam: utterances at a time; beam size, None for the model's own.
        segment: seconds; longer audio is cut at quiet places. None: what the model cannot take whole.
        recogniser: `base`, `tiny.en` or `none`.

    Returns:
        Plain dict. `tasks` holds the scores of each task (see `scoring.evaluation.score_rows`); the first
        also stands at the top. `dropped`: utterances that could not be served; `notes`: what was left out, and why.

    Raises:
        UserError: unknown split, a task the model cannot do, or nothing left to score.
    """
    from ...components.errors import UserError
    from ..scoring.evaluation import score_rows
    from ..scoring.speech import write_whole

    rows, dropped = choose_rows(model, data, split, task, limit)
    notes: list[str] = []
    speaks = any(row.task.endswith("2st") or row.task == "u2s" for row in rows)
    judge = open_recogniser(recogniser, notes) if speaks else None
    evaluation = _Evaluation(model, data, out / split, judge, notes, dropped, batch_size, beam, segment)
    scored = evaluation.serve(rows)
    if not scored:
        reason = dropped[0]["reason"]
        raise UserError(f"--split {split}: none of {len(rows)} utterances could be served; the first: {reason}")
    groups: defaultdict[str, list[Any]] = defaultdict(list)
    for row in scored:
        groups[row.task].append(row)
    signature = judge.signature if judge is not None else None
    scores = {name: score_rows(groups[name], signature) for name in TASKS if name in groups}
    main = next(iter(scores.values()))
    lines = "".join(json.dumps(row.line(), ensure_ascii=False) + "\n" for row in scored)
    answer: dict[str, Any] = {
        "split": split,
        **{name: value for name, value in main.items() if name not in ("num_utterances", "directions")},
        **{name: scores["asr"][name] for name in ("wer", "cer") if name in scores.get("asr", {})},
        "num_utterances": len(scored),
        "num_dropped": len(dropped),
        "dropped": dropped,
        "recogniser": signature,
        "tasks": scores,
        "notes": notes,
        "hypotheses": str(out / f"{split}.hypotheses.jsonl"),
    }
    write_whole(out / f"{split}.hypotheses.jsonl", lines.encode())
    write_whole(out / f"{split}.json", json.dumps(answer, ensure_ascii=False, indent=1).encode())
    return answer


def choose_rows(
    model: Any, data: Any, split: str, task: str | None, limit: int | None
) -> tuple[list[Any], list[dict[str, str]]]:
    """The utterances to serve, each with its task, in the order of the manifest, and those that cannot be served.

    What the data asks for is spoken where the model can speak: s2tt becomes s2st, and its text is scored too.

    Raises:
        UserError: unknown split, or the model can do none of the tasks.
    """
    from ...components.errors import UserError

    asked = (task,) if task else data.tasks
    wanted: dict[str, str] = {}
    for name in asked:
        spoken = {"s2tt": "s2st", "t2tt": "t2st"}.get(name, name) if task is None else name
        served = next((mode for mode in (spoken, name) if mode in model.modes), None)
        if served is not None and served not in wanted.values():
            wanted[name if served != "u2s" else "s2st"] = served
    if not wanted and model.modes == {"u2s"} and task is None:
        wanted = {"s2st": "u2s"}
    if not wanted:
        raise UserError(
            f"the data asks for {', '.join(asked)}, but this run can do "
            + (", ".join(sorted(model.modes)) or "no task, it is a part alone")
        )
    items = data.loader(split, tasks=tuple(wanted), needs=model.serving_needs(), batch_size=1).dataset.items
    first = {row.id for row in data.rows(split)[:limit]}
    rows = [replace(item, task=wanted[item.task]) for item in items if item.id in first]
    dropped = [
        {"id": name, "reason": reason}
        for found in data.dropped.values()
        for reason, names in found.items()
        for name in names
        if name in first
    ]
    if not rows:
        reason = dropped[0]["reason"] if dropped else f"there are none for {', '.join(wanted)}"
        raise UserError(f"--split {split}: none of its {len(first)} utterances can be served: {reason}")
    return rows, dropped


def open_recogniser(name: str, notes: list[str]) -> Any:
    """The recogniser, or None with a note that says how to get it."""
    from ...components.errors import UserError

    if name == "none":
        notes.append("speech output was not judged (--recogniser none)")
        return None
    from ..scoring.recogniser import Recogniser

    try:
        return Recogniser(name)  # pyright: ignore[reportArgumentType]
    except UserError as error:
        notes.append(f"speech output was not judged: {error}")
        print(f"voxzoo evaluate: {notes[-1]}", file=sys.stderr)
        return None


class _Evaluation:
    """One pass over a split."""

    def __init__(
        self,
        model: Any,
        data: Any,
        folder: Path,
        judge: Any,
        notes: list[str],
        dropped: list[dict[str, str]],
        batch_size: int,
        beam: int | None,
        segment: float | None,
    ) -> None:
        from .translate import search_options

        self.model, self.data, self.folder, self.judge = model, data, folder, judge
        self.notes, self.dropped = notes, dropped
        self.batch_size, self.beam = batch_size, beam
        self.options = search_options(model, beam)
        self.segment = min((limit for limit in (segment, model.longest_seconds) if limit is not None), default=None)
        self.collate = model.collator()
        self._names: set[str] = set()

    def serve(self, rows: Sequence[Any]) -> list[Any]:
        """Predict and judge; what comes back is in the order of the split."""
        done: dict[tuple[str, str], Any] = {}
        by_task: defaultdict[str, list[Any]] = defaultdict(list)
        long: list[Any] = []
        for row in rows:
            (long if self._is_long(row) else by_task[row.task]).append(row)
        batches = [
            group[start : start + self.batch_size]
            for members in by_task.values()
            # By length, so that little is padded; longest first, so that memory runs out at once or not at all.
            for group in [sorted(members, key=lambda row: row.duration or len(row.src_text), reverse=True)]
            for start in range(0, len(group), self.batch_size)
        ]
        for batch in _progress(batches, "predicting"):
            done.update({(scored.task, scored.id): scored for scored in self._batch(batch)})
        for row in _progress(long, "predicting long audio"):
            done.update({(scored.task, scored.id): scored for scored in self._in_pieces(row)})
        if long:
            names = ", ".join(dict.fromkeys(row.id for row in long[:5])) + (" ..." if len(long) > 5 else "")
            self.notes.append(
                f"{len(long)} of {len(rows)} are longer than {self.segment:g} s and were cut at quiet places: {names}"
            )
        return [done[row.task, row.id] for row in rows if (row.task, row.id) in done]

    def _batch(self, rows: list[Any]) -> Iterator[Any]:
        try:
            batch = self.collate(rows).to(self.model.device)
            predictions = self.model.predict(batch, task=rows[0].task, options=self.options)
        except (ValueError, RuntimeError, OSError) as error:
            # What cannot be read or served is named and counted, and takes nothing else with it.
            if len(rows) > 1:
                for row in rows:
                    yield from self._batch([row])
                return
            self._drop(rows[0], str(error))
            return
        yield from self._enter(rows, predictions)

    def _drop(self, row: Any, reason: str) -> None:
        reason = " ".join(reason.split())
        self.dropped.append({"id": row.id, "reason": reason})
        print(f"voxzoo evaluate: dropped {row.id}: {reason}", file=sys.stderr)

    def _is_long(self, row: Any) -> bool:
        from ...datamodules.audio import audio_seconds

        if self.segment is None or not row.audio or row.task not in ("s2st", "s2tt", "asr"):
            return False
        try:
            return audio_seconds(Path(row.audio)) > self.segment
        except (ValueError, OSError):
            return False  # what is wrong with it is said where it is read

    def _in_pieces(self, row: Any) -> Iterator[Any]:
        """Serve audio that is too long as `voxzoo translate` does."""
        from .translate import Item, Translator, joined

        assert self.segment is not None
        translator = Translator(
            self.model,
            row.task,
            row.tgt_lang,
            row.src_lang if self.model.tokenizer.knows(row.src_lang) else None,
            self.batch_size,
            self.beam,
            self.segment,
            self.folder,
        )
        for item in translator.serve([Item(row.id, row.id, Path(row.audio))]):
            if item.error is not None:
                self._drop(row, item.error)
            else:
                yield from self._enter([row], [joined(item.predictions)])

    def _enter(self, rows: list[Any], predictions: list[Any]) -> list[Any]:
        from ..scoring.evaluation import Scored, note_audio
        from ..scoring.speech import write_wav

        entered = []
        for row, prediction in zip(rows, predictions, strict=True):
            scored = Scored(
                id=row.id,
                task=row.task,
                src_lang=row.src_lang,
                tgt_lang=row.tgt_lang,
                reference=row.tgt_text,
                hypothesis=prediction.text,
                score=prediction.score,
                source_audio=row.audio,
            )
            if prediction.audio is not None:
                note_audio(scored, prediction.audio, prediction.sample_rate)
                path = self.folder / f"{self._name(row.id)}.wav"
                write_wav(path, prediction.audio, prediction.sample_rate)
                scored.audio = str(path.relative_to(self.folder.parent))
            entered.append(scored)
        if all(prediction.audio is not None for prediction in predictions):
            self._compare_speech(rows, predictions, entered)
        return entered

    def _compare_speech(self, rows: list[Any], predictions: list[Any], entered: list[Any]) -> None:
        """Judge the output, and where there is target speech, the recording and its units through the vocoder."""
        rate = predictions[0].sample_rate
        self._listen("heard", entered, [prediction.audio for prediction in predictions], rate)
        places = [place for place, row in enumerate(rows) if row.tgt_audio]
        batch = self._target_batch([rows[place] for place in places]) if places else None
        if batch is None:
            return
        spoken = [entered[place] for place in places]
        recordings = batch.target_speech.unpad()
        for scored, recording in zip(spoken, recordings, strict=True):
            scored.reference_duration = round(len(recording) / 16000, 4)
        self._listen("heard_reference", spoken, recordings, 16000)
        resynthesise: Callable[[Any], list[Any] | None] | None = getattr(self.model, "resynthesise", None)
        if self.judge is None or resynthesise is None or rows[0].task == "u2s":
            return
        try:
            again = resynthesise(batch.to(self.model.device))
        except ValueError as error:
            self.notes.append(f"no resynthesis for {len(spoken)} utterances: {' '.join(str(error).split())}")
            return
        if again is not None:
            self._listen("heard_resynthesis", spoken, again, rate)

    def _listen(self, field: str, scored: list[Any], audio: list[Any], rate: int) -> None:
        from ..scoring.evaluation import listen

        if self.judge is None:
            return
        for row, text in zip(scored, listen(self.judge, audio, rate, [row.tgt_lang for row in scored]), strict=True):
            setattr(row, field, text)

    def _target_batch(self, rows: list[Any]) -> Any:
        from ...components.errors import UserError

        # Units of a file where the model cannot make them from the recording.
        stored = self.data.units_path is not None and getattr(self.model, "unit_extractor", None) is None
        try:
            return self.data.collator({"target_speech", *(["units"] if stored else [])})(rows)
        except UserError as error:
            self.notes.append(f"no ceiling for {len(rows)} utterances: {' '.join(str(error).split())}")
            return None

    def _name(self, given: str) -> str:
        """A file name for an id, whatever characters it has; no two ids share one."""
        base = re.sub(r"[^\w.-]", "_", given).strip(".") or "utterance"
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}-{number}"
        self._names.add(name)
        return name


def _progress(items: Iterable[Any], description: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(list(items), description, console=console, transient=True, disable=not console.is_terminal)


_SHOWN = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "wer": "WER %",
    "cer": "CER %",
    "asr_bleu": "ASR-BLEU",
    "asr_bleu_ceiling": "ASR-BLEU of the target recordings (ceiling)",
    "asr_bleu_resynthesis": "ASR-BLEU of the target units through the vocoder",
    "asr_bleu_ratio": "ASR-BLEU / ceiling",
    "resynthesis_ratio": "resynthesis / ceiling",
    "asr_wer": "WER % of what the recogniser heard",
    "duration_ratio": "duration / target duration",
    "silent": "silent outputs",
    "clipped": "clipped outputs",
}


def show(answer: dict[str, Any]) -> None:
    """Print the scores as a table, one block for each task."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 140)
    for task, scores in answer["tasks"].items():
        title = f"{answer['split']}, {task}: {scores['num_utterances']} utterances"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("score", "left"), ("value", "right"), ("95 %", "right")):
            table.add_column(column, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
        for name, label in _SHOWN.items():
            value = scores.get(name)
            if value is None:
                continue
            low, high = scores["intervals"].get(name) or (None, None)
            between = "" if low is None else f"{low:.3g} - {high:.3g}"
            shown = str(value) if isinstance(value, int) else f"{value:.2f}"
            table.add_row(label, shown, between)
        console.print(table)
        for signature in dict.fromkeys(scores["signatures"].values()):
            console.print(f"  {signature}", markup=False, highlight=False, soft_wrap=True)
    if answer["num_dropped"]:
        console.print(
            f"dropped: {answer['num_dropped']} of {answer['num_dropped'] + answer['num_utterances']} utterances"
        )
    for note in answer["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(f"written: {answer['hypotheses']}", markup=False, highlight=False)
