"""Non-autoregressive text-to-unit model: CTC over units, with a duration model.

Letters: B batch, S subwords, C characters of a row, T steps of CTC, U units (one per frame), R reduced units,
D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from ..layers.attention import key_mask
from ..layers.characters import require_rows, require_text
from ..layers.dropout import Dropout
from ..layers.duration import DurationPredictor
from ..layers.runs import expand_runs, keep_steps, reduce_runs
from ..layers.transformer import EncoderLayer, LayerSettings
from ..limits import odd
from ..losses.ctc import ctc_loss
from ..roles import TextToUnit
from ..types import Loss, Padded, UnitOutput


class CTCT2U(TextToUnit):
    """States of the text decoder to reduced units by CTC; a second, small net gives each unit its duration.

    All units at once, no search. A state is spelled out (one step for each character of its token), refined by
    convolutions and attention, made `upsample` times longer so that CTC has room, refined again and classified into
    units and blank. Durations are learned on the true reduced units and predicted from the emitted ones, so the two
    nets do not wait for each other.

    CTC over up-sampled states: Libovicky and Helcl 2018 (arXiv 1811.04719, section 3). Durations over units: FastSpeech
    2 (arXiv 2006.04558, section 2.3), as unit vocoders use them.

    Losses: `t2u_ctc`, summed over rows and counted in reduced units, and `t2u_duration`, counted in reduced units. A
    row with more reduced units than CTC steps cannot be aligned and adds nothing to `t2u_ctc`, neither loss nor count:
    raise `upsample` where that happens (measured at 50 frames a second: 1.8 reduced units a character, 2.5 at most).

    Args:
        input_dim: width of the states.
        num_units: units; the blank is class `num_units`.
        vocab_size: V of the text, needed with `upsample_by: character`.
        upsample_by: `character` repeats a state by the characters of the token it stands for (at least once) and adds
            an embedding of each character; it needs `text` and `set_characters`. `subword` takes every state once.
        upsample: CTC steps for each character (or for each subword).
        dim: D.
        num_conv_layers: convolution blocks before up-sampling, at the rate of characters (or subwords).
        num_attention_layers: self-attention layers after them; order comes from the convolutions.
        num_output_layers: convolution blocks at the rate of CTC steps.
        num_heads: of the attention.
        kernel_size: of the first convolutions; odd.
        output_kernel_size: of the output convolutions; odd.
        num_characters: rows of the character embedding, at least `tokenizer.num_characters`.
        max_characters: characters of the longest piece that the table can hold.
        duration_dim: width of the duration net.
        duration_kernel_size: width of its convolutions; odd.
        dropout: in all blocks.
    """

    paper = "CTC over units: arXiv 1811.04719; durations: arXiv 2006.04558"
    characters: Tensor

    def __init__(
        self,
        input_dim: int,
        num_units: int,
        vocab_size: int = 0,
        upsample_by: Literal["subword", "character"] = "character",
        upsample: int = 3,
        dim: int = 160,
        num_conv_layers: int = 4,
        num_attention_layers: int = 1,
        num_output_layers: int = 3,
        num_heads: int = 4,
        kernel_size: int = 5,
        output_kernel_size: int = 3,
        num_characters: int = 512,
        max_characters: int = 16,
        duration_dim: int = 128,
        duration_kernel_size: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if upsample < 1:
            raise ValueError(f"upsample={upsample}: CTC needs at least 1 step for each {upsample_by}")
        odd(kernel_size=kernel_size, output_kernel_size=output_kernel_size)
        self.input_dim = input_dim
        self.num_units = num_units
        self.blank = num_units
        self.upsample_by = upsample_by
        self.upsample = upsample
        self.input = nn.Linear(input_dim, dim)
        if upsample_by == "character":
            if vocab_size < 1:
                raise ValueError("upsample_by='character' needs vocab_size, the rows of the tokenizer")
            self.num_tokens = vocab_size
            self.character_embedding = nn.Embedding(num_characters, dim, padding_idx=0)
            # Persistent, so that a checkpoint works without its tokenizer.
            self.register_buffer("characters", torch.zeros(vocab_size, max_characters, dtype=torch.int32))
            self._has_characters = False
        self.convolutions = nn.ModuleList(_ConvBlock(dim, kernel_size, dropout) for _ in range(num_conv_layers))
        layers = LayerSettings(dim, num_heads, 4 * dim, dropout, dropout)
        self.attentions = nn.ModuleList(EncoderLayer(layers) for _ in range(num_attention_layers))
        self.expand = nn.Linear(dim, dim * upsample)
        self.outputs = nn.ModuleList(_ConvBlock(dim, output_kernel_size, dropout) for _ in range(num_output_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_units + 1)
        self.unit_embedding = nn.Embedding(num_units, duration_dim)
        self.duration = DurationPredictor(duration_dim, duration_dim, duration_kernel_size, dropout)

    def set_characters(self, table: Tensor, pieces: Sequence[str] | None = None) -> None:
        """Give the characters of each token.

        Args:
            table: (V, C) int64 character ids, 0 beyond the end: `SentencePieceTokenizer.piece_characters()`.
        """
        if self.upsample_by != "character":
            return
        rows, width = self.characters.shape
        if table.shape[0] != rows or table.shape[1] > width:
            raise ValueError(
                f"the table of characters is {tuple(table.shape)}, expected ({rows}, at most {width}): set "
                "t2u.vocab_size to the rows of the tokenizer and t2u.max_characters to its longest piece"
            )
        self._has_characters = True
        if table.is_meta or self.characters.is_meta:  # the shape check knows no characters
            return
        require_rows(self.character_embedding, int(table.max()))
        self.characters.zero_()
        self.characters[:, : table.shape[1]] = table.to(self.characters)

    def forward(self, states: Padded, targets: Padded, text: Padded | None = None) -> dict[str, Loss]:
        units, durations = reduce_runs(targets)
        return {
            "t2u_ctc": ctc_loss(self.logits(states, text), units, blank=self.blank),
            "t2u_duration": self.duration.loss(self._embed_units(units), durations),
        }

    def logits(self, states: Padded, text: Padded | None = None) -> Padded:
        """(B, S, input_dim) states (and (B, S) tokens) -> (B, T, num_units + 1); the last class is the blank."""
        hidden = states.with_data(self.input(states.data))
        if self.upsample_by == "character":
            hidden = self._by_character(hidden, text)
        for convolution in self.convolutions:
            hidden = convolution(hidden)
        for layer in self.attentions:
            hidden = hidden.with_data(layer(hidden.data, key_mask(hidden)))
        batch, steps, dim = hidden.data.shape
        data = self.expand(hidden.data).view(batch, steps * self.upsample, dim)
        hidden = Padded(data, hidden.lengths * self.upsample)
        for convolution in self.outputs:
            hidden = convolution(hidden)
        return hidden.with_data(self.head(self.norm(hidden.data)))

    @torch.no_grad()
    def generate(
        self, states: Padded, text: Padded | None = None, *, duration_factor: float = 1.0, **options: Any
    ) -> UnitOutput:
        """(B, S, input_dim) states (and (B, S) tokens) -> reduced units (B, R), their durations, and scores (B,).

        The best path of CTC, its repeats merged and blanks dropped. A row may be empty early in training.

        Args:
            states: of the text decoder.
            text: tokens that the states stand for.
            duration_factor: above 1 speaks slower.
        """
        if options:
            raise TypeError(f"CTCT2U.generate has no option {', '.join(options)}; it has: duration_factor")
        logits = self.logits(states, text)
        best, path = logits.data.float().log_softmax(-1).max(-1)
        scores = best.masked_fill(~logits.mask, 0).sum(1)
        merged, _ = reduce_runs(logits.with_data(path))
        units = keep_steps(merged, merged.mask & (merged.data != self.blank))
        return UnitOutput(units, self.predict_durations(units, duration_factor), scores)

    def predict_durations(self, units: Padded, factor: float = 1.0) -> Padded:
        """(B, R) reduced units -> (B, R) int64 frames for each."""
        return self.duration.predict(self._embed_units(units), factor)

    def _embed_units(self, units: Padded) -> Padded:
        return units.with_data(self.unit_embedding(units.data))

    def _by_character(self, hidden: Padded, text: Padded | None) -> Padded:
        """(B, S, D) and (B, S) tokens -> (B, C, D): a state for each character, plus the embedding of the character."""
        text = require_text("upsample_by='character'", hidden, text)
        if text.data.is_meta:  # how long the pieces are is data: the shape check takes the longest
            width = self.characters.shape[1]
            characters = self.characters[text.data].flatten(1)
            data = hidden.data.repeat_interleave(width, 1) + self.character_embedding(characters)
            return Padded(data, hidden.lengths * width)
        if not self._has_characters:
            self._has_characters = bool(self.characters.any())
        if not self._has_characters:
            raise RuntimeError("CTCT2U has no characters yet: call set_characters(tokenizer.piece_characters()) first")
        table = self.characters[text.data].long()
        # Languages and eos have no characters but may stand for silence: one step each.
        counts = (table > 0).sum(2).clamp(min=1).masked_fill(~hidden.mask, 0)
        places = torch.arange(counts.shape[1], device=counts.device).expand_as(counts)
        token = expand_runs(places, Padded(counts, hidden.lengths))
        first = (counts.cumsum(1) - counts).gather(1, token.data)
        offset = (torch.arange(first.shape[1], device=first.device) - first).clamp(max=table.shape[2] - 1)
        characters = table.flatten(1).gather(1, token.data * table.shape[2] + offset)
        data = hidden.data.gather(1, token.data[..., None].expand(-1, -1, hidden.data.shape[2]))
        return token.with_data(data + self.character_embedding(characters))


class _ConvBlock(nn.Module):
    """x + dropout(gelu(conv(norm x))); padding is zero before the convolution."""

    def __init__(self, dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, kernel_size)
        self.padding = kernel_size // 2
        self.dropout = Dropout(dropout)

    def forward(self, x: Padded) -> Padded:
        """(B, T, D) -> (B, T, D)."""
        y = x.with_data(self.norm(x.data)).zeroed().data.transpose(1, 2)
        # The same convolution with a height of one: channels stay last in memory, which is a third faster on a CPU.
        weight, padding = self.conv.weight.unsqueeze(2), (0, self.padding)
        y = conv2d(y.unsqueeze(2), weight, self.conv.bias, padding=padding).squeeze(2).transpose(1, 2)
        return x.with_data(x.data + self.dropout(gelu(y)))
