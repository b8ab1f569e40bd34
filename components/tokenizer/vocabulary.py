"""The training of SentencePiece models that fit `SentencePieceTokenizer`.

Letters: V rows of the vocabulary, P pieces, L languages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from ..errors import UserError
from ..whole import write_whole
from . import vocabulary_process
from .pieces import NUM_CONTROLS

Normalisation = Literal["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]

SAMPLE = 200_000
"""Texts that a vocabulary is trained on where there are more: the pieces of a million sentences are those of a part."""
_HERE = 20_000  # texts that are trained on in this process: their memory is small, a process is not free
_BLOCK = 4096


def train_sentencepiece(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    num_languages: int,
    model_type: Literal["bpe", "unigram", "char"] = "bpe",
    character_coverage: float = 1.0,
    seed: int = 0,
    *,
    normalisation: Normalisation = "identity",
    max_texts: int = SAMPLE,
    report: Callable[[int, int], Any] = lambda used, total: None,
) -> Path:
    """Train a SentencePiece model that fits `SentencePieceTokenizer`; the same texts give the same file.

    Args:
        texts: sentences; empty ones are skipped. Many are read by another process, one by one.
        path: where the model goes. It appears complete or not at all.
        vocab_size: V of the tokenizer that will read it; a small corpus gives fewer pieces.
        num_languages: L, the language tokens that V must hold too: P is at most V - 1 - L.
        model_type: how pieces are found.
        character_coverage: share of the characters that get a piece; the rest becomes unk. 0.9995 for Chinese.
        seed: of the sample, and for the sampling inside SentencePiece.
        normalisation: rule of SentencePiece for texts before they are cut. `identity`: what the model writes is what
            was there, but for white space at the ends.
        max_texts: of more, so many are drawn, and a text for each character that these lack.
        report: called with the texts used and the texts there were.

    Returns:
        `path`.

    Raises:
        UserError: no text, or V too small for the characters.
    """
    pieces = vocab_size - 1 - num_languages
    sentences = (stripped for text in texts if (stripped := text.strip()))
    first = list(islice(sentences, _HERE + 1))
    if not first:
        raise UserError("a tokenizer cannot be trained on no text: the texts are empty")
    if pieces <= NUM_CONTROLS:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} leaves no piece beside 4 specials and {num_languages} languages"
        )
    settings = {"vocab_size": pieces, "model_type": model_type, "character_coverage": character_coverage}
    settings |= {"normalization_rule_name": normalisation, "remove_extra_whitespaces": normalisation != "identity"}
    if len(first) > _HERE:
        answer, model = _elsewhere(chain(first, sentences), {"settings": settings, "seed": seed, "size": max_texts})
    else:
        first, total = vocabulary_process.sample(first, max_texts, seed)
        model = b""
        answer: dict[str, Any] = {"used": len(first), "total": total}
        try:
            model = vocabulary_process.train(first, settings, seed)
        except RuntimeError as error:
            answer["error"], answer["characters"] = str(error), len({letter for text in first for letter in text})
    if "error" in answer:
        raise UserError(
            f"SentencePiece cannot train {pieces} pieces on {answer['used']} sentences with {answer['characters']} "
            f"different characters (choose another tokenizer.vocab_size): {answer['error'].rpartition('] ')[2]}"
        )
    path = Path(path)
    write_whole(path, model)
    report(answer["used"], answer["total"])
    return path


def lost_texts(texts: Iterable[str], model: Path, most: int = _HERE) -> tuple[int, int, list[tuple[str, str]]]:
    """What a vocabulary cannot write: of the first `most` texts, how many there are, how many do not come back from
    their ids but for white space at the ends, and the first three, each with what comes back."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    total, lost, examples = 0, 0, []
    for text in islice((stripped for text in texts if (stripped := text.strip())), most):
        total += 1
        again = pieces.DecodeIds([piece for piece in pieces.EncodeAsIds(text) if piece >= NUM_CONTROLS])
        if again != text:
            lost += 1
            if len(examples) < 3:
                examples.append((text, again))
    return total, lost, examples


def _elsewhere(texts: Iterator[str], order: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What a process of its own makes of the texts."""
    # -P: the folder of the file, with its sentencepiece.py, is no place to import from.
    command = [sys.executable, "-P", vocabulary_process.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            while block := list(islice(texts, _BLOCK)):
                vocabulary_process.send(block, process.stdin)
            process.stdin.close()
            said, model = process.stdout.readline(), process.stdout.read()
        except BrokenPipeError:
            said, model = b"", b""
        except BaseException:
            process.kill()
            raise
    if process.returncode or not said:
        raise UserError(
            f"the process that trains the vocabulary ended with status {process.returncode} before it was done; was it "
            "killed for want of memory? Set tokenizer.model to a trained SentencePiece model, or free some memory"
        )
    return json.loads(said), model
