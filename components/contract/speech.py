"""Contracts of speech encoders and adaptors. Letters: B batch, T frames, N samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import Adaptor, SpeechEncoder
from ..types import Adapted, Padded
from .outcome import Check
from .ways import SOIL, Way, batch, difference, lively, normal, numbers, returned

_FRAMES = (19, 12, 1, 16)
_SAMPLES = (2601, 1500, 903, 2048)


def ways_of_encoder(part: SpeechEncoder) -> list[Way]:
    width = () if part.input_dim == 1 else (part.input_dim,)
    lengths = _SAMPLES if part.input_dim == 1 else _FRAMES
    if part.longest_input is not None:
        lengths = tuple(max(min(n, part.longest_input - SOIL), 1) for n in lengths)
    rows = [(row,) for row in normal(lengths, *width)]
    return [Way("forward", rows, _encode, same_dtype=True)]


def ways_of_adaptor(part: Adaptor) -> list[Way]:
    states = normal(_FRAMES, part.input_dim)
    texts = numbers((3, 2, 1, 2), 1, int(getattr(part, "vocab_size", 0) or 8))
    return [Way("forward", list(zip(states, texts, strict=True)), _adapt, bound=part.length_is_bound, same_dtype=True)]


def _encode(part: Any, speech: Padded) -> dict[str, Any]:
    return {"": returned(part(speech), Padded, "a SpeechEncoder returns Padded(data, lengths)")}


def _adapt(part: Any, states: Padded, text: Padded) -> dict[str, Any]:
    form = "an Adaptor returns Adapted(states, losses)"
    adapted = returned(part(states, text), Adapted, form)
    returned(adapted.states, Padded, f"{form}, states as Padded(data, lengths)", "forward, states,")
    return {"": adapted.states, **adapted.losses}


def checks_of_encoder(part: SpeechEncoder) -> Iterator[Check]:
    yield "shapes", lambda: _shapes(part, ways_of_encoder(part)[0], part.output_dim)
    yield "lengths", lambda: _lengths(part, part.longest_input, raw=part.input_dim == 1)


def checks_of_adaptor(part: Adaptor) -> Iterator[Check]:
    yield "shapes", lambda: _shapes(part, ways_of_adaptor(part)[0], part.output_dim)
    yield "lengths", lambda: _lengths(part, None, raw=False)


def _states(part: Any, states: Padded) -> Padded:
    found = part(states)
    return found.states if isinstance(found, Adapted) else found


def _shapes(part: Any, way: Way, width: int) -> str | None:
    given = batch(way.rows)[0]
    with torch.no_grad():
        found = part(given)
    if isinstance(found, Adapted):
        found = found.states
    if found.data.dim() != 3 or found.data.shape[0] != len(way.rows) or found.data.shape[2] != width:
        return f"forward returns {tuple(found.data.shape)} instead of (B={len(way.rows)}, T, output_dim={width})"
    if found.data.dtype != given.data.dtype:
        return f"forward returns {found.data.dtype} for {given.data.dtype}"
    return None


def _lengths(part: Any, longest: int | None, raw: bool) -> str | None:
    """`output_lengths` against what comes out, for many lengths at once and one at a time."""
    many = [1, 2, 3, 5, 8, 13, 24, 25, 41, 64, *((399, 400, 401, 719, 720, 1601, 2600) if raw else ())]
    counts = torch.tensor([n for n in many if longest is None or n <= longest])
    expected = part.output_lengths(counts)
    words = _integers(expected, counts)
    if words:
        return words
    exact = not (isinstance(part, Adaptor) and part.length_is_bound)
    compared = "alone" not in part.exempt
    part = lively(part)
    width = () if part.input_dim == 1 else (part.input_dim,)
    rows = normal(counts.tolist(), *width)
    with torch.no_grad():
        together = _states(part, Padded.from_list(rows))
        if words := _integers(together.lengths, counts):
            return f"the lengths of forward: {words}"
        for number, (row, length) in enumerate(zip(rows, expected.tolist(), strict=True)):
            steps = int(together.lengths[number])
            if steps != length if exact else steps > length:
                return f"output_lengths says {length} steps for {len(row)}, forward says {steps} (in a batch)"
            if steps > together.data.shape[1]:
                return f"forward says {steps} steps for {len(row)} but gives only {together.data.shape[1]}"
            if length < 1:
                continue
            found = _states(part, Padded.from_list([row]))
            words = difference(found.unpad()[0], together.unpad()[number], 5e-5) if compared else None
            if words:
                return f"of {len(row)} steps alone, what forward gives {words} from the same row in a batch"
            if found.data.shape[1] != int(found.lengths[0]) or (exact and found.data.shape[1] != length):
                return (
                    f"of {len(row)} steps alone forward gives {found.data.shape[1]} states and the length "
                    f"{int(found.lengths[0])}, output_lengths says {length}: count with the same integers everywhere"
                )
    if int(together.lengths.max()) != together.data.shape[1]:
        return (
            f"the longest row has {int(together.lengths.max())} steps by its length, but {together.data.shape[1]} come "
            "out of forward: count with the same integers everywhere"
        )
    return None


def _integers(lengths: Any, counts: Tensor) -> str | None:
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != counts.shape:
        got = f"{lengths.dtype} {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else type(lengths).__name__
        return f"lengths must be int64 of shape (B,); got {got}: floor by torch.div(..., rounding_mode='floor')"
    return None
