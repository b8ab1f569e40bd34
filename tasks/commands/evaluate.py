"""`voxzoo evaluate`"""

from __future__ import annotations

import argparse
from typing import Any

from ...components.errors import UserError, printable
from ..serving.choices import EVALUATED, PROMPTS, QUALITIES, RECOGNISERS, UTILITIES
from . import flags

HELP = "score a run on a split: text, and speech through a recogniser"
EXAMPLE = "voxzoo evaluate runs/quickstart --split test_seen --limit 200"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="a run folder or a checkpoint; RUN+RUN: the second reads what the first wrote",
    )
    parser.add_argument(
        "--mbr",
        metavar="RUN,RUN",
        help="in place of RUN: minimum Bayes risk over the outputs of these, cascades too; of all candidates the one "
        "that the others agree with most",
    )
    parser.add_argument("--utility", choices=UTILITIES, help="of --mbr: what agreement is (default chrf)")
    parser.add_argument(
        "--candidates", type=int, metavar="N", help="of --mbr: texts of each run, the best of its search (default 5)"
    )
    parser.add_argument("--sample", action="store_true", help="of --mbr: candidates are drawn")
    parser.add_argument("--split", default="test", help="name of the split in the run's data (default test)")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="another corpus than the run's: a .jsonl or .tsv manifest, or '[a.jsonl,b.jsonl]'; give --task with it",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances alone")
    parser.add_argument(
        "--task", choices=EVALUATED, help="what to do (default: what the data says, with speech where the run speaks)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="utterances at a time (default 16)")
    flags.beam(parser)
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
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default="all",
        help="how output speech sounds: all (default) measures the voice, DNSMOS and melody, as far as `pip install "
        "voxzoo[quality]` is there; none",
    )
    flags.conditions(parser)
    flags.across_speakers(parser)
    parser.add_argument("--by", metavar="FIELDS", help="score each group of a field (gender,accent), and their gap")
    parser.add_argument(
        "--labels", metavar="FILE", help="a .jsonl or .tsv with the fields of --by, by id (default: the manifest)"
    )
    flags.toxicity(parser)
    parser.add_argument(
        "--prompts",
        choices=PROMPTS,
        default="own",
        help="of a model that speaks in the voice of a prompt: own (default), its source; shuffled, another row; "
        "other, a row of another speaker. With the last two each row is also spoken with its own, and the files are "
        "called SPLIT.shuffled or SPLIT.other",
    )
    flags.device(parser)
    flags.precision(parser)
    flags.verify(parser)
    parser.add_argument("--out", metavar="DIR", help="where the files go (default RUN/evaluation)")


def run(args: argparse.Namespace) -> dict:
    from ...datamodules.manifest import of_a_split
    from ..processes.signals import watch_parent
    from ..serving.evaluation import evaluate_run

    watch_parent()
    runs = flags.words(args.mbr)
    if bool(runs) == bool(args.run):
        raise UserError("give RUN, or --mbr RUN,RUN")
    settings = {"utility": args.utility, "candidates": args.candidates, "sample": args.sample or None}
    settings = {name: value for name, value in settings.items() if value is not None}
    if settings and not runs:
        raise UserError(f"--{next(iter(settings))} is for --mbr")
    answer = evaluate_run(
        runs or args.run,
        args.split,
        consensus=settings,
        manifest=None if args.manifest is None else of_a_split(args.manifest),
        out=args.out,
        device=args.device,
        precision=args.precision,
        limit=args.limit,
        task=args.task,
        batch_size=args.batch_size,
        beam=args.beam,
        segment=args.segment,
        recogniser=args.recogniser,
        verify=args.verify,
        quality=args.quality,
        noise=flags.words(args.noise),
        snr=flags.decibels(args.snr),
        codec=flags.words(args.codec),
        across_speakers=args.across_speakers,
        by=flags.words(args.by),
        labels=args.labels,
        toxicity=flags.by_language(args.toxicity),
        prompts=args.prompts,
    )
    if not args.json:
        show(answer)
    return answer


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
    "asr_bleu_own": "ASR-BLEU with its own prompt",
    "asr_wer": "WER % of what the recogniser heard",
    "asr_wer_own": "that with its own prompt",
    "unit_bleu": "BLEU of units",
    "unit_exact": "% of outputs with exactly the reference units",
    "duration_ratio": "duration / target duration",
    "speaker_similarity": "speaker similarity to the source (0 to 1)",
    "speaker_similarity_ceiling": "that of the target recordings (ceiling)",
    "speaker_similarity_control": "that to another speaker's source (control)",
    "speaker_similarity_prompt": "speaker similarity to the prompt",
    "nearer_to_prompt": "% of outputs nearer to their prompt than to their source",
    "speaker_similarity_target": "speaker similarity to the target recordings",
    "speaker_match": "% of outputs nearest to their own speaker",
    "speaker_match_ceiling": "that of the target recordings (ceiling)",
    "dnsmos": "DNSMOS (1 to 5)",
    "dnsmos_ceiling": "DNSMOS of the target recordings (ceiling)",
    "dnsmos_speech": "DNSMOS, the speech alone",
    "dnsmos_background": "DNSMOS, the background",
    "f0_correlation": "F0 correlation with the target recordings",
    "f0_correlation_resynthesis": "that of the target units through the vocoder",
    "f0_correlation_control": "that with another target recording (control)",
    "voicing_error": "voicing error % against the target recordings",
    "voicing_error_resynthesis": "that of the target units through the vocoder",
    "voicing_error_control": "that against another target recording (control)",
    "chrf_ms": "chrF of what was said, mean over contents",
    "coef_var_ms": "CoefVar over speakers of one content",
    "added_toxicity": "% of outputs with added toxicity",
    "asr_added_toxicity": "% of what was heard with added toxicity",
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
        if scores.get("gaps"):
            console.print(_gap_table(scores["gaps"]))
        for signature in dict.fromkeys(scores["signatures"].values()):
            console.print(f"  {signature}", markup=False, highlight=False, soft_wrap=True)
    for task in answer["tasks"] if answer.get("conditions") else ():
        console.print(_condition_table(answer, task))
    if answer["num_dropped"]:
        console.print(
            f"dropped: {answer['num_dropped']} of {answer['num_dropped'] + answer['num_utterances']} utterances"
        )
    for note in answer["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(f"written: {answer['hypotheses']}", markup=False, highlight=False)


def _gap_table(gaps: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column, justify in (("group", "left"), ("utterances", "right"), ("score", "left"), ("value", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    table.add_column("95 %", justify="right")
    for field, scores in gaps.items():
        for name, found in scores.items():
            label = _SHOWN.get(name, name)
            rows = [(f"{field}: {each}", str(row["num_utterances"]), row) for each, row in found["groups"].items()]
            for group, count, row in rows:
                between = f"{row['low']:.3g} - {row['high']:.3g}"
                table.add_row(Text(printable(group)), count, label, f"{row['score']:.2f}", between)
            if found["gap"] is not None:
                between = f"{found['gap_low']:.3g} - {found['gap_high']:.3g}"
                pair = f"{field}: {found['best']} better than {found['worst']} by"
                table.add_row(Text(printable(pair)), "", label, f"{found['gap']:.2f}", between)
    return table


def _condition_table(answer: dict[str, Any], task: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{answer['split']}, {task}, in conditions", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("condition", overflow="fold")
    found = {name: each["tasks"].get(task, {}) for name, each in answer["conditions"].items()}
    names = [name for name in _SHOWN if any(name in scores for scores in found.values())]
    for name in names:
        table.add_column(_SHOWN[name], justify="right")
    plain = [next((scores[name]["plain"] for scores in found.values() if name in scores), None) for name in names]
    table.add_row("as it is", *("" if value is None else f"{value:.2f}" for value in plain))
    for condition, scores in found.items():
        cells = [
            f"{scores[name]['score']:.2f} ({scores[name]['difference']:+.2f})" if name in scores else ""
            for name in names
        ]
        table.add_row(Text(printable(condition)), *cells)
    return table
