"""Transformer text encoder and decoder of the M2M-100, NLLB and SeamlessM4T family, and the decoder of Whisper.

Letters: B batch, T memory steps, S subwords, D model dim, V vocabulary, R = B x beams rows.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.activations import Activation
from ..layers.transformer import (
    DecoderCache,
    LayerSettings,
    TokenEmbedding,
    TransformerDecoder,
    TransformerEncoder,
)
from ..roles import DecoderState, TextSeq2Seq
from ..types import Padded


class TransformerSeq2Seq(TextSeq2Seq):
    """Pre-norm Transformer over one multilingual vocabulary (NLLB Team 2022, section 6; SeamlessM4T 2023, section 4).

    Without encoder layers it is a decoder for speech memory alone. Published models of this family load by their key
    map; where two code bases disagree over the same weights there is a switch.

    Args:
        vocab_size: V, of the tokenizer.
        dim: width of embeddings, states and memory.
        num_heads: attention heads of each layer.
        ffn_dim: inner width of the FFN.
        num_encoder_layers: 0 for no text encoder.
        num_decoder_layers: layers of the decoder.
        activation: of the FFN.
        dropout: on embeddings, and on what attention adds.
        attention_dropout: on attention weights.
        activation_dropout: inside the FFN.
        ffn_dropout: on what the FFN adds; None: as `dropout` (fairseq, NLLB). transformers' SeamlessM4T has 0.
        layerdrop: probability of skipping a layer while training.
        tie_embeddings: encoder and decoder share one embedding matrix.
        tie_output: the output layer is the decoder's embedding matrix.
        scale_embeddings: multiply embeddings by sqrt(D).
        position_start: number of the first position: 2 for NLLB and official SeamlessM4T, 1 for the port in
            transformers.
        pad_id: id whose embedding stays zero.
        max_positions: learned positions instead of sinusoidal ones, and so the most tokens of a sequence, prefix
            included (Whisper); generation stops there.
        key_bias: a bias of the keys in attention (Whisper has none).
    """

    paper = "NLLB Team 2022, arXiv:2207.04672; SeamlessM4T 2023, arXiv:2308.11596; Whisper 2022, arXiv:2212.04356"

    def __init__(
        self,
        vocab_size: int,
        dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        ffn_dropout: float | None = None,
        activation: Activation = "relu",
        layerdrop: float = 0.0,
        tie_embeddings: bool = True,
        tie_output: bool = True,
        scale_embeddings: bool = True,
        position_start: int = 2,
        pad_id: int = 0,
        max_positions: int | None = None,
        key_bias: bool = True,
    ) -> None:
        super().__init__()
        if num_encoder_layers < 0:
            raise ValueError(f"num_encoder_layers must be 0 (no text encoder) or more; got {num_encoder_layers}")
        self.dim = dim
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.has_encoder = num_encoder_layers > 0
        layers = LayerSettings(
            dim,
            num_heads,
            ffn_dim,
            dropout,
            attention_dropout,
            activation_dropout,
            ffn_dropout,
            activation,
            layerdrop,
            key_bias,
        )
        embeddings = (scale_embeddings, position_start, max_positions)
        self.decoder = TransformerDecoder(num_decoder_layers, layers, vocab_size, pad_id, tie_output, *embeddings)
        if not self.has_encoder:
            return
        # One name for a shared matrix: a checkpoint then holds it once.
        self.encoder_embed = None if tie_embeddings else TokenEmbedding(vocab_size, dim, pad_id, *embeddings)
        self.encoder = TransformerEncoder(num_encoder_layers, layers)

    def encoder_only(self) -> list[nn.Module]:
        """The text encoder, and its embeddings where they are its own."""
        if not self.has_encoder:
            return []
        return [self.encoder] if self.encoder_embed is None else [self.encoder, self.encoder_embed]

    def encode(self, text: Padded) -> Padded:
        """(B, S) ids -> (B, S, D) memory after the final norm. Raises ValueError where there is no encoder."""
        if not self.has_encoder:
            raise ValueError(
                "this model has no text encoder (num_encoder_layers=0), so it cannot read text; "
                "set text_seq2seq.num_encoder_layers for t2tt and t2st"
            )
        embed = self.decoder.embed if self.encoder_embed is None else self.encoder_embed
        return self.encoder(text.with_data(embed(text.data)))

    def decode(self, memory: Padded, tokens: Padded) -> Padded:
        """Teacher forcing: (B, T, D) memory and (B, S) decoder input -> (B, S, D) states after the final norm."""
        return self.decoder(memory, tokens)

    def project(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        return self.decoder.project(states)

    @property
    def output_weight(self) -> Tensor:
        return self.decoder.output_weight

    def start(self, memory: Padded, beams: int = 1) -> DecoderCache:
        """Prepare cached decoding: keys and values of (B, T, D) memory once per sample, B x beams rows."""
        return self.decoder.start(memory, beams)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`."""
        return self.decoder.step(tokens, state)
