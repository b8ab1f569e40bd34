"""A task. Letters: B batch, T steps, S subwords, D width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from voxzoo.components.roles import Adaptor, Frontend, SpeechEncoder, TextSeq2Seq, Tokenizer
from voxzoo.components.search import SearchOptions
from voxzoo.components.types import Batch, Loss, Statistic
from voxzoo.tasks import SpeechToText


class MineTask(SpeechToText):
    """Speech to text that also learns how many tokens a text has, from the mean of the adapted states.

    A `Loss` is trained on and is part of `valid/loss`; a `Statistic` is only counted and logged.

    Args:
        speech_encoder, adaptor, text_seq2seq, tokenizer, frontend: see `voxzoo.tasks.SpeechToText`, as for all that is
            not said here.
        length_weight: weight of the loss `length`.
        loss_weights: weights by loss name.
        search: default options of `predict`.
    """

    def __init__(
        self,
        *,
        speech_encoder: SpeechEncoder,
        adaptor: Adaptor,
        text_seq2seq: TextSeq2Seq,
        tokenizer: Tokenizer,
        frontend: Frontend,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        length_weight: float = 0.1,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
        super().__init__(
            speech_encoder=speech_encoder,
            adaptor=adaptor,
            text_seq2seq=text_seq2seq,
            tokenizer=tokenizer,
            frontend=frontend,
            ctc_weight=ctc_weight,
            label_smoothing=label_smoothing,
            loss_weights={"length": length_weight, **(loss_weights or {})},
            search=search,
        )
        self.length_head = nn.Linear(adaptor.output_dim, 1)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses and statistics: sums over the batch and what they are over. Keys never depend on the batch."""
        encoded, adapted, states = self.text_pass(batch)
        losses, statistics = self.text_losses(batch, encoded, adapted, states)
        assert batch.target is not None
        heard = adapted.states
        steps = heard.lengths.to(heard.device).clamp(min=1)
        mean = heard.zeroed().data.sum(1) / steps[:, None]  # (B, D)
        wanted = batch.target.lengths.to(heard.device).float().log()  # (B,)
        error = self.length_head(mean).squeeze(1).float() - wanted
        rows = torch.tensor(float(len(error)), device=heard.device)
        losses["length"] = Loss(error.square().sum(), rows)
        statistics["length_within_a_tenth"] = Statistic((error.abs() < 0.1).float().sum(), rows)
        return losses, statistics
