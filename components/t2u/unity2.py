"""Non-autoregressive text-to-unit model of UnitY2: characters, durations, all units at once.

Letters: B batch, S subwords, C characters of a row, U units (one per frame), D model dim, V rows of the unit
vocabulary, N units of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers.activations import ACTIVATIONS, Activation
from ..layers.attention import MultiHeadAttention, key_mask
from ..layers.characters import CharacterTable, require_rows, require_text
from ..layers.dropout import Dropout
from ..layers.duration import CHARACTER_STEPS, DurationPredictor
from ..layers.layer_drop import run_layers
from ..layers.packing import Packing
from ..layers.positions import SinusoidalPositions
from ..layers.runs import expand_runs, keep_steps
from ..layers.transformer import LayerSettings, TransformerEncoder
from ..layers.unit_vocabulary import EOS, OFFSET, PAD, vocabulary_size
from ..limits import odd
from ..losses.cross_entropy import token_loss
from ..roles import TextToUnit
from ..types import Loss, Padded, UnitOutput
from .aligner import UnitAligner

_CHUNK_LOGITS = 2**22
"""Logits that `generate` holds at once: 16 MiB in float32."""


class UnitY2T2U(TextToUnit):
    """States of the text decoder to units by way of characters, without search and without recursion.

    Seamless (arXiv 2312.05187, section 3.3) as in SeamlessM4T v2. An encoder refines the states. Each is repeated for
    the characters of the token that it predicts and joined by embeddings of the characters; a predictor says how many
    units a character lasts, and the sum is repeated by that. Layers of attention and convolution then name all units at
    once. There is one unit per frame, and no language: the states bring it.

    What it reads: `text` holds the token that each state predicts, so `t1 .. tn eos`, or `lang t1 .. tn eos` with the
    states of the whole prefix. A token without characters (language, eos, padding) has no units of its own, but its
    state is read by the encoder: published weights expect both ends. transformers also feeds one state more, that of
    eos itself, in all rows of a batch but the longest; a caller gets the same by passing that state, with a token that
    has no characters. Passing none, the official way, makes a row of a batch equal to the row alone.

    Training needs durations. `aligner: true` learns them without labels (see `UnitAligner`) with parameters of its own,
    which no published checkpoint has. Losses: `t2u_unit`, label-smoothed cross entropy under the aligned durations, and
    `t2u_binarisation`, both counted in units; `t2u_duration` and `t2u_alignment`, counted in characters. A row with
    fewer units than characters cannot be aligned: it adds nothing to any of them, neither loss nor count. The glancing
    of the paper (some units given away in training) is left out.

    Rows of the unit vocabulary: bos 0, pad 1, eos 2, unk 3, unit u at u + 4; the rest is unused.

    Args:
        input_dim: width of the states. Where it differs from `dim` a linear layer comes first.
        num_units: units.
        dim: D.
        num_heads: of encoder and decoder.
        ffn_dim: of the encoder; the decoder has convolutions instead.
        num_encoder_layers, num_decoder_layers: depth.
        kernel_size: of the decoder's convolutions; odd.
        num_characters: rows of the character embedding, at least `tokenizer.num_characters`.
        vocab_size: V; null: no more rows than needed. 10082 in published checkpoints.
        duration_dim, duration_kernel_size, duration_dropout: of the duration predictor.
        dropout: on the input of encoder and decoder, and on what the encoder's attention adds.
        attention_dropout: on the weights of attention.
        activation_dropout: inside the encoder's FFN.
        ffn_dropout: on what the encoder's FFN adds; null: as `dropout`.
        conv_dropout: on what the decoder's convolutions add.
        activation: of FFN and convolutions.
        layerdrop: probability of skipping a layer while training.
        scale_embeddings: multiply embeddings of characters by sqrt(D).
        vocoder_predicts_durations: `generate` leaves durations to the vocoder, as transformers does. False, as in the
            official code: a unit lasts one frame, since it was already repeated by its duration.
        eos_as_unit: a step whose most probable row is eos or padding becomes unit 1, as in transformers, whose padding
            id is that unit to the vocoder. False: it is left out.
        label_smoothing: share of the probability spread over the vocabulary, fairseq form.
        aligner: learn the durations that training needs. False, as imported: `forward` refuses, `generate` works.
        aligner_dim: width of the aligner.
        aligner_dropout: inside the aligner.
        aligner_temperature: scales the distance of a unit and a character.
        aligner_prior: strength of the diagonal prior; 0 for none.
    """

    paper = "Seamless (UnitY2), arXiv 2312.05187"

    def __init__(
        self,
        input_dim: int,
        num_units: int,
        dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 6,
        kernel_size: int = 7,
        num_characters: int = 512,
        vocab_size: int | None = None,
        duration_dim: int = 256,
        duration_kernel_size: int = 3,
        duration_dropout: float = 0.5,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        ffn_dropout: float | None = None,
        conv_dropout: float = 0.1,
        activation: Activation = "relu",
        layerdrop: float = 0.0,
        scale_embeddings: bool = True,
        vocoder_predicts_durations: bool = False,
        eos_as_unit: bool = False,
        label_smoothing: float = 0.1,
        aligner: bool = True,
        aligner_dim: int = 512,
        aligner_dropout: float = 0.1,
        aligner_temperature: float = 1.0,
        aligner_prior: float = 1.0,
    ) -> None:
        super().__init__()
        odd(kernel_size=kernel_size)
        self.input_dim = input_dim
        self.num_units = num_units
        self.dim = dim
        self.vocab_size = vocabulary_size(vocab_size, OFFSET + num_units, f"{num_units} units")
        self.scale = dim**0.5 if scale_embeddings else 1.0
        self.vocoder_predicts_durations = vocoder_predicts_durations
        self.eos_as_unit = eos_as_unit
        self.label_smoothing = label_smoothing
        self.layerdrop = layerdrop
        self.gap = kernel_size // 2
        self.input = nn.Identity() if input_dim == dim else nn.Linear(input_dim, dim)
        layers = LayerSettings(
            dim, num_heads, ffn_dim, dropout, attention_dropout, activation_dropout, ffn_dropout, activation, layerdrop
        )
        self.encoder = TransformerEncoder(num_encoder_layers, layers)
        self.character_embedding = nn.Embedding(num_characters, dim)
        self.character_alpha = nn.Parameter(torch.ones(1))
        self.duration = DurationPredictor(dim, duration_dim, duration_kernel_size, duration_dropout)
        self.unit_alpha = nn.Parameter(torch.ones(1))
        # Positions start behind the padding id, as fairseq counts them.
        self.positions = SinusoidalPositions(dim, PAD + 1)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads, kernel_size, attention_dropout, conv_dropout, activation)
            for _ in range(num_decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, self.vocab_size, bias=False)
        for weight in (self.character_embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=dim**-0.5)
        self.aligner = (
            UnitAligner(num_characters, num_units, aligner_dim, aligner_dropout, aligner_temperature, aligner_prior)
            if aligner
            else None
        )
        # A plain attribute: it comes from the tokenizer, and no checkpoint has it.
        self._characters: CharacterTable | None = None

    def set_characters(self, table: Tensor, pieces: Sequence[str] | None = None) -> None:
        """Give the characters of each token and, for the rule of punctuation, its text.

        Args:
            table: (V, W) int64 character ids, 0 beyond the end.
            pieces: text of each token with its word mark, "" for specials; None: no token counts as punctuation, so
                that the word mark behind a comma sounds with the next word.
        """
        if table.is_meta:
            return
        characters = CharacterTable(table, pieces)
        require_rows(self.character_embedding, characters.highest)
        self._characters = characters

    def forward(
        self, states: Padded, targets: Padded, text: Padded | None = None, durations: Padded | None = None
    ) -> dict[str, Loss]:
        """Losses of (B, S, input_dim) states against (B, U) units, one per frame.

        Args:
            states: of the text decoder.
            targets: units, runs not merged.
            text: (B, S) the token that each state predicts.
            durations: (B, C) int64 units of each character, from elsewhere, instead of the aligner's; a row whose sum
                is not its number of units adds nothing. The aligner does not learn then.

        Raises:
            UserError: there is neither an aligner nor `durations`.
        """
        hidden, characters = self.spell(states, text)
        alignment = binarisation = Loss.zero(hidden.device)
        if durations is not None:
            fits = durations.zeroed().data.sum(1) == targets.lengths.to(durations.device)
            durations = Padded(durations.data, durations.lengths.to(durations.device) * fits)
        elif self.aligner is not None:
            durations, alignment, binarisation = self.aligner(characters, targets)
        elif hidden.data.is_meta:  # the shape check of a part that was imported, which may never be trained
            durations = characters
        else:
            raise UserError(
                "t2u.aligner is false: training UnitY2T2U needs durations, so set t2u.aligner=true (new parameters, "
                "which no published checkpoint has)"
            )
        assert durations is not None
        decoded = self.decode(hidden, durations, targets)
        steps = decoded.data.shape[1]
        loss, _ = token_loss(
            self.output,
            decoded,
            targets.data[:, :steps] + OFFSET,
            mask=decoded.mask & targets.mask[:, :steps],
            label_smoothing=self.label_smoothing,
            smoothing="fairseq",
        )
        return {
            "t2u_unit": loss,
            "t2u_duration": self.duration.loss(hidden, durations),
            "t2u_alignment": alignment,
            "t2u_binarisation": binarisation,
        }

    def spell(self, states: Padded, text: Padded | None) -> tuple[Padded, Padded]:
        """(B, S, input_dim) states and the (B, S) token that each predicts -> (B, C, D) states and (B, C) ids of the
        characters, with positions and embeddings of characters in the states.

        Raises:
            ValueError: no text, or not one token for each state.
            RuntimeError: `set_characters` was not called.
        """
        text = require_text("UnitY2T2U", states, text)
        if self._characters is None:
            raise RuntimeError("UnitY2T2U has no characters yet: call set_characters(table, pieces) first")
        memory = self.encoder(states.with_data(self.input(states.data)))
        hidden, characters = self._characters.spell(memory, text)
        positions = self.character_alpha * self.positions.table(0, hidden.data.shape[1], hidden.data)
        embedded = self.character_embedding(characters.data) * self.scale
        return hidden.with_data(embedded + positions + hidden.data), characters

    def decode(self, hidden: Padded, durations: Padded, targets: Padded | None = None) -> Padded:
        """(B, C, D) states of characters and (B, C) int64 durations -> (B, U, D) states after the final norm.

        Args:
            targets: (B, U) units that the durations were made for: how long the output is on the meta device.
        """
        if hidden.data.is_meta and targets is not None:
            steps = targets.data.shape[1]
            expanded = Padded(hidden.data[:, :1].expand(-1, steps, -1), targets.lengths)
        else:
            expanded = expand_runs(hidden.data, durations)
        x = expanded.data + self.unit_alpha * self.positions.table(0, expanded.data.shape[1], expanded.data)
        x = self.dropout(x)
        mask, keys = expanded.mask, key_mask(expanded)
        packing = Packing.of(expanded, self.gap)
        if packing is not None:
            x = packing.pack(x)
        x = run_layers(self.layers, x, mask, keys, packing, drop=self.layerdrop if self.training else 0.0)
        x = self.norm(x)
        return expanded.with_data(x if packing is None else packing.unpack(x))

    def logits(self, states: Padded, text: Padded | None, duration_factor: float = 1.0) -> Padded:
        """(B, S, input_dim) states and their (B, S) tokens -> (B, U, V) scores under predicted durations."""
        decoded = self._decode_freely(states, text, duration_factor)
        return decoded.with_data(self.output(decoded.data))

    @torch.no_grad()
    def generate(
        self,
        states: Padded,
        text: Padded | None = None,
        *,
        duration_factor: float = 1.0,
        temperature: float = 0.0,
        **options: Any,
    ) -> UnitOutput:
        """(B, S, input_dim) states and their (B, S) tokens -> units (B, U), one per frame, and scores (B,).

        The most probable row of each step; what is no unit is left out (see `eos_as_unit`). Text without characters
        gives no units.

        Args:
            states: of the text decoder.
            text: the token that each state predicts.
            duration_factor: above 1 speaks slower.
            temperature: 0 takes the most probable; above, units are drawn from softmax(logits / temperature).
        """
        if options:
            raise TypeError(
                f"UnitY2T2U.generate has no option {', '.join(options)}; it has: duration_factor, temperature"
            )
        if temperature < 0:
            raise ValueError(f"temperature must be 0 or more; got {temperature}")
        decoded = self._decode_freely(states, text, duration_factor)
        rows, scores = self._choose(decoded, temperature)
        if self.eos_as_unit:
            rows = rows.masked_fill((rows == PAD) | (rows == EOS), OFFSET + 1)
        is_unit = decoded.mask & (rows >= OFFSET) & (rows < OFFSET + self.num_units)
        units = keep_steps(decoded.with_data(rows - OFFSET), is_unit)
        durations = None if self.vocoder_predicts_durations else units.with_data(torch.ones_like(units.data)).zeroed()
        return UnitOutput(units, durations, scores)

    def _decode_freely(self, states: Padded, text: Padded | None, factor: float) -> Padded:
        hidden, _ = self.spell(states, text)
        return self.decode(hidden, self.duration.predict(hidden, factor, CHARACTER_STEPS))

    def _choose(self, decoded: Padded, temperature: float) -> tuple[Tensor, Tensor]:
        """(B, U, D) -> the (B, U) row of the vocabulary chosen at each step and the (B,) log-probability of all.

        Padded steps are not projected, and logits exist for a few steps at a time.
        """
        mask = decoded.mask
        states = decoded.data.flatten(0, 1) if decoded.data.is_meta else decoded.data[mask]
        chosen, logs = [], []
        for part in states.split(max(_CHUNK_LOGITS // self.vocab_size, 1)):
            logits = self.output(part).float()
            if temperature > 0:
                best = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
                value = logits.gather(1, best[:, None])[:, 0]
            else:
                value, best = logits.max(-1)
            chosen.append(best)
            logs.append(value - logits.logsumexp(-1))
        rows, scores = torch.cat(chosen), torch.cat(logs)
        if decoded.data.is_meta:
            return rows.view(mask.shape), scores.view(mask.shape).sum(1)
        found = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device).masked_scatter(mask, rows)
        return found, scores.new_zeros(mask.shape).masked_scatter(mask, scores).sum(1)


class _Layer(nn.Module):
    """Post-norm: LN(x + Attention(x)), then LN(x + conv(relu(conv(x)))). Both convolutions see zeros for padding."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        attention_dropout: float,
        conv_dropout: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, num_heads, attention_dropout)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.conv1 = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.activation = ACTIVATIONS[activation]
        self.conv_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(conv_dropout)

    def forward(self, x: Tensor, mask: Tensor, keys: Tensor, packing: Packing | None) -> Tensor:
        """(B, U, D), mask (B, U), keys as of `key_mask` -> (B, U, D); padded steps hold no meaning. With `packing` x is
        (1, P, D)."""
        attention, outside = self.self_attention, ~mask[:, None]
        if packing is None:
            attended = attention(x, mask=keys)
        else:
            query, key, value = (attention.heads(y) for y in packing.unpack(attention.qkv(x)).chunk(3, dim=-1))
            attended = packing.pack(attention.attend(query, key, value, keys))
            outside = ~packing.real
        x = self.self_attention_norm(x + attended)
        y = self.conv1(x.transpose(1, 2).masked_fill(outside, 0))
        y = self.conv2(self.activation(y).masked_fill(outside, 0)).transpose(1, 2)
        return self.conv_norm(x + self.dropout(y))
