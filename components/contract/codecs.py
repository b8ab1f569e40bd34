"""The contract of codecs. Letters: B batch, N samples, T frames, K codebooks, V entries of one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..cards import Card
from ..errors import UserError
from ..roles import Codec
from ..types import Loss, Padded, Reconstruction
from .outcome import Check, NotAsked
from .ways import Way, batch, difference, lively, losses_of, normal, numbers, returned

_FRAMES = (6, 4.3, 0.1, 5)
"""Lengths of speech, in frames."""
_FORM = "a Codec returns Padded(data, lengths)"


def ways_of_codec(part: Codec) -> list[Way]:
    speech = [(row,) for row in _speech(part)]
    codes = [(row,) for row in _codes(part)]
    fewer = max(part.num_codebooks // 2, 1)

    def encode(part: Any, speech: Padded) -> dict[str, Any]:
        return {
            "": returned(part.encode(speech), Padded, _FORM, "encode"),
            "of fewer books": returned(part.encode(speech, fewer), Padded, _FORM, "encode"),
        }

    def decode(part: Any, codes: Padded) -> dict[str, Any]:
        return {"": returned(part.decode(codes), Padded, _FORM, "decode")}

    def reconstruct(part: Any, speech: Padded) -> dict[str, Any]:
        whole = "a Codec returns Reconstruction(samples, target, frames, losses, update)"
        made = returned(part.reconstruct(speech, fewer), Reconstruction, whole, "reconstruct")
        return {"samples": made.samples, "target": made.target, **losses_of(made.losses, "a Codec", "reconstruct")}

    ways = [
        Way("encode", speech, encode, learns=False),
        Way("decode", codes, decode, learns=False, tolerance=1e-4),
    ]
    if part.learns:
        ways.append(Way("reconstruct", speech, reconstruct, chooses=True, tolerance=1e-4))
    return ways


def _hop(part: Codec) -> float:
    return part.sample_rate / part.frame_rate


def _speech(part: Codec) -> list[Tensor]:
    width = () if part.channels == 1 else (part.channels,)
    return [0.1 * row for row in normal([max(int(count * _hop(part)), 1) for count in _FRAMES], *width)]


def _codes(part: Codec) -> list[Tensor]:
    size = part.num_codebooks
    rows = numbers([count * size for count in (5, 3, 1, 9)], 0, part.codebook_size)
    return [row.view(-1, size) for row in rows]


def checks_of_codec(part: Codec) -> Iterator[Check]:
    yield "codes", lambda: _coded(part)
    yield "lengths", lambda: _lengths(part)
    yield "rates", lambda: _rates(part)
    yield "card", lambda: _card(part)
    yield "refuses", lambda: _refuses(part)
    yield "streams", lambda: _streams(part)
    yield "update", lambda: _update(part)


@torch.no_grad()
def _coded(part: Codec) -> str | None:
    subject, speech = lively(part), Padded.from_list(_speech(part))
    found = subject.encode(speech)
    if found.data.dtype != torch.int64 or found.data.dim() != 3 or found.data.shape[2] != part.num_codebooks:
        kind = f"{found.data.dtype} {tuple(found.data.shape)}"
        return f"encode gives {kind} instead of (B, T, {part.num_codebooks}) int64"
    if bool((found.data < 0).any()) or bool((found.data >= part.codebook_size).any()):
        return f"encode gives codes outside of 0 to codebook_size - 1 = {part.codebook_size - 1}"
    if not torch.equal(found.zeroed().data, found.data):
        return "encode gives codes beyond the lengths: zero there"
    fewer = max(part.num_codebooks // 2, 1)
    if not torch.equal(subject.encode(speech, fewer).data, found.data[..., :fewer]):
        return f"encode with num_codebooks={fewer} gives other codes than the first {fewer} of all"
    return None


@torch.no_grad()
def _lengths(part: Codec) -> str | None:
    subject = lively(part)
    for rate in (None, 16000, 48000):
        frame = _hop(part) * (1 if rate is None else rate / part.sample_rate)
        samples = [max(int(count * frame), 1) for count in (0.1, 1, 1.01, 3.5, 7)]
        speech = Padded.from_list([0.1 * row for row in normal(samples)])
        found = subject.encode(speech, 1, rate)
        said = part.output_lengths(speech.lengths, rate)
        if said.dtype != torch.int64 or found.lengths.tolist() != said.tolist():
            at = f" at {rate} Hz" if rate else ""
            return (
                f"output_lengths says {said.tolist()} frames for {samples} samples{at}, encode {found.lengths.tolist()}"
            )
        if found.data.shape[1] != int(said.max()):
            return f"encode gives {found.data.shape[1]} frames, its lengths say {said.tolist()}"
        for count, length in zip(samples, subject.decode(found, rate).lengths.tolist(), strict=True):
            if length < count:
                return f"{count} samples come back as {length}: a frame that is not full counts too"
    return None


@torch.no_grad()
def _rates(part: Codec) -> str | None:
    """Another rate in and out is the same speech."""
    subject, rate = lively(part), part.sample_rate
    speech = Padded.from_list([0.1 * row for row in normal((int(8 * _hop(part)),))])
    codes = subject.encode(speech, 1)
    if not torch.equal(subject.encode(speech, 1, rate).data, codes.data):
        return f"encode at sample_rate={rate} gives other codes than without: None is its own rate"
    whole = subject.decode(codes)
    half = subject.decode(codes, rate // 2)
    if int(half.lengths[0]) != (int(whole.lengths[0]) + 1) // 2:
        own = f"at its own {rate} {whole.lengths.tolist()}"
        return f"decode at {rate // 2} Hz gives {half.lengths.tolist()} samples, {own}"
    return None


def _card(part: Codec) -> str | None:
    card = part.card()
    if not isinstance(card, Card):
        return f"card returns {type(card).__name__} instead of voxzoo.components.cards.Card"
    if copy.deepcopy(part).card() != card:
        return "a copy has another card: say nothing in it that is not of the weights and the rates"
    if card == lively(part).card() and any(True for _ in part.parameters()):
        return "the card of other weights is the same: put a hash of them in it (voxzoo.components.cards.weights_hash)"
    for name in ("sample_rate", "frame_rate", "num_codebooks", "codebook_size"):
        if card.values.get(name) != getattr(part, name):
            return f"card has {name}={card.values.get(name)!r} instead of {getattr(part, name)!r}"
    return None


def _refuses(part: Codec) -> str | None:
    speech = Padded.from_list(_speech(part))
    codes = part.encode(speech)
    more = torch.zeros(1, 4, part.num_codebooks + 1, dtype=torch.int64)
    wide = 0.1 * torch.ones(1, int(3 * _hop(part)), part.channels + 1)
    beyond = codes.data.clone()
    beyond[0, 0, 0] = part.codebook_size
    wrong = {
        f"num_codebooks={part.num_codebooks + 1}": lambda: part.encode(speech, part.num_codebooks + 1),
        "num_codebooks=0": lambda: part.encode(speech, 0),
        f"speech with {part.channels + 1} channels": lambda: part.encode(Padded(wide, torch.tensor([wide.shape[1]]))),
        f"codes of {part.num_codebooks + 1} books": lambda: part.decode(Padded(more, torch.tensor([4]))),
        f"code {part.codebook_size}": lambda: part.decode(codes.with_data(beyond)),
    }
    for what, call in wrong.items():
        try:
            call()
        except UserError:
            continue
        except Exception as error:
            return f"{what} raises {type(error).__name__}: raise UserError, one line that says what is expected"
        return f"{what} is taken: raise UserError"
    return None


@torch.no_grad()
def _streams(part: Codec) -> str | None:
    if not part.streams:
        raise NotAsked("streams is false")
    subject = lively(part)
    codes = torch.stack([numbers((23 * part.num_codebooks,), 0, part.codebook_size, seed)[0] for seed in (1, 2)])
    codes = codes.view(2, 23, part.num_codebooks)
    for frames in (23, 2):
        whole = subject.decode(Padded(codes[:, :frames], torch.tensor([frames, frames]))).data
        for size in (1, 3, 10, 23):
            state, pieces = subject.start(2), []
            for at in range(0, frames, size):
                given = codes[:, at : min(at + size, frames)]
                before = copy.deepcopy(state)
                samples, after = subject.step(given, state, at + size >= frames)
                again, _ = subject.step(given, before, at + size >= frames)
                if not torch.equal(samples, again):
                    return "step changes the state that it is given: a state is a value, make a new one"
                pieces.append(samples)
                state = after
            words = difference(torch.cat(pieces, 1), whole, 1e-4)
            if words:
                return f"{frames} frames decoded {size} at a time: the samples {words} from those of decode"
    return None


def _update(part: Codec) -> str | None:
    """Codebooks learn from sums over rows, and move by `advance` alone."""
    if not part.learns:
        raise NotAsked("learns is false")
    if "seed" not in inspect.signature(part.advance).parameters:
        return "advance takes no seed: what it draws must be the same on each process"
    subject = copy.deepcopy(part).train()
    with torch.no_grad():
        points = torch.cat(subject.latents(Padded.from_list(_speech(part))).unpad())
        subject.begin(points, 1)
    if not subject.begun:
        return "begun is false behind begin"
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    rows = [(row,) for row in _speech(part)]
    together = subject.reconstruct(*batch(rows)).update
    apart = [subject.reconstruct(*batch([row])).update for row in rows]
    for name, value in together.items():
        words = difference(torch.stack([one[name] for one in apart]).sum(0), value, 1e-4)
        if words:
            return f"update, {name}: the sum over rows one at a time {words}: give sums over real frames"
    for name, value in subject.state_dict().items():
        if not torch.equal(value, before[name]):
            return (
                f"reconstruct changes {name} in training: change it in advance(), called once a step of the optimizer"
            )
    twin = copy.deepcopy(subject)
    subject.advance(together, 3)
    torch.manual_seed(99)
    twin.advance(together, 3)
    for name, value in subject.state_dict().items():
        if not torch.equal(value, twin.state_dict()[name]):
            return f"advance with the same seed gives another {name}: draw with torch.Generator().manual_seed(seed)"
    if all(torch.equal(value, before[name]) for name, value in subject.state_dict().items()):
        return "advance moves nothing"
    made = subject.reconstruct(*batch(rows))
    if not made.samples.data.requires_grad or not all(isinstance(one, Loss) for one in made.losses.values()):
        return "reconstruct must give samples with gradient, and losses"
    return None
