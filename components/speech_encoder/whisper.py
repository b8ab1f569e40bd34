"""The encoder of Whisper. Letters: B batch, T frames, F mel bins, D model dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..errors import UserError
from ..layers.positions import sinusoids
from ..layers.steps import refuse_no_steps
from ..layers.transformer import LayerSettings, TransformerEncoder
from ..limits import at_least
from ..roles import SpeechEncoder
from ..types import Padded


class WhisperEncoder(SpeechEncoder):
    """Two convolutions, the second with stride 2, and a pre-norm Transformer: half as many states as frames (Radford et
    al. 2022, section 2.2).

    Sinusoidal positions are stored, as in the published checkpoints, and do not learn. Published models always read
    30 s (3000 frames, silence behind the clip); shorter rows give the states they would give alone, masked from
    each other's padding.

    Args:
        input_dim: F.
        dim: D.
        num_layers: Transformer layers.
        num_heads: attention heads of each layer.
        ffn_dim: inner width of the feed-forward blocks.
        dropout: on the input of the layers, and on what attention and feed-forward add.
        attention_dropout: on attention weights.
        activation_dropout: inside the feed-forward blocks.
        layer_drop: probability of skipping a layer while training.
        max_positions: most states; frames may be twice as many.
    """

    paper = "Whisper 2022, arXiv:2212.04356"

    def __init__(
        self,
        input_dim: int = 80,
        dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        max_positions: int = 1500,
    ) -> None:
        super().__init__()
        at_least(1, max_positions=max_positions)
        self.input_dim = input_dim
        self.output_dim = dim
        self.max_positions = max_positions
        self.longest_input = 2 * max_positions
        self.conv1 = nn.Conv1d(input_dim, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positions = nn.Parameter(sinusoids(max_positions, dim, self.conv1.weight.device), requires_grad=False)
        layers = LayerSettings(
            dim,
            num_heads,
            ffn_dim,
            dropout,
            attention_dropout,
            activation_dropout,
            activation="gelu",
            layerdrop=layer_drop,
            key_bias=False,
        )
        self.transformer = TransformerEncoder(num_layers, layers)

    def forward(self, speech: Padded) -> Padded:
        """(B, T, F) log-mels -> (B, T', D) after the final norm, T' = (T + 1) // 2.

        Raises:
            UserError: more frames than there are positions for.
            ValueError: none.
        """
        refuse_no_steps(self, speech, "all clips are shorter than one step of the front end")
        steps = (speech.data.shape[1] + 1) // 2
        if steps > self.max_positions:
            raise UserError(
                f"speech of {speech.data.shape[1]} frames, but this encoder has positions for {2 * self.max_positions} "
                f"({self.max_positions / 50:g} s): cut longer clips, or leave them out (data.max_seconds)"
            )
        # A convolution must see zeros beyond a row's end, as it does beyond the end of a row alone.
        x = gelu(self.conv1(speech.zeroed().data.transpose(1, 2)))
        x = gelu(self.conv2(x * speech.mask[:, None]))
        x = x.transpose(1, 2) + self.positions[:steps]
        return self.transformer(Padded(x, self.output_lengths(speech.lengths)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return torch.div(lengths + 1, 2, rounding_mode="floor")
