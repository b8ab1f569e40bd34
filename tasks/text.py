"""What tasks with a text decoder share: its input and loss, prefixes of languages, and text as predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..components.losses.cross_entropy import token_loss
from ..components.roles import TextSeq2Seq, Tokenizer
from ..components.search import Hypothesis, SearchOptions, generate
from ..components.types import Batch, Loss, Padded, Prediction, Statistic


def text_predictions(batch: Batch, mode: str, hypotheses: list[Hypothesis], tokenizer: Tokenizer) -> list[Prediction]:
    """One prediction per row of the batch from its best hypothesis."""
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
) -> tuple[Loss, Statistic]:
    """Label-smoothed cross entropy and accuracy of (B, S-1, D) states against (B, S) targets."""
    mask = states.mask.clone()
    if not loss_on_lang_token:
        mask[:, : prefix_length - 1] = False
    return token_loss(
        model.project,
        states,
        target.data[:, 1:],
        mask=mask,
        label_smoothing=label_smoothing,
        weight=model.output_weight,
    )


def translate_text(
    model: TextSeq2Seq,
    memory: Padded,
    batch: Batch,
    mode: str,
    tokenizer: Tokenizer,
    options: SearchOptions,
    keep_states: bool = False,
) -> list[Hypothesis]:
    """Best hypothesis of each row of (B, T, D) memory behind the tokenizer's prefix for the batch's languages and the
    task `mode`; with its decoder states if asked for."""
    prefix: Tensor = torch.tensor(prefixes(batch, mode, tokenizer), device=memory.device)
    found = generate(
        model,
        memory,
        prefix,
        options,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
        keep_states=keep_states,
    )
    return [hypotheses[0] for hypotheses in found]


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
