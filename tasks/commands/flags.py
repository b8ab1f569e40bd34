"""Flags that several verbs have: one name, one meaning."""

from __future__ import annotations

import argparse

from ..serving.choices import PRECISIONS


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
