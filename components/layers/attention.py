"""Multi-head attention over padded batches, for teacher forcing and for cached decoding.

Letters: B batch, T query steps, S key steps, D model dim, H heads, d head dim (D / H).
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
    Attention over a memory (`memory_dim` given) has `q` and `kv`. Rows of a projection are heads one after the other.

    Args:
        dim: width of the queries and of the output, a multiple of `num_heads`.
        dropout: dropout on the attention weights, while training.
        bias: biases in all projections.
        memory_dim: width of the memory; None for self-attention.
        key_bias: a bias of the keys, where there are biases (Whisper has none).
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
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim}, num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.memory_dim = memory_dim
        keyless = bias and not key_bias
        if memory_dim is None:
            self.qkv = KeylessBias(dim, dim, 3) if keyless else nn.Linear(dim, 3 * dim, bias=bias)
        else:
            self.q = nn.Linear(dim, dim, bias=bias)
            self.kv = KeylessBias(memory_dim, dim, 2) if keyless else nn.Linear(memory_dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform: query, key and value with gain 1/sqrt 2 (as one fused matrix), output; zero biases."""
        projections = [self.qkv] if self.memory_dim is None else [self.q, self.kv]
        for linear in projections:
            for block in linear.weight.detach().split(self.dim):
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
            query, key, value = (self.heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            query = self.heads(self.q(x))
            key, value = self.memory_heads(memory)
        return self.attend(query, key, value, mask, causal)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d), a view."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def memory_heads(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, memory_dim) -> keys and values (B, H, S, d): computed once, reused at every step of decoding."""
        key, value = self.kv(memory).chunk(2, dim=-1)
        return self.heads(key), self.heads(value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """(B, H, T, d) queries, (B, H, S, d) keys and values -> (B, T, D) after the output projection."""
        if causal and mask is not None:
            # Not every kernel takes both, so the triangle goes into the mask.
            triangle = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
            mask, causal = mask & triangle, False
        context = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout if self.training else 0.0, is_causal=causal
        )
        return self.out(context.transpose(1, 2).flatten(2))
