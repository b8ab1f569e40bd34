"""`make demo`: the commands of the README in a row, in one process, then what they gave in one table."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ...components.errors import UserError
from ..processes.forked import is_command
from ..processes.signals import EXIT_CODES, Interrupted
from . import cli

PLAN = (
    ("0 to 1", "corpus", "8,900 Spanish sentences and their English, spoken by espeak-ng"),
    ("1 to 9", "first pass", "Spanish speech to English text: a translated sentence every two minutes"),
    ("1 to 2", "units", "beside it: 100 discrete units of English speech, by k-means"),
    ("2 to 5", "vocoder", "beside it: units to English speech; the first clips to listen to"),
    ("9 to 13", "second pass", "text to units: a translated clip every minute"),
    ("13 to 14", "scores", "text of 600 utterances, speech of 200 through a recogniser; five translated clips"),
)
"""What happens, and the minutes it takes on two idle cores (Zen 4) once everything is installed."""


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate and translate; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs", help="where runs go")
    parser.add_argument(
        "--spoken", type=int, default=200, metavar="N", help="utterances judged by ear: each is recognised three times"
    )
    parser.add_argument("overrides", nargs="*", help="for voxzoo train")
    args = parser.parse_args(argv)
    try:
        return demo(Path(args.root), args.overrides, args.spoken)
    except (UserError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_CODES[signal.Signals(error.number)]
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on", file=sys.stderr)
        return 130


def demo(root: Path, overrides: list[str], num_spoken: int) -> int:
    """All of it; what is trained already is not trained again."""
    started = time.monotonic()
    run = root / "quickstart"
    announce(run)
    cores = os.cpu_count() or 1
    jobs = min(cores, 2)
    shared = "OMP_NUM_THREADS" not in os.environ
    if shared:  # said before torch is loaded: this process and its stages have the same threads
        os.environ |= {"OMP_NUM_THREADS": str(cores // jobs), "OMP_WAIT_POLICY": "passive"}
    # One process for all: importing torch, Lightning and torchmetrics takes as long as scoring 300 sentences.
    from ..serving.evaluation import evaluate_run
    from ..serving.translator import translate
    from ..training.train import train

    words = ["experiment=quickstart", f"root={root}", f"stage_jobs={jobs}"]
    if jobs > 1:  # the last stage has nothing beside it: two processes, each with half of a step's utterances
        words += [f"stages.second_pass.set.trainer.{key}" for key in ("devices=2", "accumulate_grad_batches=1")]
    words += overrides
    trained = shown(started, f"train {' '.join(words)}", train, words)
    if shared:  # the recogniser, which has threads of its own, takes all cores
        del os.environ["OMP_NUM_THREADS"]
    texts, out = [], run / "evaluation" / "text"
    for split in ("test_seen", "test_unseen"):
        command = f"evaluate {run} --split {split} --task s2tt --out {out}"
        texts.append(shown(started, command, evaluate_run, run, split, task="s2tt", out=out))
        print(f"  BLEU {texts[-1]['bleu']:.1f}", file=sys.stderr, flush=True)
    command = f"evaluate {run} --split test_unseen --task s2st --limit {num_spoken} --quality none"
    spoken = shown(started, command, evaluate_run, run, "test_unseen", task="s2st", limit=num_spoken, quality="none")
    rows = hypotheses(spoken)
    inputs, out = [row["source_audio"] for row in rows[:5]], run / "translated"
    command = f"translate {run} {' '.join(inputs)} --task s2st --to eng --out {out}"
    results = list(shown(started, command, lambda: [*translate(run, inputs, "s2st", "eng", out=out)]))
    for result in results:
        if "error" in result:
            raise UserError(f"{result['input']}: {result['error']}")
    report(trained, texts[0], texts[1], spoken, rows, results, time.monotonic() - started)
    return 0


def announce(run: Path) -> None:
    """What will happen, how long it takes, and where to listen meanwhile."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    title = "Spanish speech to English text and speech, on two idle cores"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("minutes")
    table.add_column("what")
    table.add_column("")
    for row in PLAN:
        table.add_row(*row)
    console.print(table)
    console.print(
        "Lines with `listen:` name clips while it trains. Ctrl-C stops it, and the same command goes on."
        f" All of it will lie in {run}",
        highlight=False,
        soft_wrap=True,
    )


def shown(started: float, command: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do what a command of `voxzoo` does; the command is shown first, and the time behind it."""
    print(f"\n$ voxzoo {command}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    answer = call(*args, **options)
    now = time.monotonic()
    print(f"  ({now - begun:.0f} s; {(now - started) / 60:.1f} minutes in all)", file=sys.stderr, flush=True)
    return answer


def hypotheses(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that an evaluation wrote."""
    return [json.loads(line) for line in Path(answer["hypotheses"]).read_text().splitlines()]


def report(
    trained: dict[str, Any],
    seen: dict[str, Any],
    unseen: dict[str, Any],
    spoken: dict[str, Any],
    rows: list[dict[str, Any]],
    translated: list[dict[str, Any]],
    seconds: float,
) -> None:
    """Scores, five examples, and where the audio lies."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title="Spanish speech to English", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("what")
    table.add_column("utterances", justify="right")
    table.add_column("score", justify="right")
    for name, answer in (("text BLEU, voices seen in training", seen), ("text BLEU, voices never heard", unseen)):
        table.add_row(name, str(answer["num_utterances"]), f"{answer['bleu']:.1f}")
    if spoken.get("asr_bleu") is not None:
        ceiling = spoken["asr_bleu_ceiling"]
        for name, key in (
            ("speech ASR-BLEU, recordings (the judge's ceiling)", "asr_bleu_ceiling"),
            ("speech ASR-BLEU, their units through the vocoder", "asr_bleu_resynthesis"),
            ("speech ASR-BLEU, translated from unseen voices", "asr_bleu"),
        ):
            share = f"  ({100 * spoken[key] / ceiling:.0f} % of the ceiling)"
            table.add_row(name, str(spoken["num_utterances"]), f"{spoken[key]:.1f}{share}")
    for note in spoken.get("notes", []):
        table.add_row(note, "", "")
    console.print(table)
    for row in rows[:5]:
        console.print(f"reference   {row['reference']}\ntranslated  {row['hypothesis']}\n", highlight=False)
    console.print("speech:")
    for result in translated:
        console.print(f"  {result['audio']}", highlight=False, soft_wrap=True)
    console.print(
        f"\ntrained in {trained['seconds']:.0f} s, all in {seconds:.0f} s; more in {trained['run']}/evaluation;"
        f" curves: tensorboard --logdir {trained['run']}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    is_command(cli.main)  # stages are forked from this process
    raise SystemExit(main())
