"""An ablation from words to a table: the engine of `voxzoo ablate`, one call from Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ...components.errors import UserError
from ...components.whole import write_whole
from ...configs.compose import compose
from ...datamodules.audio import AudioFiles
from ..processes.console import quiet_libraries
from ..processes.forked import has_imported, one_thread
from ..processes.signals import watch_parent
from ..scoring.care import read_word_lists
from ..serving.distortions import conditions_of
from ..serving.translator import require_positive
from .board import Outcome, Scoring, run_points
from .cluster import Cluster, settings_of
from .content import CLIPS, content_of, read_known
from .costs import cost_of
from .forecast import plan_of, show_plan
from .page import PAGE, write_page
from .points import points_of
from .prepared import Prepared, prepare
from .results import Run, compare, mean_costs, read_run, tables_of
from .table import as_csv, as_latex, as_markdown, cells, cost_cells, explanation, print_cells, print_results


def ablate(
    words: Sequence[str],
    *,
    points: str | None = None,
    one_at_a_time: bool = False,
    jobs: int = 1,
    dry_run: bool = False,
    cluster: str | None = None,
    cluster_options: Sequence[str] = (),
    base: str | None = None,
    split: str = "test",
    config_dirs: Sequence[str] = (),
    clips: int = CLIPS,
    **scoring: Any,
) -> dict[str, Any]:
    """Train and score the points of a sweep and compare them: what `voxzoo ablate` does and answers.

    Args:
        words: overrides, of which some have several values (`points_of`). `name` and `root` place the ablation: its
            folder is root/name, and the same call goes on with what is there.
        points: a YAML of named points.
        one_at_a_time: change one key of the base at a time.
        jobs: trainings at a time, which share the cores.
        dry_run: say what would be trained, and train nothing.
        cluster: `slurm`: trainings are jobs of arrays, up to `jobs` at a time; None: processes of this machine.
        cluster_options: KEY=VALUE of submitit's AutoExecutor.
        base: the row that the others are compared with; None: the first.
        split: to score; `none`: what training measured is compared.
        config_dirs: further folders of YAML groups.
        clips: utterances that can be heard on the page.
        scoring: further options of `voxzoo evaluate`: limit, task, beam, recogniser, quality; lists for noise, snr and
            codec; across_speakers; toxicity, language -> file.

    Raises:
        UserError: words that are none, no sound point, a folder in use.
    """
    require_positive(jobs=jobs, limit=scoring.get("limit"), beam=scoring.get("beam"))
    has_imported()
    watch_parent()
    quiet_libraries()
    root, name, rest = place_of(words, config_dirs)
    found = points_of(rest, named=points, around=one_at_a_time, config_dirs=config_dirs)
    rows = list(dict.fromkeys(point.system for point in found))
    if base is not None and base not in rows:
        raise UserError(f"--base {base}: no such row; there are: {'; '.join(rows)}")
    how = scoring_of(split, **scoring)
    if dry_run:
        return plan_of(*prepare(found, root, name, config_dirs), root / name, config_dirs)
    settings = settings_of(cluster_options)
    if settings and cluster is None:
        raise UserError("--cluster-option is for --cluster")
    place = Cluster(root / name / "jobs", settings, cluster, jobs) if cluster is not None else None
    outcome = run_points(found, root, name, how, jobs=jobs, config_dirs=config_dirs, cluster=place)
    runs = runs_of(outcome)
    tables = tables_of(runs, how.lists)
    results = compare(runs, base or rows[0], tables=tables)
    costs = {system: mean_costs(own) for system, own in runs.items()}
    write_table(outcome.folder, results, costs)
    manifest = next(
        (run.answer["manifest"] for own in runs.values() for run in own if run.answer.get("manifest")), None
    )
    content = content_of(name, runs, results, tables, costs=costs, known=read_known(manifest), clips=clips)
    write_page(outcome.folder / PAGE, content)
    failed = [point for point in outcome.points if point.error is not None]
    return {
        "status": "failed" if failed else "ok",
        "ablation": str(outcome.folder),
        "points": len(found),
        "trainings": len({key for point in outcome.points for key in point.keys.values()}),
        "trainings_without_sharing": outcome.wanted,
        "trained_now": len(outcome.trained),
        "results": results,
        "costs": costs,
        "page": str(outcome.folder / PAGE),
        **({"error": f"{len(failed)} of {len(found)} points failed: see the table"} if failed else {}),
    }


def scoring_of(split: str, **options: Any) -> Scoring:
    """How points are scored, by options of `voxzoo evaluate`; those that cannot be are refused before anything is
    trained.

    Raises:
        UserError: a noise without a ratio, a list of words that cannot be read.
    """
    noise, snr, codec = (options.pop(name, None) or () for name in ("noise", "snr", "codec"))
    toxicity = options.pop("toxicity", None) or {}
    speakers = options.pop("across_speakers", False)
    with one_thread():
        conditions_of(noise, snr, codec, ("one", "another"), AudioFiles())
    words = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    for name, values in (("noise", noise), ("snr", [f"{ratio:g}" for ratio in snr]), ("codec", codec)):
        words += [f"--{name}={','.join(values)}"] if values else []
    words += ["--across-speakers"] if speakers else []
    words += [f"--toxicity={lang}={path}" for lang, path in toxicity.items()]
    return Scoring(None if split == "none" else split, tuple(words), tuple(read_word_lists(toxicity)))


def runs_of(outcome: Outcome) -> dict[str, list[Run]]:
    """System -> its runs, those that failed too."""
    runs: dict[str, list[Run]] = {}
    for point in outcome.points:
        failed = Run(point.point.system, point.point.seed, error=point.error)
        run = _read(point, outcome) if point.error is None else failed
        runs.setdefault(point.point.system, []).append(run)
    return runs


def _read(point: Prepared, outcome: Outcome) -> Run:
    trainings = {stage: outcome.trainings[key].folder for stage, key in point.keys.items()}
    split, scores = outcome.scoring.split or "", outcome.scoring.folder(point)
    run = read_run(point.point.system, split, scores, trainings, point.point.seed)
    run.config = None if point.folder is None else point.folder / "config.yaml"
    costs = [cost_of(folder) for folder in trainings.values()]
    run.costs = {name: sum(one[name] for one in costs if name in one) for name in ("seconds", "cpu_seconds")}
    run.costs["peak_mb"] = max((one["peak_mb"] for one in costs if "peak_mb" in one), default=0)
    if "seconds" in (scoring := cost_of(scores)):
        run.costs["scoring_seconds"] = scoring["seconds"]
    return run


def place_of(words: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[Path, str, list[str]]:
    """Root and name of the ablation that words describe, and the words without them."""
    rest = [word for word in words if word.partition("=")[0].lstrip("+") not in ("name", "root")]
    said = [word for word in words if word not in rest]
    config = compose([*said, *_experiment(rest)], config_dirs=config_dirs, fit=False)
    name = str(config.name)
    if not any(word.lstrip("+").startswith("name=") for word in said):
        name = f"{name}-ablation"
    return Path(str(config.root)), name, rest


def _experiment(words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith("experiment=") and "," not in word and "*" not in word]


def write_table(folder: Path, results: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> None:
    """Write table.csv, .md, .tex and .json, and costs.csv: what was measured of time and memory stands in the latter
    alone."""
    head, rows = cells(results)
    below = explanation(results)
    files = {
        "table.csv": as_csv(head, rows),
        "table.md": as_markdown(head, rows, below),
        "table.tex": as_latex(head, rows, below),
        "table.json": json.dumps(results, ensure_ascii=False, indent=1) + "\n",
        "costs.csv": as_csv(*cost_cells(costs)),
    }
    for name, text in files.items():
        write_whole(folder / name, text.encode(errors="backslashreplace"))


def show(answer: Mapping[str, Any]) -> None:
    """Print what `ablate` answered."""
    console = Console(width=None if Console().is_terminal else 160)
    if "plan" in answer:
        show_plan(answer, console)
        return
    print_results(answer["results"], console)
    print_cells(*cost_cells(answer["costs"]), console)
    console.print(
        f"{answer['points']} points, {answer['trainings']} trainings, {answer['trained_now']} of them now "
        f"({answer['trainings_without_sharing']} without what they share)",
        highlight=False,
    )
    console.print(
        f"written: {answer['ablation']}/table.csv, .md, .tex, .json, costs.csv, {PAGE}", markup=False, highlight=False
    )
