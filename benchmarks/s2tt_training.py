"""A training step of speech to text over 256k words: SeamlessM4T v2, cross entropy, clipping, AdamW.

The learning rate is 0, so that every round works on the same weights: the optimiser's work does not depend on it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .harness import Case, Options, main
from .models import EOS, LANG, NO_DROPOUT, SMALL, TINY, features, speech_to_text, subwords

_LENGTHS = [2.3, 5.1, 7.9, 10.2, 12.8, 15.0]
_TOKENS_PER_SECOND = 3


class Batch:
    """Features, and target ids `lang, pieces, eos` as labels."""

    def __init__(
        self, options: Options, seconds: Sequence[float], vocab_size: int, seeds: Sequence[int] = range(1000)
    ) -> None:
        self.speech = features(options, list(seconds), seeds)
        self.mask = self.speech.mask.long()
        pieces = subwords(options, vocab_size, [round(s * _TOKENS_PER_SECOND) + 2 for s in seconds], seeds)
        labels = pieces.data
        labels[:, 0] = LANG
        labels[torch.arange(len(labels)), pieces.lengths - 1] = EOS
        self.labels = pieces
        self.peer_labels = labels.masked_fill(~pieces.mask, -100)
        start = torch.full_like(labels[:, :1], EOS)
        self.tokens = pieces.with_data(torch.cat([start, labels[:, :-1]], dim=1))


class PeerStep:
    """One training step of transformers' model."""

    def __init__(self, model: Any) -> None:
        self.model = model.train()
        self.optimiser = _optimiser(model.parameters())

    def __call__(self, batch: Batch) -> tuple[float, float]:
        loss = self.model(batch.speech.data, attention_mask=batch.mask, labels=batch.peer_labels).loss
        loss.backward()
        return _update(self.model.parameters(), self.optimiser, loss)


class OurStep:
    """One training step over the parts, as `tasks.SpeechToText` takes it."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.encoder, self.adaptor, self.decoder = (part.train() for part in parts)
        self.parameters = [parameter for part in parts for parameter in part.parameters()]
        self.optimiser = _optimiser(self.parameters)

    def __call__(self, batch: Batch) -> tuple[float, float]:
        from voxzoo.components.losses.cross_entropy import token_loss

        memory = self.adaptor(self.encoder(batch.speech)).states
        states = self.decoder.decode(memory, batch.tokens)
        loss, _ = token_loss(
            self.decoder.project,
            states,
            batch.labels.data,
            mask=batch.labels.mask,
            weight=self.decoder.output_weight,
        )
        loss.mean.backward()
        return _update(self.parameters, self.optimiser, loss.mean)

    def checkpointed(self, batch: Batch) -> tuple[float, float]:
        """The same step, with the encoder's blocks computed again in the backward pass."""
        from voxzoo.components.layers.blocks import blocks, recompute_blocks

        plain = [(block, block.forward) for block in blocks(self.encoder)]
        recompute_blocks(self.encoder)
        try:
            return self(batch)
        finally:
            for block, forward in plain:
                block.forward = forward


def _optimiser(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, fused=True)


def _update(parameters: Any, optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> tuple[float, float]:
    """Clip and step; the loss, and the norm of all gradients in hundreds. A ReLU whose input is 0 to rounding passes
    its gradient on one side and not on the other, and float32 sums of 65 million squares differ by order: norms agree
    to some 1e-3 where losses agree to 1e-6. The parity tests compare each gradient."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item(), norm.item() / 100


def cases(options: Options) -> Iterator[Case]:
    sizes = {**(TINY if options.quick else {**SMALL, "vocab_size": 256_102}), **NO_DROPOUT}
    peer, ours = speech_to_text(options, **sizes)
    theirs, mine = PeerStep(options.place(peer)), OurStep([options.place(part) for part in ours])
    lengths = _LENGTHS[:2] if options.quick else _LENGTHS
    words = "256k words" if not options.quick else "tiny"
    batch = Batch(options, lengths, sizes["vocab_size"])
    yield Case(
        f"{words}, batch of {len(lengths)}, {lengths[0]} to {lengths[-1]} s",
        lambda: theirs(batch),
        lambda: mine(batch),
        sum(lengths),
        least=1.3,
        aim=1.6,
        memory_aim=0.4,
        rounds=2,
    )
    if options.brief:
        return
    yield Case(
        f"{words}, the same with activation checkpointing in ours",
        lambda: theirs(batch),
        lambda: mine.checkpointed(batch),
        sum(lengths),
        least=1.3,
        aim=1.6,
        memory_aim=0.4,
        rounds=1,
    )
    yield buckets(f"{words}, batches of like lengths", theirs, mine, options, sizes["vocab_size"])


def buckets(name: str, theirs: PeerStep, mine: OurStep, options: Options, vocab_size: int) -> Case:
    """The same utterances: the peer's in batches as they come, ours in batches of like lengths, none of more padded
    seconds than the peer's largest. Compared are losses and gradient norms of the first batches of like lengths."""
    from voxzoo.datamodules.batching import BatchSampler

    count, size = (6, 2) if options.quick else (24, 4)
    drawn = random.Random(3)
    seconds = [round(drawn.uniform(2.0, 15.0), 1) for _ in range(count)]
    order = [list(range(start, start + size)) for start in range(0, count, size)]
    budget = max(max(seconds[index] for index in batch) * len(batch) for batch in order)
    plan = BatchSampler(seconds=seconds, batch_seconds=budget, rank=0, world_size=1).plan(0)
    as_they_come, alike = (
        [Batch(options, [seconds[index] for index in batch], vocab_size, batch) for batch in batches]
        for batches in (order, plan)
    )
    return Case(
        name,
        lambda: [theirs(batch) for batch in as_they_come],
        lambda: [mine(batch) for batch in alike],
        sum(seconds),
        least=1.9,
        aim=2.4,
        check=(lambda: [theirs(batch) for batch in alike[:2]], lambda: [mine(batch) for batch in alike[:2]]),
        memory=False,
        rounds=1,
    )


if __name__ == "__main__":
    sys.exit(main("s2tt_training", cases))
