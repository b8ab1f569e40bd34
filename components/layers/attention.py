"""Multi-head attention over padded batches, for teacher forcing and for cached decoding.

Letters: B batch, T query steps, S key steps, D model dim, H heads, G heads of keys and values, d head dim (D / H).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import Padded
from .lora import LoRALinear


def key_mask(states: Padded) -> Tensor:
    """(B, 1, 1, T) bool: which of (B, T, D) states may be attended to, the real ones.

    A row without any keeps its first: what it gives means nothing, but not every kernel gives a number for a query
    without keys.
    """
    return Padded(states.data, states.lengths.clamp(min=1)).mask[:, None, None]


class KeylessBias(nn.Module):
    """A fused projection whose keys have no bias, as in Whisper: one product, and only the parameters there are.

    Softmax ignores a bias of the keys (it adds the same to every score of a query), so leaving it out loses nothing.

    Args:
        input_dim: width of the input.
        dim: width of one block of rows.
        blocks: 3: query, key, value; 2: key, value. `bias` holds those of the others, in this order.
    """

    def __init__(self, input_dim: int, dim: int, blocks: Literal[2, 3]) -> None:
        super().__init__()
        self.product = nn.Linear(input_dim, blocks * dim, bias=False)
        self.bias = nn.Parameter(torch.zeros((blocks - 1) * dim))
        self.dim = dim

    @property
    def weight(self) -> Tensor:
        """(blocks x dim, input_dim)."""
        return self.product.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., blocks x dim)."""
        bias = F.pad(self.bias[-self.dim :], (self.dim, 0))
        if len(self.bias) > self.dim:
            bias = torch.cat([self.bias[: self.dim], bias])
        if type(self.product) is nn.Linear:
            return F.linear(x, self.weight, bias)
        if isinstance(self.product, LoRALinear):
            return self.product(x, bias)
        return self.product(x).add_(bias)  # packed for inference, see layers/linear.py


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2) with fused projections.

    Self-attention (`memory_dim` None) has one projection `qkv`: the rows of query, key and value one below the other.
    Attention over a memory (`memory_dim` given), or with fewer heads of keys, has `q` and `kv`. Rows of a projection
    are heads one after the other.

    Args:
        dim: width of the queries and of the output, a multiple of `num_heads`.
        dropout: dropout on the attention weights, while training.
        bias: biases in all projections.
        memory_dim: width of the memory; None for self-attention.
        key_bias: a bias of the keys, where there are biases (Whisper has none).
        num_kv_heads: G, heads of keys and values of self-attention, each for H / G heads of the queries
            (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245); None: as many as of the queries.
    """

    fused: ClassVar = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}
    """What stands one below the other in a projection (read by layers/lora.py)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        memory_dim: int | None = None,
        key_bias: bool = True,
        num_kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}")
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads; got num_heads={num_heads}, num_kv_heads={num_kv_heads}"
            )
        grouped = self.num_kv_heads < num_heads
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.memory_dim = memory_dim
        keyless = bias and not key_bias
        if memory_dim is None and not grouped:
            self.qkv = KeylessBias(dim, dim, 3) if keyless else nn.Linear(dim, 3 * dim, bias=bias)
        else:
            width = dim // num_heads * self.num_kv_heads
            given = dim if memory_dim is None else memory_dim
            self.q = nn.Linear(dim, dim, bias=bias)
            self.kv = KeylessBias(given, width, 2) if keyless else nn.Linear(given, 2 * width, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform: query, key and value with gain 1/sqrt 2 (as one fused matrix), output; zero biases."""
        fused = getattr(self, "qkv", None)
        projections = [self.q, self.kv] if fused is None else [fused]
        for linear in projections:
            blocks = 1 if linear is getattr(self, "q", None) else 3 if linear is fused else 2
            for block in linear.weight.detach().chunk(blocks):
                nn.init.xavier_uniform_(block, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (*projections, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from every step of `x`.

        Args:
            x: (B, T, D) queries; also keys and values where there is no memory.
            memory: (B, S, memory_dim) keys and values of a module built with `memory_dim`.
            mask: bool, broadcastable to (B, H, T, S) (so (B, 1, 1, S) or (B, 1, T, S)), True = may attend.
            causal: step t attends to steps 0..t only (in addition to `mask`).

        Returns:
            (B, T, D). A query that may attend to nothing sees a zero context: its output is the bias of `out`.
        """
        if (memory is None) != (self.memory_dim is None):
            built, given = ("a memory", "none") if memory is None else ("self-attention (memory_dim=None)", "a memory")
            raise ValueError(f"this attention was built for {built} but got {given}; set memory_dim to match")
        if memory is None:
            query, key, value = self.own_heads(x)
        else:
            query = self.heads(self.q(x))
            key, value = self.memory_heads(memory)
        return self.attend(query, key, value, mask, causal)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d), a view; keys and values (B, T, G x d) -> (B, G, T, d)."""
        return x.unflatten(-1, (-1, self.dim // self.num_heads)).transpose(1, 2)

    def own_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention: (B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""
        if self.num_kv_heads == self.num_heads:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query = self.q(x)
            key, value = self.kv(x).chunk(2, dim=-1)
        return self.heads(query), self.heads(key), self.heads(value)

    def memory_heads(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, memory_dim) -> keys and values (B, H, S, d): computed once, reused at every step of decoding."""
        key, value = self.kv(memory).chunk(2, dim=-1)
        return self.heads(key), self.heads(value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """(B, H, T, d) queries, (B, G, S, d) keys and values -> (B, T, D) after the output projection."""
        if key.shape[1] < query.shape[1]:
            share = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
        if causal and mask is not None:
            # Not every kernel takes both, so the triangle goes into the mask.
            triangle = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
            mask, causal = mask & triangle, False
        context = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout if self.training else 0.0, is_causal=causal
        )
        return self.out(context.transpose(1, 2).flatten(2))
