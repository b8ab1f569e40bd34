"""Flags that several verbs have: one name, one meaning."""

from __future__ import annotations

import argparse
import math

from ...components.errors import UserError
from ..serving.choices import CODECS, PRECISIONS


def device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the weights (default: as the run has them; imported ones may be half)",
    )


def verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="compare the stored sums of the whole checkpoint, however large it is"
    )


def beam(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beam", type=int, metavar="N", help="beam size of the text (default: as the run was configured)"
    )


def column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column", choices=("tgt_audio", "audio"), default="tgt_audio", help="which speech (tgt_audio)"
    )


def conditions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--noise",
        metavar="KINDS",
        help="serve source speech once more in noise: white, pink or babble (of other utterances), or folders of "
        "recordings, with commas between; needs --snr",
    )
    parser.add_argument(
        "--snr", metavar="DB", help="signal-to-noise ratios in decibels, such as 20,10,0; a negative one as --snr=-5"
    )
    parser.add_argument(
        "--codec", metavar="KINDS", help=f"serve source speech once more through each of: {', '.join(CODECS)}"
    )


def across_speakers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--across-speakers",
        action="store_true",
        help="how far quality depends on who says the same thing: CoefVar of SeamlessM4T",
    )


def toxicity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--toxicity",
        action="append",
        default=[],
        metavar="LANG=FILE",
        help="words of a language, one a line: how often an output has some though its source has none; once for each "
        "language",
    )


def words(text: str | None) -> list[str]:
    """Of a list with commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def decibels(text: str | None) -> list[float]:
    """Of `--snr`. Raises UserError for what is none."""
    numbers = []
    for word in words(text):
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
        if not -100 <= numbers[-1] <= 100:
            raise UserError(f"--snr {word}: expected decibels from -100 to 100, such as 10")
    return numbers


def by_language(given: list[str]) -> dict[str, str]:
    """Language -> file, of `--toxicity`. Raises UserError for a word that is no LANG=FILE."""
    pairs = [word.partition("=") for word in given]
    for word, (lang, _, path) in zip(given, pairs, strict=True):
        if not lang or not path:
            raise UserError(f"--toxicity {word}: expected LANG=FILE, such as eng=words.txt")
    return {lang: path for lang, _, path in pairs}
