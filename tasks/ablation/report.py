"""The page of runs that exist and of other systems' output: the engine of `voxzoo report`, one call from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...components.errors import UserError, few, printable
from ...components.languages import language_name
from ...configs.stages import active_stages
from ...configs.yaml_files import load_map
from ..runs.folder import is_done
from ..scoring.counted import References, first_of
from ..scoring.evaluation import Scored
from ..scoring.outputs import HYPOTHESIS, REFERENCE, SEVERAL, Rows, matched, read_rows
from .content import CLIPS, content_of, read_known
from .costs import cost_of
from .page import write_page
from .results import Run, compare, mean_costs, read_hypotheses, read_run, tables_of
from .table import print_results

_WRITTEN = ".hypotheses.jsonl"


def report(
    runs: Sequence[str] = (),
    hypotheses: Sequence[str] = (),
    *,
    out: str | Path = "page.html",
    references: str | None = None,
    split: str | None = None,
    task: str | None = None,
    lang: str | None = None,
    base: str | None = None,
    clips: int = CLIPS,
    title: str | None = None,
) -> dict[str, Any]:
    """Write the page of runs and of files of hypotheses.

    Args:
        runs: folders of runs that `voxzoo evaluate` has scored, or folders that it wrote into (`--out`), as PATH or
            NAME=PATH; of one name: the seeds of one system.
        hypotheses: files that `voxzoo score` reads, likewise.
        out: the page.
        references: what is right, by id, or by line where all are plain text, for all systems; a manifest also has the
            fields by which utterances are grouped, and audio. None: what the rows of any system hold, and the manifest
            that was evaluated, if that is there.
        split: of the runs; None: the only one that was scored, or `test`.
        task: of runs and files that have several; None: the first one of a run.
        lang: ISO 639-3 code of the text, where neither rows nor references say.
        base: what the others are compared with; None: the first.
        clips: utterances that can be heard.
        title: of the page; None: the names of the systems.

    Returns:
        `page`, `bytes`, `systems` (names), `num_utterances`, `num_clips`, `results` (of `results.compare`), `notes`.

    Raises:
        UserError: no system, one that was not scored, files that cannot be matched, no utterance that all have.
    """
    if clips < 0:
        raise UserError(f"--clips {clips}: expected 0 or more")
    if not runs and not hypotheses:
        raise UserError("nothing to report: give folders of runs, or --hypotheses FILE")
    known = None if references is None else read_rows(references, task)
    systems: dict[str, list[Run]] = {}
    named = _named([*runs, *hypotheses])
    for name, path in named[: len(runs)]:
        systems.setdefault(name, []).append(_read_folder(name, Path(path), split, task))
    files = [(name, read_rows(_file(path), task)) for name, path in named[len(runs) :]]
    for name, file in sorted(files, key=lambda one: not _has_references(one[1])):
        own = {row.id: row for one in systems.values() for run in one for row in run.rows}
        systems.setdefault(name, []).append(_read_file(name, file, known, own, task, lang))
    systems = {name: systems[name] for name, _ in named}
    systems = {name: _numbered(own) for name, own in systems.items()}
    if base is not None and base not in systems:
        raise UserError(f"--base {base}: no such system; there are {', '.join(systems)}")
    notes = [] if known is None else _take_references(systems, known)
    _require_one_test_set(systems)
    tables = tables_of(systems)
    if not tables:
        raise UserError(f"no utterance with a reference is in all of {', '.join(systems)}: they are of other test sets")
    results = compare(systems, base or next(iter(systems)), tables=tables)
    results["notes"] += notes + _left_out(systems, results)
    manifest = [references] if known is not None and known.ids is not None and references else _manifest_of(systems)
    content = content_of(
        title or ", ".join(systems),
        systems,
        results,
        tables,
        costs={name: mean_costs(own) for name, own in systems.items() if any(run.costs for run in own)},
        known=read_known(manifest),
        clips=clips,
    )
    return {
        "status": "ok",
        "page": str(out),
        "bytes": write_page(Path(out), content),
        "systems": list(systems),
        "num_utterances": len(content["data"]["ids"]),
        "num_clips": len(content["data"]["clips"]),
        "results": results,
        "notes": content["notes"],
    }


def _named(words: Sequence[str]) -> list[tuple[str, str]]:
    """(name, path) of PATH or NAME=PATH; the name of a path is as much of its end as tells it from the others."""
    pairs = []
    for word in words:
        name, sign, path = word.partition("=")
        pairs.append((name, path) if sign and name and path and not os.path.exists(word) else ("", word))
    bare = [path for name, path in pairs if not name]
    repeated = next((path for path in bare if bare.count(path) > 1), None)
    if repeated is not None:
        raise UserError(f"{repeated}: given twice")
    short = dict(zip(bare, _ends(bare), strict=True))
    return [(name or short[path], path) for name, path in pairs]


def _ends(paths: Sequence[str]) -> list[str]:
    parts = [_without_suffix(path).parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        found = ["/".join(each[-length:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return list(paths)


def _without_suffix(path: str) -> Path:
    """A path without what every file of hypotheses ends in; that of `evaluate` is called by its run."""
    file = Path(os.path.abspath(path))
    if file.is_dir():
        return file
    if file.name.endswith(_WRITTEN):
        return file.parent.parent if file.parent.name == "evaluation" else file.with_name(file.name[: -len(_WRITTEN)])
    return file.with_suffix("")


def _numbered(runs: list[Run]) -> list[Run]:
    """Runs of one name are seeds of one system."""
    return runs if len(runs) == 1 else [replace(run, seed=str(number)) for number, run in enumerate(runs, 1)]


def _read_folder(name: str, folder: Path, split: str | None, task: str | None) -> Run:
    if not folder.is_dir():
        what = "a file; give it by --hypotheses" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}")
    if (folder / "table.json").is_file() and (folder / "points").is_dir():
        raise UserError(f"{folder}: an ablation, whose page is {folder / 'page.html'}; of its points give points/KEY")
    there: dict[str, Path] = {}
    for place in (*sorted(folder.glob("scores/*")), folder, folder / "evaluation"):
        written = sorted(place.glob(f"*{_WRITTEN}"))
        there.update({path.name[: -len(_WRITTEN)]: place for path in written})
    there = {each: place for each, place in there.items() if (place / f"{each}.json").is_file()}
    if not there:
        raise UserError(f"{folder}: nothing was scored; `voxzoo evaluate {folder} --split {split or 'test'}` does it")
    chosen = split or (next(iter(there)) if len(there) == 1 else "test")
    if chosen not in there:
        asked = f"--split {split}" if split else "--split: choose one"
        raise UserError(f"{folder}: {asked}; scored were {', '.join(sorted(there))}")
    trainings = _trainings(folder)
    run = read_run(name, chosen, there[chosen], trainings)
    if task is not None:
        known = dict.fromkeys(row.task for row in run.rows)
        if task not in known:
            raise UserError(f"{folder}: --task {task}: no such rows; its tasks are {', '.join(known)}")
        run.rows = [row for row in run.rows if row.task == task]
        run.answer["tasks"] = {task: run.answer.get("tasks", {}).get(task, {})}
    run.config = folder / "config.yaml"
    run.costs = {key: value for key, value in _costs(trainings.values()).items() if value}
    return run


def _trainings(folder: Path) -> dict[str, Path]:
    """Stage ("" of a run without any) -> folder of each training that has ended, in the order of the config."""
    config = folder / "config.yaml"
    names = active_stages(load_map(config)) if (folder / "stages").is_dir() and config.is_file() else []
    found = {name: folder / "stages" / name for name in names} or {"": folder}
    return {name: place for name, place in found.items() if is_done(place)}


def _costs(trainings: Iterable[Path]) -> dict[str, float]:
    found = [cost_of(folder) for folder in trainings]
    costs = {name: sum(one.get(name, 0.0) for one in found) for name in ("seconds", "cpu_seconds")}
    return {**costs, "peak_mb": max((one.get("peak_mb", 0) for one in found), default=0)}


def _file(path: str) -> str:
    if Path(path).is_dir():
        raise UserError(f"{path}: a folder; runs stand in front of --hypotheses")
    return path


def _has_references(file: Rows) -> bool:
    return file.ids is not None and any(key in row for row in file.rows for key in (*REFERENCE[:2], SEVERAL))


def _read_file(
    name: str, file: Rows, known: Rows | None, own: Mapping[str, Scored], task: str | None, lang: str | None
) -> Run:
    """A file of hypotheses as a run.

    Args:
        known: what is right, where that is a file.
        own: rows of other systems, by id.
    """
    path = Path(file.path)
    if all({"task", "src_lang", "tgt_lang", "reference"} <= row.keys() for row in file.rows):
        return Run(name, rows=[row for row in read_hypotheses(path) if task in (None, row.task)], folder=path.parent)
    texts = file.texts(None, HYPOTHESIS)
    rows = []
    for identity, place, said, more in _matched(file, known, own):
        row, like = {**more, **file.rows[place]}, own.get(identity)
        rows.append(
            Scored(
                id=identity,
                task=like.task if like else str(row.get("task") or task or "s2tt"),
                src_lang=like.src_lang if like else _language(row.get("src_lang") or row.get("lang")),
                tgt_lang=like.tgt_lang if like else _language(row.get("tgt_lang") or lang or "eng"),
                reference=first_of(said),
                references=None if isinstance(said, str) else [*said],
                hypothesis=texts[place],
            )
        )
    return Run(name, rows=rows, folder=path.parent)


def _matched(
    file: Rows, known: Rows | None, own: Mapping[str, Scored]
) -> Iterator[tuple[str, int, References, dict[str, Any]]]:
    """id, place in the file, references, and the row that these are of."""
    if known is None and file.ids is None:
        raise UserError(f"{file.path}: plain text has no ids; --references FILE says what its lines are")
    if known is None and not _has_references(file):
        ids = file.ids or []
        if lost := [each for each in ids if each not in own]:
            raise UserError(f"{file.path}: nothing says what is right of {few(lost)}; --references FILE does")
        yield from ((each, place, own[each].said(), {}) for place, each in enumerate(ids))
        return
    right = file if known is None else known
    places = matched(right, file)
    said = right.references(None, REFERENCE if known is not None else REFERENCE[:2])
    ids = right.ids or file.ids or [str(line) for line in right.lines]
    yield from zip(ids, places, said, right.rows, strict=True)


def _language(value: Any) -> str:
    return language_name(str(value)) if value else ""


def _take_references(systems: Mapping[str, list[Run]], known: Rows) -> list[str]:
    """Put references in the place of those that rows hold; what has none there is left out, and said."""
    if known.ids is None:
        if any(run.answer for own in systems.values() for run in own):
            raise UserError(
                f"--references {known.path}: is plain text, and runs are matched by id; give .jsonl or .tsv"
            )
        return []
    right = dict(zip(known.ids, known.references(None, REFERENCE), strict=True))
    notes = []
    for name, own in systems.items():
        for run in own:
            lost = [row.id for row in run.rows if row.id not in right]
            if lost:
                notes.append(f"{name}: {len(lost)} not in {Path(known.path).name} left out: {few(lost)}")
            run.rows = [row for row in run.rows if row.id in right]
            for row in run.rows:
                text = right[row.id]
                row.reference, row.references = (text, None) if isinstance(text, str) else (text[0], [*text])
            if not run.rows:
                raise UserError(f"{name}: none of its utterances is in --references {known.path}")
    return notes


def _require_one_test_set(systems: Mapping[str, list[Run]]) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for name, own in systems.items():
        for row in (row for run in own for row in run.rows if row.task == run.task):
            other, said = seen.setdefault(row.id, (name, row.said()))
            if said != row.said():
                raise UserError(
                    f"{name}: another reference of {row.id!r} than {other}: they are of other test sets; --references "
                    "FILE says what is right"
                )


def _left_out(systems: Mapping[str, list[Run]], results: Mapping[str, Any]) -> list[str]:
    most = max(len({row.id for run in own for row in run.rows}) for own in systems.values())
    counted = max(one["num_utterances"] for one in results["scores"].values())
    if counted == most:
        return []
    return [f"scores are of the {counted} utterances that all systems have; there are up to {most}"]


def _manifest_of(systems: Mapping[str, list[Run]]) -> list[str] | None:
    """What a run was evaluated on."""
    found = (run.answer.get("manifest") for own in systems.values() for run in own)
    return next((manifest for manifest in found if manifest), None)


def show(answer: Mapping[str, Any]) -> None:
    """Print what `report` answered."""
    print_results(answer["results"])
    for note in answer["notes"]:
        print(printable(f"note: {note}"))
    heard = f", {answer['num_clips']} of them can be heard" if answer["num_clips"] else ""
    print(
        f"written: {printable(answer['page'])} ({answer['bytes'] / 1e6:.1f} MB): {len(answer['systems'])} systems, "
        f"{answer['num_utterances']:,} utterances{heard}"
    )
