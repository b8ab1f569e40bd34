"""`make demo`: the four commands of the README in a row, then what they gave in one table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SPOKEN = 200  # utterances judged by ear: each is recognised three times


def main() -> int:
    """Train, evaluate and translate; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs", help="where runs go")
    parser.add_argument("overrides", nargs="*", help="for voxzoo train")
    args = parser.parse_args()
    run = Path(args.root) / "quickstart"
    started = time.monotonic()
    jobs = min(os.cpu_count() or 1, 2)
    trained = voxzoo("train", "experiment=quickstart", f"root={args.root}", f"stage_jobs={jobs}", *args.overrides)
    text = ["--task", "s2tt", "--out", str(run / "evaluation" / "text")]
    seen = voxzoo("evaluate", str(run), "--split", "test_seen", *text)
    unseen = voxzoo("evaluate", str(run), "--split", "test_unseen", *text)
    spoken = voxzoo("evaluate", str(run), "--split", "test_unseen", "--task", "s2st", "--limit", str(SPOKEN))
    rows = hypotheses(spoken)
    inputs = [row["source_audio"] for row in rows[:5]]
    out = run / "translated"
    translated = voxzoo("translate", str(run), *inputs, "--task", "s2st", "--to", "eng", "--out", str(out))
    report(trained, seen, unseen, spoken, rows, translated, time.monotonic() - started)
    return 0


def voxzoo(*words: str) -> dict[str, Any]:
    """Run one command as a user would, shown first; returns its JSON. Stops the demo where it fails."""
    print(f"\n$ voxzoo {' '.join(words)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "voxzoo.tasks.commands.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    answer = json.loads(done.stdout)
    answer["wall_seconds"] = time.monotonic() - started
    print(f"  ({answer['wall_seconds']:.0f} s)", file=sys.stderr, flush=True)
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
    translated: dict[str, Any],
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
    for result in translated["results"]:
        console.print(f"  {result['audio']}", highlight=False, soft_wrap=True)
    console.print(
        f"\ntrained in {trained['seconds']:.0f} s, all in {seconds:.0f} s; more in {trained['run']}/evaluation;"
        f" curves: tensorboard --logdir {trained['run']}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
