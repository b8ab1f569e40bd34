"""Trains a SentencePiece model in a process of its own, which gives its memory back: reads texts, writes the model.

Imports neither torch nor the rest of voxzoo. It is run as a file: settings as a line of JSON, then blocks of texts
(pickled lists, each behind its length), on standard input; a line of JSON and the model on standard output.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import sentencepiece


def train(sentences: list[str], settings: dict[str, Any], seed: int) -> bytes:
    """A model of `sentences`; the same ones give the same bytes. Raises RuntimeError as SentencePiece does."""
    sentencepiece.set_random_generator_seed(seed)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(sentences),
        model_writer=buffer,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        num_threads=1,  # the order in which threads finish may change the result
        minloglevel=2,
        **settings,
    )
    return buffer.getvalue()


def sample(texts: Iterable[str], size: int, seed: int) -> tuple[list[str], int]:
    """At most `size` texts drawn with equal chances, in their order (all, where there are no more), and how many there
    were. The first text with a character that none of them has comes along, so that no character is lost."""
    draw = random.Random(seed).random
    kept: list[tuple[int, str]] = []
    firsts: list[tuple[int, str]] = []
    seen: set[str] = set()
    total = 0
    for place, text in enumerate(texts):
        total += 1
        if not seen.issuperset(text):
            seen.update(text)
            firsts.append((place, text))
        if place < size:
            kept.append((place, text))
        elif (instead := int(draw() * (place + 1))) < size:
            kept[instead] = (place, text)
    if total > size:
        have: set[str] = set()
        for _, text in kept:
            have.update(text)
        for place, text in firsts:
            if not have.issuperset(text):
                have.update(text)
                kept.append((place, text))
    return [text for _, text in sorted(kept)], total


def send(texts: list[str], pipe: IO[bytes]) -> None:
    """A block of texts."""
    content = pickle.dumps(texts)
    pipe.write(len(content).to_bytes(8, "little") + content)


def _received(pipe: IO[bytes]) -> Iterator[str]:
    while len(head := pipe.read(8)) == 8:
        yield from pickle.loads(pipe.read(int.from_bytes(head, "little")))


def main() -> None:
    order = json.loads(sys.stdin.buffer.readline())
    sentences, total = sample(_received(sys.stdin.buffer), order["size"], order["seed"])
    answer: dict[str, Any] = {"used": len(sentences), "total": total}
    model = b""
    try:
        model = train(sentences, order["settings"], order["seed"])
    except RuntimeError as error:
        answer["error"] = str(error)
        answer["characters"] = len({character for text in sentences for character in text})
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + model)


if __name__ == "__main__":
    main()
