"""A second pass: text states to units. Letters: B batch, S subwords, T steps, U units, D width."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn
from voxzoo.components.layers.runs import keep_steps, reduce_runs
from voxzoo.components.losses.ctc import ctc_loss
from voxzoo.components.roles import TextToUnit
from voxzoo.components.types import Loss, Padded, UnitOutput


class MineT2U(TextToUnit):
    """Each state is spread over several steps, and CTC finds the units among them (Graves et al. 2006).

    Units are without repetitions; how long each lasts is left to the vocoder.

    Args:
        input_dim: width of the decoder's states; the YAML takes it from `text_seq2seq.dim`.
        num_units: the YAML takes it from `unit_extractor.num_units`.
        dim: D.
        upsample: steps of a state; U / S at least, or units are lost.
        kernel_size: of the convolution over steps; odd.
    """

    def __init__(
        self, input_dim: int, num_units: int, dim: int = 128, upsample: int = 16, kernel_size: int = 5
    ) -> None:
        super().__init__()
        self.input_dim, self.num_units = input_dim, num_units
        self.dim, self.upsample = dim, upsample
        self.spread = nn.Linear(input_dim, dim * upsample)
        self.mix = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.head = nn.Linear(dim, num_units + 1)  # the last one is CTC's blank

    def logits(self, states: Padded) -> Padded:
        """(B, S, input_dim) -> (B, S * upsample, num_units + 1)."""
        data = self.spread(states.data).unflatten(2, (self.upsample, self.dim)).flatten(1, 2)
        steps = Padded(data, states.lengths * self.upsample).zeroed()
        mixed = self.mix(steps.data.transpose(1, 2)).transpose(1, 2)
        return steps.with_data(self.head(steps.data + F.gelu(mixed)))

    def forward(self, states: Padded, targets: Padded, text: Padded | None = None) -> dict[str, Loss]:
        """Losses of (B, S, input_dim) states against (B, U) units, one per frame. Keys never depend on the batch."""
        units, _ = reduce_runs(targets)
        return {"t2u_ctc": ctc_loss(self.logits(states), units, blank=self.num_units)}

    def generate(self, states: Padded, text: Padded | None = None, **options: Any) -> UnitOutput:
        """(B, S, input_dim) states -> (B, U) units."""
        logits = self.logits(states)
        runs, _ = reduce_runs(Padded(logits.data.argmax(-1), logits.lengths))
        return UnitOutput(keep_steps(runs, (runs.data != self.num_units) & runs.mask))
