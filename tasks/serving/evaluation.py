"""Predicting a split of a corpus and scoring it: the engine of `voxzoo evaluate`, one call from Python."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import soundfile
import torch
from rich.console import Console
from rich.progress import track

from ...components.errors import UserError, few, printable
from ...components.lines import json_line
from ...components.whole import write_whole
from ...datamodules.audio import SAMPLE_RATE, AudioFiles, audio_blocks, audio_seconds
from ...datamodules.utterances import UtteranceData
from ..processes.console import quiet_libraries
from ..runs.folder import require_no_way_out
from ..runs.run import load_consensus, load_run
from ..scoring.care import read_word_lists
from ..scoring.evaluation import Care, Scored, compare_rows, score_rows
from ..scoring.listening import Listener, note_audio
from ..scoring.outputs import read_rows
from ..scoring.quality import JUDGED_SECONDS, SpeechQuality
from ..scoring.recogniser import Recogniser
from ..scoring.speech import write_wav
from .choices import EVALUATED, PROMPTS, SPEECH_IN
from .distortions import Condition, DistortedAudio, conditions_of
from .names import FileNames
from .translator import Item, Translator, joined, require_positive, require_short, search_options


def evaluate_run(
    path: str | Path | Sequence[str],
    split: str = "test",
    *,
    consensus: Mapping[str, Any] | None = None,
    manifest: str | list[str] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    beam: int | None = None,
    segment: float | None = None,
    verify: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Load a run and score it on a split: what `voxzoo evaluate` does and answers.

    Args:
        path: a run folder or a checkpoint; `asr+mt`, a cascade of two; a list: minimum Bayes risk over the outputs of
            these.
        consensus: settings of `tasks.Consensus`, for a list.
        split, manifest: of the run's data, or of another corpus.
        out: where the files go; None: RUN/evaluation.
        device: `cpu`, `cuda`, ..., or `auto`, a GPU where there is one.
        precision: `32-true`, `bf16-true` or `16-true`; None: that of the run.
        limit, batch_size, beam, segment, options: as for `evaluate`.
        verify: as for `load_run`.

    Raises:
        UserError: as `load_run` and `evaluate`; a number below 1.
    """
    require_positive(limit=limit, batch_size=batch_size, beam=beam, segment=segment)
    quiet_libraries()
    how: dict[str, Any] = {"device": device, "pack": True, "precision": precision, "verify": verify}
    one = isinstance(path, str | Path)
    run = load_run(path, **how) if one else load_consensus(path, consensus or {}, **how)
    folder = Path(path) if one and Path(path).is_dir() else run.folder
    if not out:
        require_no_way_out(folder, "evaluation")
    place = Path(out) if out else folder / "evaluation"
    options |= {"limit": limit, "batch_size": batch_size, "beam": beam, "segment": segment}
    scores = evaluate(run.task, run.datamodule(manifest, split), split, place, **options)
    named = str(path) if one else ",".join(map(str, path))
    return {"status": "ok", "run": named, "checkpoint": str(run.checkpoint), **scores}


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
    quality: str = "all",
    noise: Sequence[str] = (),
    snr: Sequence[float] = (),
    codec: Sequence[str] = (),
    across_speakers: bool = False,
    by: Sequence[str] = (),
    labels: str | None = None,
    toxicity: Mapping[str, str] | None = None,
    prompts: str = "own",
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
        quality: how output speech sounds (`scoring.quality.SpeechQuality`): `all`, as far as the packages are
            installed, or `none`.
        noise, snr, codec: conditions in which source speech is served once more (`serving.distortions`): each noise at
            each ratio (dB), each codec.
        across_speakers: how far quality depends on who says the same thing (`scoring.care`).
        by: fields of the manifest; each of their groups is scored, and the gap between them.
        labels: a manifest or table with these fields, by id; None: the split's manifest.
        toxicity: language -> file of words: how often an output has some though its source has none.
        prompts: whose voice a model with acoustic prompts (`Task.takes_prompts`) speaks in: `own`, that of the source;
            `shuffled`, that of another row; `other`, of a row of another speaker. With the last two each row is also
            spoken in its own voice, and the files are called `<split>.<prompts>`.

    Returns:
        Plain dict. `tasks` holds the scores of each task (see `scoring.evaluation.score_rows`); the first
        also stands at the top. `conditions`: name -> `signature`, `num_dropped`, `hypotheses` (a file) and `tasks`,
        task -> what `scoring.evaluation.compare_rows` returns. `dropped`: utterances that could not be served; `notes`:
        what was left out, and why.

    Raises:
        UserError: unknown split, a task the model cannot do, or nothing left to score.
    """
    rows, dropped = choose_rows(model, data, split, task, limit)
    voices = choose_prompts(model, rows, prompts, split)
    notes: list[str] = []
    care = Care(across_speakers, labels_of(data, split, by, labels), read_word_lists(toxicity or {}))
    heard = [row for row in rows if row.audio and row.task in SPEECH_IN]
    others = [row.audio for row in data.rows(split) if row.audio] if "babble" in noise else []
    conditions = conditions_of(noise, snr, codec, others, _reader(data))
    if conditions and prompts != "own":
        raise UserError(f"--prompts {prompts} goes without --noise and --codec: change one thing at a time")
    if conditions and not heard:
        raise UserError("--noise and --codec change source speech, and none is read here")
    speaks = any(row.task.endswith("2st") or row.task == "u2s" for row in rows)
    judge = open_recogniser(recogniser, notes) if speaks else None
    ears = SpeechQuality() if speaks and quality == "all" else None
    stem = split if prompts == "own" else f"{split}.{prompts}"
    options = {"batch_size": batch_size, "beam": beam, "segment": segment}
    evaluation = _Evaluation(model, data, out / stem, judge, ears, notes, dropped, **options, prompts=voices)
    scored = evaluation.serve(rows)
    if not scored:
        reason = dropped[0]["reason"]
        raise UserError(f"--split {split}: none of {len(rows)} utterances could be served; the first: {reason}")
    groups: defaultdict[str, list[Any]] = defaultdict(list)
    for row in scored:
        groups[row.task].append(row)
    signature = judge.signature if judge is not None else None
    sounds = ears.signatures if ears is not None else None
    scores = {name: score_rows(groups[name], signature, sounds, care) for name in EVALUATED if name in groups}
    harder: dict[str, Any] = {}
    served = {(row.task, row.id) for row in scored}
    heard = [row for row in heard if (row.task, row.id) in served]
    for condition in conditions:
        name = condition.name.replace(" ", "_")
        again = _Evaluation(model, data, out / split / name, judge, None, notes, [], **options, condition=condition)
        file = out / f"{split}.{name}.hypotheses.jsonl"
        harder[condition.name] = _in_condition(again, condition, heard, groups, signature, file)
    main = next(iter(scores.values()))
    lines = "".join(json_line(row.line()) + "\n" for row in scored)
    answer: dict[str, Any] = {
        "split": split,
        **{key: value for key, value in main.items() if key not in ("num_utterances", "directions")},
        **{key: scores["asr"][key] for key in ("wer", "cer") if key in scores.get("asr", {})},
        "num_utterances": len(scored),
        "num_dropped": len(dropped),
        "dropped": dropped,
        "recogniser": signature,
        "tasks": scores,
        **({"conditions": harder} if harder else {}),
        "notes": notes,
        "manifest": _manifests(data, split),
        "hypotheses": str(out / f"{stem}.hypotheses.jsonl"),
    }
    if prompts != "own":
        answer["prompts"] = prompts
    write_whole(out / f"{stem}.hypotheses.jsonl", lines.encode())
    text = json.dumps(answer, ensure_ascii=False, indent=1)
    write_whole(out / f"{stem}.json", text.encode(errors="backslashreplace"))
    return answer


def _manifests(data: Any, split: str) -> list[str]:
    """Absolute paths of the manifests of a split; none of data that have none."""
    found = data.manifest(split) if hasattr(data, "manifest") else []
    return [os.path.abspath(path) for path in ([found] if isinstance(found, str) else found)]


def _in_condition(
    evaluation: _Evaluation,
    condition: Condition,
    rows: Sequence[Any],
    plain: Mapping[str, Sequence[Scored]],
    recogniser: str | None,
    file: Path,
) -> dict[str, Any]:
    """Serve rows once more and write them; what is said of them beside what they were without the condition, by
    task."""
    found = evaluation.serve(rows)
    write_whole(file, "".join(json_line(row.line()) + "\n" for row in found).encode())
    tasks = {name: [row for row in found if row.task == name] for name in EVALUATED}
    return {
        "signature": condition.signature,
        "num_dropped": len(evaluation.dropped),
        "hypotheses": str(file),
        "tasks": {name: compare_rows(some, plain[name], recogniser) for name, some in tasks.items() if some},
    }


def labels_of(data: Any, split: str, by: Sequence[str], path: str | None = None) -> dict[str, dict[str, str]]:
    """Field -> id -> value, of the rows that have it.

    Args:
        data: a DataModule.
        split: of it.
        by: fields.
        path: a file with them, by id; None: the manifest of the split.

    Raises:
        UserError: a field that no row has, or data without a manifest.
    """
    if not by:
        return {}
    path = path or (data.manifest(split) if hasattr(data, "manifest") else None)
    if path is None:
        raise UserError(f"--by {','.join(by)}: this data has no manifest to read it from; name a file by --labels")
    rows = [row for one in ([path] if isinstance(path, str) else path) for row in read_rows(one).rows]
    found = {name: {row["id"]: str(row[name]) for row in rows if row.get(name) not in (None, "")} for name in by}
    for name, values in found.items():
        if not values:
            keys = few(list(dict.fromkeys(key for row in rows for key in row)), 12)
            raise UserError(f"--by {name}: no row of {path} has this field; there are {keys}")
    return found


def choose_rows(
    model: Any, data: Any, split: str, task: str | None, limit: int | None
) -> tuple[list[Any], list[dict[str, str]]]:
    """The utterances to serve, each with its task, in the order of the manifest, and those that cannot be served.

    What the data asks for is spoken where the model can speak: s2tt becomes s2st, and its text is scored too.

    Raises:
        UserError: unknown split, or the model can do none of the tasks.
    """
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
    items = data.utterances(split, tasks=tuple(wanted), needs=model.serving_needs())
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


def choose_prompts(model: Any, rows: Sequence[Any], prompts: str, split: str) -> dict[str, Any] | None:
    """Id -> the row whose source is the prompt; None where each has its own.

    Raises:
        UserError: the model takes no prompts, or there are none to choose from.
    """
    if prompts == "own":
        return None
    if prompts not in PROMPTS:
        raise UserError(f"--prompts {prompts}: expected {', '.join(PROMPTS)}")
    if not getattr(model, "takes_prompts", False):
        raise UserError(f"--prompts {prompts}: this run does not speak in the voice of a prompt")
    unique = list({row.id: row for row in rows}.values())
    order = list(range(len(unique)))
    random.Random(0).shuffle(order)  # each row then takes the next one in this circle
    found: dict[str, Any] = {}
    for place, number in enumerate(order):
        row = unique[number]
        circle = (unique[order[(place + step) % len(order)]] for step in range(1, len(order)))
        if prompts == "other":
            others = (each for each in circle if row.speaker and each.speaker and each.speaker != row.speaker)
        else:
            others = (each for each in circle if each.audio != row.audio or not row.audio)
        chosen = next(others, None)
        if chosen is None:
            what = "two speakers (column speaker)" if prompts == "other" else "two recordings"
            raise UserError(f"--split {split}: {row.id} has no prompt; --prompts {prompts} needs {what}")
        found[row.id] = chosen
    return found


def open_recogniser(name: str, notes: list[str]) -> Any:
    """The recogniser, or None with a note that says how to get it."""
    if name == "none":
        notes.append("speech output was not judged (--recogniser none)")
        return None
    try:
        return Recogniser(name)  # pyright: ignore[reportArgumentType]
    except UserError as error:
        notes.append(f"speech output was not judged: {error}")
        print(printable(f"voxzoo evaluate: {notes[-1]}"), file=sys.stderr)
        return None


def _reader(data: Any) -> AudioFiles:
    return data.audio if isinstance(data, UtteranceData) else AudioFiles()


class _Evaluation:
    """One pass over a split."""

    def __init__(
        self,
        model: Any,
        data: Any,
        folder: Path,
        judge: Any,
        quality: SpeechQuality | None,
        notes: list[str],
        dropped: list[dict[str, str]],
        batch_size: int,
        beam: int | None,
        segment: float | None,
        condition: Condition | None = None,
        prompts: Mapping[str, Any] | None = None,
    ) -> None:
        self.prompts = prompts
        self.model, self.data, self.folder = model, data, folder
        kept = None if data.cache_dir is None else Path(data.cache_dir) / "heard"
        self.listener = None if judge is None else Listener(judge, kept)
        self.quality, self.audio = quality, _reader(data)
        self.condition = condition
        self.root = folder.parent if condition is None else folder.parent.parent  # of the files of hypotheses
        if condition is not None:
            self.audio = DistortedAudio(self.audio, condition)
        self.notes, self.dropped = notes, dropped
        self.batch_size, self.beam = batch_size, beam
        self.options = search_options(model, beam)
        self.segment = min((limit for limit in (segment, model.longest_seconds) if limit is not None), default=None)
        self.collate = model.collator()
        if isinstance(data, UtteranceData) or condition is not None:
            self.collate.audio = self.audio
        self._names = FileNames()

    def serve(self, rows: Sequence[Any]) -> list[Any]:
        """Predict and judge; what comes back is in the order of the split."""
        done: dict[tuple[str, str], Any] = {}
        by_task: defaultdict[str, list[Any]] = defaultdict(list)
        long: list[Any] = []
        for row in rows:
            if row.task.startswith("t2") and self.model.tokenizer is not None:
                try:
                    require_short(row.src_text, row.src_lang, self.model.tokenizer)
                except ValueError as error:
                    self._drop(row, str(error))
                    continue
            (long if self._is_long(row) else by_task[row.task]).append(row)
        batches = [
            group[start : start + self.batch_size]
            for members in by_task.values()
            # By length, so that little is padded; longest first, so that memory runs out at once or not at all.
            for group in [sorted(members, key=lambda row: row.duration or len(row.src_text), reverse=True)]
            for start in range(0, len(group), self.batch_size)
        ]
        doing = "predicting" if self.condition is None else f"predicting, {self.condition.name}"
        for batch in _progress(batches, doing):
            done.update({(scored.task, scored.id): scored for scored in self._batch(batch)})
        for row in _progress(long, f"{doing}, long audio"):
            done.update({(scored.task, scored.id): scored for scored in self._in_pieces(row)})
        if self.listener is not None:
            self.listener.finish()
            self.notes += self.listener.notes()
        if long and self.condition is None:
            names = ", ".join(dict.fromkeys(row.id for row in long[:5])) + (" ..." if len(long) > 5 else "")
            self.notes.append(
                f"{len(long)} of {len(rows)} are longer than {self.segment:g} s and were cut at quiet places: {names}"
            )
        scored = [done[row.task, row.id] for row in rows if (row.task, row.id) in done]
        if self.quality is not None:
            self.quality.finish(scored)
            self.notes += self.quality.notes()
        return scored

    def _batch(self, rows: list[Any]) -> Iterator[Any]:
        try:
            batch = self.collate(rows).to(self.model.device)
            own = self.model.predict(batch, task=rows[0].task, options=self.options)
            predictions = own
            if self.prompts is not None:
                voices = self.collate([self.prompts[row.id] for row in rows]).to(self.model.device)
                predictions = self.model.predict(batch, task=rows[0].task, options=self.options, prompts=voices)
        except Exception as error:
            # What cannot be read or served is named and counted, and takes nothing else with it.
            if len(rows) > 1:
                for row in rows:
                    yield from self._batch([row])
                return
            known = isinstance(error, ValueError | RuntimeError | OSError)
            self._drop(rows[0], str(error) if known else f"{type(error).__name__}: {error}")
            return
        entered = self._enter(rows, predictions)
        if self.prompts is not None:
            self._compare_own(rows, own, entered)
        yield from entered

    def _drop(self, row: Any, reason: str) -> None:
        reason = " ".join(reason.split())
        self.dropped.append({"id": row.id, "reason": reason})
        print(printable(f"voxzoo evaluate: dropped {row.id}: {reason}"), file=sys.stderr)

    def _is_long(self, row: Any) -> bool:
        if self.segment is None or not row.audio or row.task not in SPEECH_IN:
            return False
        try:
            return audio_seconds(Path(row.audio)) > self.segment
        except (ValueError, OSError):
            return False  # what is wrong with it is said where it is read

    def _in_pieces(self, row: Any) -> Iterator[Any]:
        """Serve audio that is too long as `voxzoo translate` does."""
        assert self.segment is not None
        if self.prompts is not None:
            self._drop(row, f"longer than {self.segment:g} s: other prompts are for speech that is served whole")
            return
        translator = Translator(
            self.model,
            row.task,
            row.tgt_lang,
            row.src_lang if (self.model.tokenizer or self.model).knows(row.src_lang) else None,
            self.batch_size,
            self.beam,
            self.segment,
            self.folder,
        )
        with self._file_of(row) as path:
            for item in translator.serve([Item(row.id, row.id, path)]):
                if item.error is not None:
                    self._drop(row, item.error)
                else:
                    yield from self._enter([row], [joined(item.predictions, item.waves)])

    @contextmanager
    def _file_of(self, row: Any) -> Iterator[Path]:
        """The audio of a row as a file, in the condition."""
        if self.condition is None:
            yield Path(row.audio)
            return
        with TemporaryDirectory() as folder:
            path = Path(folder) / "distorted.wav"
            soundfile.write(path, self.audio.load(row.audio, SAMPLE_RATE).numpy(), SAMPLE_RATE, subtype="FLOAT")
            yield path

    def _enter(self, rows: list[Any], predictions: list[Any]) -> list[Any]:
        entered = []
        for row, prediction in zip(rows, predictions, strict=True):
            scored = Scored(
                id=row.id,
                task=row.task,
                src_lang=row.src_lang,
                tgt_lang=row.tgt_lang,
                reference=row.tgt_text,
                references=[*row.references] or None,
                hypothesis=prediction.text,
                score=prediction.score,
                source_audio=row.audio,
                speaker=row.speaker,
                src_text=row.src_text,
            )
            if prediction.audio is not None:
                note_audio(scored, prediction.audio, prediction.sample_rate)
                path = self.folder / f"{self._names.free(row.id)}.wav"
                write_wav(path, prediction.audio, prediction.sample_rate)
                scored.audio = str(path.relative_to(self.root))
            entered.append(scored)
        self._compare_units(rows, predictions, entered)
        if all(prediction.audio is not None for prediction in predictions):
            self._compare_speech(rows, predictions, entered)
        return entered

    def _compare_speech(self, rows: list[Any], predictions: list[Any], entered: list[Any]) -> None:
        """Judge the output, and where there is target speech, the recording and its units through the vocoder."""
        rate = predictions[0].sample_rate
        spoken_audio = [prediction.audio for prediction in predictions]
        if self.listener is not None:
            self.listener.add(entered, "heard", spoken_audio, rate)
        if self.quality is not None:
            self.quality.add(entered, spoken_audio, rate, [self._source(row) for row in rows])
        if self.condition is not None:  # recordings are what they were
            return
        places = [place for place, row in enumerate(rows) if row.tgt_audio]
        batch = self._target_batch([rows[place] for place in places]) if places else None
        if batch is None:
            return
        spoken = [entered[place] for place in places]
        recordings = batch.target_speech.unpad()
        for scored, recording in zip(spoken, recordings, strict=True):
            scored.reference_duration = round(len(recording) / 16000, 4)
        if self.listener is not None:
            self.listener.add(spoken, "heard_reference", recordings, 16000)
        again = self._resynthesis(batch, rows[0].task) if self.listener or self.quality else None
        if self.listener is not None and again is not None:
            self.listener.add(spoken, "heard_resynthesis", again, rate)
        if self.quality is not None:
            self.quality.add_recordings(spoken, recordings, again, rate)

    def _compare_units(self, rows: list[Any], predictions: list[Any], entered: list[Any]) -> None:
        """Enter units beside those that they should be, where the model says which."""
        reference: Callable[[Any], list[Any] | None] | None = getattr(self.model, "reference_units", None)
        if reference is None or any(prediction.units is None for prediction in predictions):
            return
        stored = self._units_are_stored
        places = [place for place, row in enumerate(rows) if stored or row.tgt_audio]
        if not places:
            return
        try:
            batch = self.data.collator({"units" if stored else "target_speech"})([rows[place] for place in places])
            found = reference(batch.to(self.model.device))
        except ValueError as error:
            self.notes.append(f"no reference units for {len(places)} utterances: {' '.join(str(error).split())}")
            return
        for place, units in zip(places, found or (), strict=bool(found)):
            entered[place].units, entered[place].reference_units = list(predictions[place].units), units.tolist()

    def _compare_own(self, rows: list[Any], own: list[Any], entered: list[Any]) -> None:
        """What became of rows with their own prompts, beside what became of them with others."""
        if any(prediction.audio is None for prediction in own):
            return
        assert self.prompts is not None
        if self.listener is not None:
            self.listener.add(entered, "heard_own", [prediction.audio for prediction in own], own[0].sample_rate)
        voices = [self._source(replace(self.prompts[row.id], task=row.task)) for row in rows]
        places = [place for place, voice in enumerate(voices) if voice is not None]
        if self.quality is not None and places:
            self.quality.add_prompts([entered[place] for place in places], [voices[place] for place in places])

    def _resynthesis(self, batch: Any, task: str) -> list[Any] | None:
        """The units of target recordings through the vocoder, where the model has one and does something else."""
        resynthesise: Callable[[Any], list[Any] | None] | None = getattr(self.model, "resynthesise", None)
        if resynthesise is None or task == "u2s":
            return None
        try:
            return resynthesise(batch.to(self.model.device))
        except ValueError as error:
            self.notes.append(f"no resynthesis for {len(batch.ids)} utterances: {' '.join(str(error).split())}")
            return None

    def _source(self, row: Any) -> Any:
        """Speech whose voice the output should have: (N,) samples at 16 kHz, or None."""
        if row.task != "s2st" or not row.audio:
            return None
        if self._is_long(row):
            return torch.cat(list(islice(audio_blocks(row.audio, 16000, float(JUDGED_SECONDS)), 1)))
        return self.audio.load(row.audio, 16000)

    @property
    def _units_are_stored(self) -> bool:
        """Whether units are those of a file: the model cannot make them from the recording."""
        return self.data.units_path is not None and getattr(self.model, "unit_extractor", None) is None

    def _target_batch(self, rows: list[Any]) -> Any:
        try:
            return self.data.collator({"target_speech", *(["units"] if self._units_are_stored else [])})(rows)
        except UserError as error:
            self.notes.append(f"no ceiling for {len(rows)} utterances: {' '.join(str(error).split())}")
            return None


def _progress(items: Iterable[Any], description: str) -> Iterator[Any]:
    console = Console(stderr=True)
    yield from track(list(items), description, console=console, transient=True, disable=not console.is_terminal)
