"""What tasks with a text decoder share: its input and loss, prefixes of languages, and text as predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..components.losses.cross_entropy import token_loss
from ..components.losses.divergence import Side, symmetric_divergence
from ..components.roles import TextSeq2Seq, Tokenizer
from ..components.search import Hypothesis, SearchOptions, generate
from ..components.types import Batch, Loss, Padded, Prediction, Statistic


def text_predictions(
    batch: Batch, mode: str, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer
) -> list[Prediction]:
    """One prediction per row of the batch from a hypothesis of it."""
    return [
        Prediction(id=i, task=mode, src_lang=s, tgt_lang=t, text=tokenizer.decode(h.tokens.tolist()), score=h.score)
        for i, s, t, h in zip(batch.ids, batch.src_lang, batch.tgt_lang, hypotheses, strict=True)
    ]


def decoder_input(target: Padded) -> Padded:
    """(B, S) `eos lang pieces eos` -> (B, S-1) without the last token of each row."""
    return Padded(target.data[:, :-1], (target.lengths - 1).clamp(min=0))


def text_loss(
    model: TextSeq2Seq,
    states: Padded,
    target: Padded,
    label_smoothing: float,
    loss_on_lang_token: bool,
    prefix_length: int = 2,
    rows: Tensor | None = None,
) -> tuple[Loss, Statistic]:
    """Label-smoothed cross entropy and accuracy of (B, S-1, D) states against (B, S) targets, of some (B,) rows."""
    return token_loss(
        model.project,
        states,
        target.data[:, 1:],
        mask=label_mask(states, loss_on_lang_token, prefix_length, rows),
        label_smoothing=label_smoothing,
        weight=model.output_weight,
    )


def label_mask(states: Padded, loss_on_lang_token: bool, prefix_length: int, rows: Tensor | None = None) -> Tensor:
    """(B, S-1) bool: where states predict what is learned, of some (B,) bool rows or of all."""
    mask = states.mask.clone()
    if not loss_on_lang_token:
        mask[:, : prefix_length - 1] = False
    return mask if rows is None else mask & rows.to(mask.device)[:, None]


def side_of(model: TextSeq2Seq, states: Padded) -> Side:
    """Decoder states with the output layer that reads them."""
    return Side(states, model.project, model.output_weight)


def of_two_passes(
    model: TextSeq2Seq,
    losses: tuple[Mapping[str, Loss], Mapping[str, Loss]],
    states: tuple[tuple[Padded, Padded, Tensor], ...],
) -> dict[str, Loss]:
    """R-Drop (Liang et al. 2021): the mean of the losses of two passes that differ in dropout, and `r_drop`, how far
    apart they are. It is the published loss halved: the size of what else there is stays what it is without.

    Args:
        losses: of each pass, the same names.
        states: (B, S, D) decoder states of each pass and the (B, S) mask of what counts, of each text that is learned.
    """
    first, second = losses
    means = {
        name: Loss((one.total + second[name].total) / 2, (one.count + second[name].count) / 2)
        for name, one in first.items()
    }
    apart = [symmetric_divergence(side_of(model, one), side_of(model, two), mask=mask) for one, two, mask in states]
    return {**means, "r_drop": sum(apart[1:], apart[0])}


def r_drop_weight(r_drop: float) -> dict[str, float]:
    """Its weight among those of the losses, where it is not 0. Raises ValueError: it is below 0."""
    if r_drop < 0:
        raise ValueError(f"r_drop must be at least 0; got {r_drop}")
    return {"r_drop": r_drop / 2} if r_drop else {}


def translate_text(
    model: TextSeq2Seq,
    memory: Padded,
    batch: Batch,
    mode: str,
    tokenizer: Tokenizer,
    options: SearchOptions,
    keep_states: bool = False,
) -> list[list[Hypothesis]]:
    """Hypotheses of each row of (B, T, D) memory, the best first, behind the tokenizer's prefix for the batch's
    languages and the task `mode`; with their decoder states if asked for."""
    prefix: Tensor = torch.tensor(prefixes(batch, mode, tokenizer), device=memory.device)
    return generate(
        model,
        memory,
        prefix,
        options,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
        keep_states=keep_states,
    )


def several_texts(
    model: TextSeq2Seq,
    memory: Padded,
    batch: Batch,
    mode: str,
    tokenizer: Tokenizer,
    options: SearchOptions,
    count: int,
) -> list[list[Prediction]]:
    """Up to `count` predictions of each row of the batch, the best first."""
    found = translate_text(model, memory, batch, mode, tokenizer, options)
    most = max(min(len(row), count) for row in found)
    # Rows with fewer hypotheses repeat their last one, which is then cut off again.
    ranks = [
        text_predictions(batch, mode, [row[min(rank, len(row) - 1)] for row in found], tokenizer)
        for rank in range(most)
    ]
    return [[ranks[rank][place] for rank in range(min(len(row), count))] for place, row in enumerate(found)]


def prefixes(batch: Batch, mode: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The first decoder tokens of each row of a batch."""
    sources = batch.src_lang or (None,) * len(batch)
    return [tokenizer.prefix(to, source, mode) for to, source in zip(batch.tgt_lang, sources, strict=True)]


def match_vocabulary(text_seq2seq: TextSeq2Seq, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer of another vocabulary than the model's, naming both sizes."""
    if text_seq2seq.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"text_seq2seq.vocab_size is {text_seq2seq.vocab_size}, but tokenizer.vocab_size is "
            f"{tokenizer.vocab_size}: set text_seq2seq.vocab_size=${{tokenizer.vocab_size}}, or with a published "
            "text_seq2seq take its own vocabulary, tokenizer=pretrained"
        )
