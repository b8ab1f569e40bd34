"""The Conformer encoder of w2v-BERT 2.0 and SeamlessM4T. Letters: B batch, T frames, F features, D model dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.alike import in_turn
from ..layers.attention import key_mask
from ..layers.conformer import ConformerLayer
from ..layers.convolution import ConvNorm
from ..layers.dropout import Dropout
from ..layers.layer_drop import left_out
from ..layers.relative_attention import Position, positions
from ..layers.spec_augment import SpanMasking, SpecAugment, mask_vector
from ..layers.steps import refuse_no_steps
from ..layers.transformer import FeedForward
from ..limits import at_least, probability
from ..roles import SpeechEncoder
from ..types import Padded


class ConformerEncoder(SpeechEncoder):
    """Feature projection and Conformer blocks, one state per input step.

    The published encoders are settings of it (configs of the same names): w2v-BERT 2.0 and SeamlessM4T v2 (Seamless,
    arXiv 2312.05187) with `relative_key` positions, causal convolution and layer norm; SeamlessM4T v1 (arXiv
    2308.11596) with `relative` positions, symmetric convolution and batch norm.

    Args:
        input_dim: width F of the front end's features.
        dim: width D of the states, a multiple of `num_heads`.
        num_layers: Conformer blocks.
        num_heads: attention heads.
        ffn_dim: inner width of the feed-forward layers.
        kernel_size: frames of the depthwise convolution.
        position: `relative_key` (clipped distances), `relative` (Transformer-XL) or `none`.
        left_context, right_context: clipping distances in frames of `relative_key`; they do not limit the attention.
        causal_conv: the convolution sees the past only.
        conv_norm: norm after the depthwise convolution. `batch` takes its statistics from the real steps of the batch.
        padding_in_norm: `batch` counts padded steps too while training, as in the published implementations: what a
            step gives then depends on the padding.
        chunk_size: attention within chunks of this many frames and `left_chunks` before them; None: everywhere.
        left_chunks: chunks of the past that are seen; None: all.
        final_norm: layer norm after the last block (SeamlessM4T has one, w2v-BERT 2.0 has none).
        intermediate_ffn: half-step ReLU feed-forward at the end (SeamlessM4T).
        input_dropout: after the feature projection.
        dropout: on the output of feed-forward layers and attention.
        attention_dropout: on the attention weights.
        activation_dropout: inside feed-forward layers.
        conv_dropout: on the output of the convolution module.
        layer_drop: probability that a block is left out of a training step (LayerDrop, arXiv 1909.11556).
        spec_augment: masks the features while training.
        mask_embedding: a learned vector for masked steps, (dim,), as w2v-BERT 2.0 has it.
        mask_time_prob, mask_time_length, mask_time_min: masking of the projected features' steps with that vector while
            training, see `SpanMasking`.
        mask_feature_prob, mask_feature_length, mask_feature_min: masking of their channels while training.
    """

    paper = "SeamlessM4T, arXiv 2308.11596; Seamless (w2v-BERT 2.0), arXiv 2312.05187; Conformer, arXiv 2005.08100"

    def __init__(
        self,
        input_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        kernel_size: int = 31,
        position: Position = "relative_key",
        left_context: int = 64,
        right_context: int = 8,
        causal_conv: bool = True,
        conv_norm: ConvNorm = "layer",
        padding_in_norm: bool = False,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        final_norm: bool = True,
        intermediate_ffn: bool = False,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        conv_dropout: float = 0.0,
        layer_drop: float = 0.0,
        spec_augment: SpecAugment | None = None,
        mask_embedding: bool = False,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
        mask_time_min: int = 2,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        mask_feature_min: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, num_layers=num_layers)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 frame, or null for none; got {chunk_size}")
        if left_chunks is not None and left_chunks < 0:
            raise ValueError(f"left_chunks must not be negative (null: all of the past); got {left_chunks}")
        probability(layer_drop=layer_drop)
        self.input_dim = input_dim
        self.output_dim = dim
        self.dim = dim
        self.position: Position = position
        self.left_context = left_context
        self.right_context = right_context
        self.chunk_size = chunk_size
        self.left_chunks = left_chunks
        self.layer_drop = layer_drop
        self.spec_augment = spec_augment
        self.input_norm = nn.LayerNorm(input_dim)
        self.input_projection = nn.Linear(input_dim, dim)
        self.input_dropout = Dropout(input_dropout)
        self.mask_embedding = mask_vector(dim, mask_embedding, mask_time_prob)
        if not mask_time_prob:
            self.exempt = {"learns mask_embedding": "nothing is masked (mask_time_prob=0)"}
        self.masking = SpanMasking(
            mask_time_prob, mask_time_length, mask_time_min, mask_feature_prob, mask_feature_length, mask_feature_min
        )
        self.layers = nn.ModuleList(
            ConformerLayer(
                dim,
                num_heads,
                ffn_dim,
                kernel_size,
                position,
                left_context,
                right_context,
                causal_conv,
                conv_norm,
                dropout,
                attention_dropout,
                activation_dropout,
                conv_dropout,
                padding_in_norm,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(dim) if final_norm else None
        self.intermediate_ffn = FeedForward(dim, ffn_dim, "relu") if intermediate_ffn else None

    def forward(self, speech: Padded) -> Padded:
        """(B, T, input_dim) features -> (B, T, dim) states; beyond the lengths they are finite but mean nothing."""
        if speech.data.dim() != 3 or speech.data.shape[-1] != self.input_dim:
            raise ValueError(
                f"ConformerEncoder takes features (B, T, {self.input_dim}); got {tuple(speech.data.shape)}. "
                "Set input_dim to the output_dim of the front end"
            )
        refuse_no_steps(self, speech, "all clips are shorter than one step of the front end")
        if self.spec_augment is not None:
            speech = self.spec_augment(speech)
        keep = None if speech.full else speech.mask
        x = self.input_dropout(self.input_projection(self.input_norm(speech.data)))
        x = self.masking(x, speech.lengths, self.mask_embedding)
        if keep is not None:
            x = x.masked_fill(~keep[..., None], 0)
        mask = self._mask(None if keep is None else key_mask(speech), x)
        table = positions(self.position, x.shape[1], x, self.left_context, self.right_context)
        for layer in in_turn(self.layers):
            x = layer(x, keep, mask, table, left_out(self.layer_drop, self.training))
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.intermediate_ffn is not None:
            x = x + 0.5 * self.intermediate_ffn(x)
        return Padded(x, speech.lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Unchanged: one state per input step."""
        return lengths

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Which keys a frame may attend, from which are real (`key_mask`; None: all): that, and with chunks (B or 1, 1,
        T, T). No query is left without a key, whatever the lengths, so that padding cannot become NaN."""
        steps = x.shape[1]
        if self.chunk_size is None or steps <= self.chunk_size:
            return mask
        frames = torch.arange(steps, device=x.device)
        chunk = torch.div(frames, self.chunk_size, rounding_mode="floor")
        seen = chunk[None] <= chunk[:, None]
        if self.left_chunks is not None:
            seen = seen & (chunk[None] >= chunk[:, None] - self.left_chunks)
        if mask is None:
            return seen[None, None]
        allowed = mask & seen
        # A padded step that no real one is near gets itself; nothing else may be added, an adaptor may read padding.
        return allowed | torch.eye(steps, dtype=torch.bool, device=x.device) & ~allowed.any(-1, keepdim=True)
