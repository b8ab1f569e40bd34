"""Shortening by what a CTC head recognises. Letters: B batch, T frames, R runs, D model dim, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..losses.ctc import ctc_loss
from ..roles import Adaptor
from ..types import Adapted, Loss, Padded


class CTCShrinkAdaptor(Adaptor):
    """CTC compression (Gaido et al. 2021, arXiv 2102.01578; Liu et al. 2020, arXiv 2010.14920): the states of
    neighbouring frames with the same prediction become their mean, blanks are dropped.

    A row on which the head sees only blanks keeps one step, the mean of its real states, so that the decoder always has
    something to read. The head learns from the loss `ctc_shrink` on the transcript; without `text` that loss is zero.

    Args:
        input_dim: width of the encoder's states.
        output_dim: width of the decoder.
        vocab_size: ids of the transcript (of the tokenizer).
        blank_id: id of the blank; the padding id, which no transcript holds.
        loss_weight: factor on the loss.
    """

    paper = "CTC compression, arXiv 2102.01578"
    stacks = ()
    length_is_bound = True

    def __init__(
        self, input_dim: int, output_dim: int, vocab_size: int, blank_id: int = 0, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= blank_id < vocab_size:
            raise ValueError(f"blank_id must be an id of the vocabulary, 0 to {vocab_size - 1}; got {blank_id}")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.blank_id = blank_id
        self.loss_weight = loss_weight
        self.head = nn.Linear(input_dim, vocab_size)
        self.projection = nn.Linear(input_dim, output_dim) if input_dim != output_dim else nn.Identity()

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim), (B, S) transcript ids -> (B, T', output_dim), T' <= T (on meta T' = T)."""
        logits = states.with_data(self.head(states.data))
        if text is None:
            # The head stays in the graph, so that every process has the same gradients to exchange.
            loss = Loss(logits.zeroed().data.float().sum() * 0, logits.data.new_zeros((), dtype=torch.float32))
        else:
            loss = ctc_loss(logits, text, self.blank_id)
        shrunk = self.shrink(states, logits.data.detach().argmax(-1))
        return Adapted(
            shrunk.with_data(self.projection(shrunk.data)),
            {"ctc_shrink": Loss(loss.total * self.loss_weight, loss.count)},
        )

    def shrink(self, states: Padded, labels: Tensor) -> Padded:
        """(B, T, D) states and (B, T) int64 labels -> (B, R, D) means of the runs that are not blank, zero beyond."""
        if states.data.is_meta:
            return states
        keep = states.mask
        spoken = keep & (labels != self.blank_id)
        silent = ~spoken.any(1)
        first = spoken.clone()
        first[:, 1:] &= (labels[:, 1:] != labels[:, :-1]) | ~spoken[:, :-1]
        # All frames of a row without any label form its one run.
        member = torch.where(silent[:, None], keep, spoken)
        first[:, 0] |= silent & keep[:, 0]
        lengths = first.sum(1)
        runs = max(int(lengths.max()), 1) if len(states) else 0
        index = (first.cumsum(1) - 1).clamp(min=0)
        # As a product (B, R, T) x (B, T, D): deterministic, and exact zeros where a row has no such run.
        share = (index[:, None] == torch.arange(runs, device=index.device)[:, None]) & member[:, None]
        share = share.to(states.data)
        data = share @ states.zeroed().data / share.sum(-1, keepdim=True).clamp(min=1)
        return Padded(data, lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """The upper bound: no two neighbouring frames alike."""
        return lengths
