"""Connectionist temporal classification over padded batches. Letters: B batch, T frames, S subwords, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..types import Loss, Padded


def ctc_loss(logits: Padded, targets: Padded, blank: int = 0) -> Loss:
    """CTC (Graves et al. 2006) summed over the batch, in float32.

    A row counts only if it can be aligned: its target is not empty (an utterance without a transcript teaches nothing)
    and it has a frame for every token plus one for the blank between equal neighbours. Other rows contribute zero loss,
    zero gradient and no count.

    Args:
        logits: (B, T, V) scores before the softmax.
        targets: (B, S) ids without special tokens; `blank` does not occur among them.
        blank: id of the blank.

    Returns:
        The summed negative log-likelihood and the number of target tokens of the rows that count. On the meta device
        zero with the gradient path kept.
    """
    scores = logits.data.float()
    if (scores.is_meta and targets.data.is_meta) or not len(logits):
        return Loss(scores.sum() * 0, scores.new_zeros(()))
    lengths, target_lengths = logits.lengths.to(scores.device), targets.lengths.to(scores.device)
    repeats = ((targets.data[:, 1:] == targets.data[:, :-1]) & targets.mask[:, 1:]).sum(1)
    feasible = (target_lengths > 0) & (target_lengths + repeats.to(scores.device) <= lengths)
    # Rows that do not count become empty targets: the kernel then never sees an infinite loss.
    used = target_lengths * feasible
    nll = F.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1), targets.data, lengths, used, blank, reduction="none", zero_infinity=True
    )
    return Loss(torch.where(feasible, nll, 0.0).sum(), used.sum())
