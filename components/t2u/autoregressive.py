"""Autoregressive text-to-unit model, the second pass of UnitY.

Letters: B batch, S subwords, U units (one per frame), R reduced units, D model dim, V rows of the unit vocabulary,
L languages.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.activations import Activation
from ..layers.runs import reduce_runs
from ..layers.transformer import LayerSettings, TransformerDecoder, TransformerEncoder
from ..layers.unit_vocabulary import BOS, EOS, OFFSET, PAD, UNK, vocabulary_size
from ..losses.cross_entropy import token_loss
from ..roles import TextToUnit
from ..search import SearchOptions, generate
from ..types import Loss, Padded, UnitOutput


class AutoregressiveT2U(TextToUnit):
    """Encoder over the states of the text decoder, and a decoder of reduced units with its own embeddings.

    UnitY (arXiv 2212.08055, section 3.2) as in SeamlessM4T v1 (arXiv 2308.11596, section 4.3). The encoder has neither
    embeddings nor positions: the states bring both. The decoder writes reduced units; how long each lasts is left to
    the vocoder.

    Rows of the unit vocabulary: bos 0, pad 1, eos 2, unk 3, unit u at u + 4, then languages. The target is eos,
    language (where there are any), units, eos; decoder input is [:-1], labels are [1:], the language is not a label.

    Loss: `t2u_unit`, label-smoothed cross entropy counted in reduced units and eos.

    Args:
        input_dim: width of the states. Where it differs from `dim` a linear layer comes first.
        num_units: units.
        dim: D.
        num_heads, ffn_dim: of encoder and decoder.
        num_encoder_layers, num_decoder_layers: depth.
        num_languages: L, language tokens; 0 for none.
        default_language: place of the language where `lang` is not given; null: it must be given (unless L is 0 or 1).
        first_language_id: row of the first one; null: right behind the units. 10043 in published checkpoints.
        vocab_size: V; null: no more rows than needed. 10082 in published checkpoints.
        label_smoothing: share of the probability spread over the vocabulary, fairseq form.
        dropout, attention_dropout, activation_dropout, ffn_dropout, activation, layerdrop: as in TransformerSeq2Seq.
        tie_output: the output layer is the embedding matrix.
        beam_size: of `generate`.
        max_length: most units that `generate` writes for a row, eos included.
        max_length_a, max_length_b: also at most a * S + b.
        min_length: fewest units.
        early_stopping, force_eos: as in `SearchOptions`; transformers has neither.
        score: as in `SearchOptions`: whether the language token counts.
        eos_step: `generate` leaves a step behind the units of a row for its eos, as transformers does: a vocoder that
            speaks padding speaks that step too.
    """

    paper = "UnitY, arXiv 2212.08055; SeamlessM4T v1, arXiv 2308.11596"

    def __init__(
        self,
        input_dim: int,
        num_units: int,
        dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 6,
        num_languages: int = 0,
        default_language: int | None = None,
        first_language_id: int | None = None,
        vocab_size: int | None = None,
        label_smoothing: float = 0.2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        ffn_dropout: float | None = None,
        activation: Activation = "relu",
        layerdrop: float = 0.0,
        tie_output: bool = True,
        beam_size: int = 5,
        max_length: int = 1024,
        max_length_a: float = 25.0,
        max_length_b: int = 50,
        min_length: int = 1,
        early_stopping: bool = True,
        force_eos: bool = True,
        score: Literal["generated", "with_prefix"] = "generated",
        eos_step: bool = False,
    ) -> None:
        super().__init__()
        after_units = OFFSET + num_units
        first_language_id = after_units if first_language_id is None else first_language_id
        if first_language_id < after_units:
            raise ValueError(
                f"first_language_id={first_language_id} lies among the units; the first free row is {after_units}"
            )
        if num_languages == 1:
            default_language = 0
        if default_language is not None and not 0 <= default_language < num_languages:
            raise ValueError(
                f"default_language={default_language} is not one of the {num_languages} languages, 0-based"
            )
        self.input_dim = input_dim
        self.num_units = num_units
        self.num_languages = num_languages
        self.default_language = default_language
        self.first_language_id = first_language_id
        self.vocab_size = vocabulary_size(
            vocab_size,
            first_language_id + num_languages,
            f"{num_units} units and {num_languages} languages from row {first_language_id}",
        )
        self.label_smoothing = label_smoothing
        self.eos_step = eos_step
        self.search = SearchOptions(
            beam_size=beam_size,
            max_length=max_length,
            max_length_a=max_length_a,
            max_length_b=max_length_b,
            min_length=min_length,
            early_stopping=early_stopping,
            force_eos=force_eos,
            score=score,
            unk_penalty=float("inf"),
            # Only units (and eos) come out: a language would be an index the vocoder does not have.
            suppress=(BOS, PAD, *range(after_units, self.vocab_size)),
        )
        self.input = nn.Identity() if input_dim == dim else nn.Linear(input_dim, dim)
        layers = LayerSettings(
            dim, num_heads, ffn_dim, dropout, attention_dropout, activation_dropout, ffn_dropout, activation, layerdrop
        )
        self.encoder = TransformerEncoder(num_encoder_layers, layers)
        # Positions start behind the padding id, as fairseq counts them.
        self.decoder = TransformerDecoder(
            num_decoder_layers, layers, self.vocab_size, PAD, tie_output, position_start=PAD + 1
        )

    def forward(
        self, states: Padded, targets: Padded, text: Padded | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """Loss of (B, S, input_dim) states against (B, U) units, one per frame; `text` is not read.

        Args:
            states: of the text decoder.
            targets: units, runs not merged.
            text: ignored.
            lang: (B,) int64 place of the target language in 0..L-1; left out: `default_language`.
        """
        units, _ = reduce_runs(targets)
        tokens, labels, counts = self.pack(units, lang)
        hidden = self.decoder(self.encode(states), tokens)
        loss, _ = token_loss(
            self.decoder.project, hidden, labels, mask=counts, label_smoothing=self.label_smoothing, smoothing="fairseq"
        )
        return {"t2u_unit": loss}

    def encode(self, states: Padded) -> Padded:
        """(B, S, input_dim) states -> (B, S, D) memory."""
        return self.encoder(states.with_data(self.input(states.data)))

    def pack(self, units: Padded, lang: Tensor | None = None) -> tuple[Padded, Tensor, Tensor]:
        """(B, R) reduced units -> decoder input (B, P + R), labels and which labels count, both (B, P + R).

        P = 2 (eos, language) or 1 (eos). Padding has id 1.
        """
        prefix = self.prefix(len(units), units.device, lang)
        rows = torch.cat([prefix, units.data + OFFSET, prefix.new_full((len(units), 1), PAD)], 1)
        lengths = units.lengths + prefix.shape[1]
        place = torch.arange(rows.shape[1], device=rows.device)
        ends = lengths.to(rows.device)[:, None]
        rows = rows.masked_fill(place >= ends, PAD)
        labels = rows.masked_fill(place == ends, EOS)[:, 1:]
        counts = (place[1:] <= ends) & (place[1:] >= prefix.shape[1])
        return Padded(rows[:, :-1], lengths), labels, counts

    def prefix(self, batch: int, device: torch.device, lang: Tensor | None = None) -> Tensor:
        """(B, P) first ids: eos, then the language where there are any."""
        start = torch.full((batch, 1), EOS, device=device)
        if not self.num_languages:
            return start
        if lang is None:
            if self.default_language is None:
                raise ValueError(
                    f"this text-to-unit model has {self.num_languages} languages: give `lang`, (B,) int64, or set "
                    "t2u.default_language"
                )
            lang = torch.full((batch,), self.default_language, device=device)
        return torch.cat([start, self.first_language_id + lang.to(device)[:, None]], 1)

    @torch.no_grad()
    def generate(
        self,
        states: Padded,
        text: Padded | None = None,
        *,
        lang: Tensor | None = None,
        search: SearchOptions | None = None,
        **options: Any,
    ) -> UnitOutput:
        """(B, S, input_dim) states -> reduced units (B, R) without durations, and normalised scores (B,).

        Args:
            states: of the text decoder.
            text: ignored.
            lang: as in `forward`.
            search: instead of the options the part was built with.
        """
        if options:
            raise TypeError(f"AutoregressiveT2U.generate has no option {', '.join(options)}; it has: lang, search")
        prefix = self.prefix(len(states), states.device, lang)
        found = generate(
            self.decoder, self.encode(states), prefix, search or self.search, eos_id=EOS, pad_id=PAD, unk_id=UNK
        )
        best = [hypotheses[0] for hypotheses in found]
        units = Padded.from_list([hypothesis.tokens - OFFSET for hypothesis in best]).to(states.device)
        width = max(len(hypothesis.tokens) + hypothesis.ended for hypothesis in best) if self.eos_step else 1
        if width > units.data.shape[1]:
            units = Padded(F.pad(units.data, (0, width - units.data.shape[1])), units.lengths)
        return UnitOutput(units, None, torch.tensor([hypothesis.score for hypothesis in best], device=states.device))
