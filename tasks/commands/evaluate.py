"""`voxzoo evaluate`"""

from __future__ import annotations

import argparse
from typing import Any

from ..serving.choices import EVALUATED, PRECISIONS, QUALITIES, RECOGNISERS

HELP = "score a run on a split: text, and speech through a recogniser"
EXAMPLE = "voxzoo evaluate runs/quickstart --split test_seen --limit 200"


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
        "--task", choices=EVALUATED, help="what to do (default: what the data says, with speech where the run speaks)"
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
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default="all",
        help="how output speech sounds: all (default) measures the voice, DNSMOS and melody, as far as `pip install "
        "voxzoo[quality]` is there; none",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the weights (default: as the run has them; imported ones may be half)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the stored sums of the whole checkpoint, however large it is"
    )
    parser.add_argument("--out", metavar="DIR", help="where the files go (default RUN/evaluation)")


def run(args: argparse.Namespace) -> dict:
    from ..serving.evaluation import evaluate_run

    answer = evaluate_run(
        args.run,
        args.split,
        manifest=args.manifest,
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
    "asr_wer": "WER % of what the recogniser heard",
    "duration_ratio": "duration / target duration",
    "speaker_similarity": "speaker similarity to the source (0 to 1)",
    "speaker_similarity_ceiling": "that of the target recordings (ceiling)",
    "speaker_similarity_control": "that to another speaker's source (control)",
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
