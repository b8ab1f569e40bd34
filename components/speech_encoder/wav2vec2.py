"""The encoder of wav2vec 2.0, XLS-R and HuBERT. Letters: B batch, N samples, T frames, C channels, D model dim, K taps,
L layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.activations import Activation
from ..layers.alike import in_turn
from ..layers.attention import key_mask
from ..layers.convolution import conv_lengths
from ..layers.dropout import Dropout
from ..layers.layer_drop import left_out, pass_on
from ..layers.spec_augment import SpanMasking, mask_vector
from ..layers.transformer import LayerSettings
from ..limits import at_least, probability
from ..roles import SpeechEncoder
from ..types import Padded

FeatureNorm = Literal["group", "layer"]
LeakPadding = Literal["none", "norm", "all"]

# Values of the widest layer at a time where no gradient is asked for.
_PIECE_CPU, _PIECE = 2**22, 2**28


class Wav2Vec2Encoder(SpeechEncoder):
    """Convolutions over the waveform, then Transformer blocks: one state each 20 ms at 16 kHz.

    The published encoders are settings of it (configs of the same names): wav2vec 2.0 (Baevski et al. 2020, arXiv
    2006.11477) and HuBERT (Hsu et al. 2021, arXiv 2106.07447) base with `conv_norm: group` and post-norm blocks; their
    large kinds, HuBERT x-large and XLS-R (Babu et al. 2021, arXiv 2111.09296) with `conv_norm: layer` and `norm_first:
    true`. They read RawWaveform, with `normalise: true` where the model was trained so.

    A row of fewer samples than the convolutions span (400) has no frame: its length is 0.

    Args:
        dim: width D of the states, a multiple of `num_heads` and of `position_groups`.
        num_layers: Transformer blocks L.
        num_heads: attention heads.
        ffn_dim: inner width of the feed-forward layers.
        conv_dims, conv_kernels, conv_strides: channels, kernel and stride of each convolution over the waveform.
        conv_bias: whether these convolutions have a bias.
        conv_norm: `group`: the first convolution's channels are normalised over the time of the row (GroupNorm, one
            group a channel); `layer`: each convolution's output is normalised over its channels.
        norm_first: blocks normalise what they read and the last block's output is normalised ("stable layer norm");
            otherwise what they add up to, and what the first block reads.
        input_norm: layer norm before the projection to D.
        position_kernel: K frames of the positional convolution.
        position_groups: its groups.
        activation: in the feed-forward layers.
        layer: the states to return: those behind block n, counted from 1, 0 for what the first block reads. They carry
            no final norm, and what lies behind is not computed. None: the model's output.
        leak_padding: `none`: padding never changes a result. `norm`: the time statistics of `conv_norm: group` count
            the padding in, as in transformers when it is given an attention mask. `all`: nothing knows of the padding,
            as in transformers when it is given none, which is what its feature extractors do for base models. A row
            without padding is the same in all three.
        input_dropout: after the projection to D.
        dropout: on the input of the blocks, and on what attention and feed-forward layers add.
        attention_dropout: on the attention weights.
        activation_dropout: inside feed-forward layers.
        layer_drop: probability that a block is left out of a training step (LayerDrop, arXiv 1909.11556).
        mask_embedding: a learned vector for masked steps, (D,).
        mask_time_prob, mask_time_length, mask_time_min: masking of steps while training, see `SpanMasking`.
        mask_feature_prob, mask_feature_length, mask_feature_min: masking of channels while training.
        input_dim: 1, samples; a place for configs to say what is read.
    """

    paper = "wav2vec 2.0, arXiv 2006.11477; XLS-R, arXiv 2111.09296; HuBERT, arXiv 2106.07447"

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        conv_dims: list[int] | tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512),
        conv_kernels: list[int] | tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2),
        conv_strides: list[int] | tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2),
        conv_bias: bool = False,
        conv_norm: FeatureNorm = "group",
        norm_first: bool = False,
        input_norm: bool = True,
        position_kernel: int = 128,
        position_groups: int = 16,
        activation: Activation = "gelu",
        layer: int | None = None,
        leak_padding: LeakPadding = "none",
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        mask_embedding: bool = False,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
        mask_time_min: int = 2,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        mask_feature_min: int = 0,
        input_dim: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, num_layers=num_layers)
        probability(layer_drop=layer_drop)
        _require_convs(conv_dims, conv_kernels, conv_strides, conv_norm)
        if leak_padding not in ("none", "norm", "all"):
            raise ValueError(f"leak_padding must be none, norm or all; got {leak_padding!r}")
        if layer is not None and not 0 <= layer <= num_layers:
            raise ValueError(
                f"layer must be between 0 and num_layers={num_layers}, or null for the output; got {layer}"
            )
        if input_dim != 1:
            raise ValueError(f"Wav2Vec2Encoder reads samples, so input_dim must be 1; got {input_dim}")
        self.input_dim = 1
        self.output_dim = dim
        self.dim = dim
        self.norm_first = norm_first
        self.layer = layer
        self.leak_padding: LeakPadding = leak_padding
        self.layer_drop = layer_drop
        widths = [1, *conv_dims]
        self.convs = nn.ModuleList(
            _FeatureConv(
                widths[index],
                widths[index + 1],
                conv_kernels[index],
                conv_strides[index],
                conv_bias,
                "layer" if conv_norm == "layer" else "group" if index == 0 else None,
            )
            for index in range(len(conv_dims))
        )
        self.input_norm = nn.LayerNorm(widths[-1]) if input_norm else None
        self.input_projection = nn.Linear(widths[-1], dim)
        nn.init.normal_(self.input_projection.weight, std=0.02)
        nn.init.zeros_(self.input_projection.bias)
        self.input_dropout = Dropout(input_dropout)
        self.mask_embedding = mask_vector(dim, mask_embedding, mask_time_prob)
        self.exempt = self._exempt(num_layers, masks=bool(mask_time_prob), bias=conv_bias and conv_norm == "group")
        self.masking = SpanMasking(
            mask_time_prob, mask_time_length, mask_time_min, mask_feature_prob, mask_feature_length, mask_feature_min
        )
        self.position = PositionalConv(dim, position_kernel, position_groups)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        layers = LayerSettings(
            dim, num_heads, ffn_dim, dropout, attention_dropout, activation_dropout, activation=activation
        )
        self.layers = nn.ModuleList(Wav2Vec2Layer(layers, norm_first) for _ in range(num_layers))

    def _exempt(self, num_layers: int, *, masks: bool, bias: bool) -> dict[str, str]:
        """What of the contract these settings exempt from, see `Part.exempt`.

        Args:
            num_layers: all of them.
            masks: whether steps are masked.
            bias: whether the first convolution has a bias that its norm takes away.
        """
        exempt = {}
        if not masks:
            exempt["learns mask_embedding"] = "nothing is masked (mask_time_prob=0)"
        if bias:
            exempt["learns convs.0.conv.bias"] = "the norm over time takes it away"
        if self.layer is not None:
            behind = [f"layers.{number}" for number in range(self.layer, num_layers)] + ["norm"] * self.norm_first
            exempt.update((f"learns {name}", f"lies behind layer={self.layer}") for name in behind)
        if self.leak_padding != "none":
            leaks = f"leak_padding={self.leak_padding}: the published leak"
            exempt.update(dict.fromkeys(("padding", "alone", "gradients"), leaks))
        return exempt

    def forward(self, speech: Padded) -> Padded:
        """(B, N) samples -> (B, T, dim) states; beyond the lengths they are finite but mean nothing."""
        if speech.data.dim() != 2:
            raise ValueError(f"Wav2Vec2Encoder takes samples (B, N); got {tuple(speech.data.shape)}. Use frontend=raw")
        x, keep = self._features(speech)
        lengths = self.output_lengths(speech.lengths)
        if self.input_norm is not None:
            x = self.input_norm(x)
        x = self.input_dropout(self.input_projection(x))
        x = self.masking(x, lengths, self.mask_embedding)
        mask = None
        if keep is not None:
            # The positional convolution of a real frame sees zeros beyond the end, as it would in the row alone.
            x = x.masked_fill(~keep[..., None], 0)
            mask = key_mask(Padded(x, lengths))
        x = x + self.position(x)
        if not self.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        wanted = len(self.layers) if self.layer is None else self.layer
        layers = list(self.layers)
        for block in in_turn(layers[:wanted]):
            x = block(x, mask, left_out(self.layer_drop, self.training))
        for block in layers[wanted:] if self.training else ():
            x = block(x, mask, True)  # zero gradients: DDP and FSDP wait for every parameter
        if self.norm_first:
            if self.layer is None:
                x = self.norm(x)
            elif self.training:
                x = x + 0 * (self.norm.weight + self.norm.bias)
        return Padded(x, lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 samples -> (B,) int64 frames: floor((n - kernel) / stride) + 1 of each convolution, 0 or more."""
        for conv in self.convs:
            assert isinstance(conv, _FeatureConv)
            lengths = conv_lengths(lengths, conv.kernel, conv.stride, 0)
        return lengths

    @property
    def receptive_field(self) -> int:
        """Samples that a frame spans."""
        samples = 1
        for conv in reversed(self.convs):
            assert isinstance(conv, _FeatureConv)
            samples = (samples - 1) * conv.stride + conv.kernel
        return samples

    def _features(self, speech: Padded) -> tuple[Tensor, Tensor | None]:
        """(B, N) samples -> (B, T, C) features, and (B, T) which frames are real: None where all count as real."""
        field = self.receptive_field
        full = speech.full
        if self.leak_padding != "none" and not full:
            speech = speech.zeroed()  # what leaks is silence, whatever the batch was padded with
        samples = speech.data.to(self.input_projection.weight.dtype)
        samples = F.pad(samples, (0, max(field - samples.shape[1], 0)))
        counted = None if full or self.leak_padding != "none" else speech.lengths.to(samples.device)
        x = self._convolved(samples, counted, field)
        if self.leak_padding == "all" or (full and speech.data.shape[1] >= field):
            return x, None
        return x, Padded(x, self.output_lengths(speech.lengths)).mask

    def _convolved(self, samples: Tensor, lengths: Tensor | None, field: int) -> Tensor:
        """(B, N) samples -> (B, T, C); `lengths` (B,): the samples that count in statistics over time, None for all."""
        first, *others = (conv for conv in self.convs if isinstance(conv, _FeatureConv))
        weights = [first.first_weights(samples, lengths), *(conv.weights() for conv in others)]

        def run(part: Tensor) -> Tensor:
            x = first.first(part, *weights[0])
            for conv, taps in zip(others, weights[1:], strict=True):
                x = conv(x, taps)
            return x

        hop = math.prod(conv.stride for conv in (first, *others))
        steps = (samples.shape[1] - field) // hop + 1
        # Without a backward pass the wide first layers live for a piece of the time axis only: less memory, and
        # a CPU keeps them in its cache.
        widest = len(samples) * first.conv.out_channels * (hop // first.stride)
        piece = max((_PIECE_CPU if samples.device.type == "cpu" else _PIECE) // widest, 1)
        differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in self.convs.parameters())
        if differentiated or steps <= piece:
            return run(samples)
        pieces = []
        for start in range(0, steps, piece):
            end = min(start + piece, steps)
            pieces.append(run(samples[:, start * hop : (end - 1) * hop + field]))
        return torch.cat(pieces, dim=1)


class Wav2Vec2Layer(nn.Module):
    """Self-attention and feed-forward, each with a residual, normalised before (`norm_first`) or after."""

    def __init__(self, settings: LayerSettings, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = settings.attention()
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.ffn = settings.ffn()
        self.ffn_norm = nn.LayerNorm(settings.dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, skip: bool = False) -> Tensor:
        """(B, T, D), mask (B, 1, 1, T) bool, True = may be attended (None: all) -> (B, T, D). With `skip` the block
        passes `x` on (`pass_on`)."""
        if skip:
            return pass_on(self, x)
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask))
            return x + self.dropout(self.ffn(self.ffn_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class PositionalConv(nn.Module):
    """Relative positions by a grouped convolution with GELU (Baevski et al. 2020, section 2; Mohamed et al. 2019, arXiv
    1904.11660), weight-normalised for each of its K taps: w = g v / |v| (Salimans and Kingma 2016, arXiv 1602.07868).

    Zeros stand on both sides; of an even kernel the output's surplus last step is dropped.
    """

    def __init__(self, dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"dim must be a multiple of position_groups; got dim={dim}, position_groups={groups}")
        at_least(1, position_kernel=kernel_size)
        self.groups = groups
        self.v = nn.Parameter(torch.empty(dim, dim // groups, kernel_size))
        self.g = nn.Parameter(torch.empty(1, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.v, std=2 * (kernel_size * dim) ** -0.5)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.g.copy_(self._norm())

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), padding zeroed -> (B, T, D)."""
        weight = self.v * (self.g / self._norm())
        # As a channels-last 2-d convolution: equal to conv1d, and faster on a CPU.
        image = x.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, weight.unsqueeze(2), self.bias, padding=(0, weight.shape[-1] // 2), groups=self.groups)
        return _gelu(y.squeeze(2)[..., : x.shape[1]].transpose(1, 2))

    def _norm(self) -> Tensor:
        return self.v.square().sum((0, 1), keepdim=True).sqrt()  # `norm` over these dimensions is slow on a CPU


class _FeatureConv(nn.Module):
    """One convolution of the front half, without padding: convolution, norm, GELU.

    Frames stand in rows (channels last), and a convolution is a product with a matrix for each run of taps as long as
    its stride: rows of such runs are a view of the input, so that nothing is unfolded.
    """

    def __init__(
        self, input_dim: int, output_dim: int, kernel: int, stride: int, bias: bool, norm: FeatureNorm | None
    ) -> None:
        super().__init__()
        if min(output_dim, kernel, stride) < 1:
            raise ValueError(
                f"conv_dims, conv_kernels and conv_strides must be at least 1; got {output_dim}, {kernel} and {stride}"
            )
        self.kernel = kernel
        self.stride = stride
        self.conv = nn.Conv1d(input_dim, output_dim, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = None if norm is None else _TimeNorm(output_dim) if norm == "group" else nn.LayerNorm(output_dim)

    def weights(self) -> list[Tensor]:
        """The kernel in runs of at most `stride` taps, each a matrix (C', taps x C)."""
        return [run.transpose(1, 2).flatten(1) for run in self.conv.weight.split(self.stride, dim=2)]

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """(B, T, C) -> (B, T', C')."""
        width, stride = x.shape[2], self.stride
        steps = (x.shape[1] - self.kernel) // stride + 1
        y, bias = None, self.conv.bias
        for index, weight in enumerate(weights):
            taps, begin = weight.shape[1] // width, index * stride
            if taps == stride:
                rows = x[:, begin : begin + steps * stride].unflatten(1, (steps, stride)).flatten(2)
                y = _plus(y, F.linear(rows, weight, bias))
            else:
                for tap, matrix in enumerate(weight.split(width, dim=1), begin):
                    y = _plus(y, F.linear(x[:, tap : tap + (steps - 1) * stride + 1 : stride], matrix, bias))
                    bias = None
            bias = None
        assert y is not None
        return _gelu(y if self.norm is None else self.norm(y))

    def first_weights(self, samples: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Kernel, shift and what to subtract from the samples, for `first`; `lengths` as in `_convolved`."""
        kernel = self.conv.weight[:, 0]
        if not isinstance(self.norm, _TimeNorm):
            return kernel, self.conv.bias, None
        counted = None if lengths is None else conv_lengths(lengths, self.kernel, self.stride, 0)
        mean, kernel = self.norm.folded(samples.unfold(1, self.kernel, self.stride), kernel, counted)
        shift = self.norm.bias
        if self.conv.bias is not None:
            shift = shift + 0 * self.conv.bias  # a constant that the mean takes away again
        return kernel, shift, mean

    def first(self, samples: Tensor, kernel: Tensor, shift: Tensor | None, mean: Tensor | None) -> Tensor:
        """(B, N) samples -> (B, T', C')."""
        windows = samples.unfold(1, self.kernel, self.stride)
        if mean is None:
            y = F.linear(windows, kernel, shift)
            return _gelu(y if self.norm is None else self.norm(y))
        assert shift is not None
        return _gelu(torch.baddbmm(shift.to(kernel.dtype), windows - mean, kernel.transpose(1, 2)))


class _TimeNorm(nn.Module):
    """Each channel of a row normalised over the row's real steps (GroupNorm with one group a channel, Wu and He 2018,
    arXiv 1803.08494, whose padding does not count), for a convolution of one input channel.

    Mean and variance of all channels follow from those of the windows of samples that the kernels see, so the
    normalisation goes into the kernel: there is no pass over the convolution's output, the model's largest tensor.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def folded(self, windows: Tensor, kernel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, K) windows and (C, K) kernels -> the mean window (B, 1, K) and the kernels (B, C, K) that give, on
        windows without that mean, the normalised output but for the bias. `lengths` (B,) real windows; None: all."""
        # A kernel may be blind to nearly all that is in the samples (a high-pass); single precision has too few digits.
        exact = torch.float32 if windows.device.type == "mps" else torch.float64
        values, count = windows.to(exact), windows.shape[1]
        if lengths is None:
            mean = values.mean(1, keepdim=True)
            centred = values - mean
        else:
            outside = ~Padded(windows, lengths).mask[..., None]
            count = lengths.clamp(min=1)[:, None, None].to(exact)
            mean = values.masked_fill(outside, 0).sum(1, keepdim=True) / count
            centred = (values - mean).masked_fill(outside, 0)
        covariance = centred.transpose(1, 2) @ centred / count
        taps = kernel.to(exact)
        variance = ((taps @ covariance) * taps).sum(-1).clamp(min=0)
        scale = self.weight * (variance + self.eps).rsqrt()
        return mean.to(windows.dtype), (taps * scale[..., None]).to(kernel.dtype)


def _gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nothing else reads."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def _plus(sum_: Tensor | None, term: Tensor) -> Tensor:
    if sum_ is None:
        return term
    return sum_ + term if term.requires_grad else sum_.add_(term)


def _require_convs(dims: Sequence[int], kernels: Sequence[int], strides: Sequence[int], norm: str) -> None:
    if not 0 < len(dims) == len(kernels) == len(strides):
        raise ValueError(
            "conv_dims, conv_kernels and conv_strides need one entry for each convolution; got "
            f"{len(dims)}, {len(kernels)} and {len(strides)}"
        )
    if norm not in ("group", "layer"):
        raise ValueError(f"conv_norm must be group or layer; got {norm!r}")
