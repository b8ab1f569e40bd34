"""The convolutions of SEANet, as EnCodec has them: samples to latent frames and back.

Letters: B batch, N samples, T frames, C channels, D width of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

Norm = Literal["weight", "time_group"]
PadMode = Literal["reflect", "constant", "replicate"]

_ELU = 1.25
"""By how much an ELU narrows standard normal numbers: the layer behind it widens them again."""
_HALF = 0.5**0.5
"""For each of two things that are added."""
_LOUDNESS = 0.1
"""Of speech, root mean square: latents begin near 1, and what is decoded near this."""


@dataclass(frozen=True)
class SEANetSettings:
    """What encoder and decoder share; see `components/codec/encodec.py`."""

    channels: int
    dim: int
    num_filters: int
    ratios: tuple[int, ...]
    num_residual_layers: int
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    dilation_growth: int
    compress: int
    num_lstm_layers: int
    causal: bool
    norm: Norm
    pad_mode: PadMode
    conv_shortcut: bool


@dataclass(frozen=True)
class Held:
    """What a convolution keeps between two pieces of a stream: (B, C, steps) of its input, and whether it has begun."""

    steps: Tensor
    begun: bool


class Conv(nn.Module):
    """A convolution with its norm, padded so that ceil(T / stride) steps come out.

    Causal: all padding that the kernel needs stands on the left; else half of it on each side, the larger half left.
    What a stride leaves over is added on the right. In reflect mode an input that is shorter than its padding is
    lengthened by zeros before it is reflected.
    """

    def __init__(
        self,
        settings: SEANetSettings,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        gain: float = _ELU,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        _scale(conv, inputs * kernel, gain)
        self.conv: Any = weight_norm(conv) if settings.norm == "weight" else conv
        self.norm = nn.GroupNorm(1, outputs) if settings.norm == "time_group" else None
        self.causal, self.outputs = settings.causal, outputs
        self.pad_mode: PadMode = settings.pad_mode
        self.stride = stride
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor, active: bool = False) -> Tensor:
        """(B, C, T) -> (B, outputs, ceil(T / stride)); T at least 1. `active`: of ELU(x)."""
        more = -x.shape[-1] % self.stride
        right = 0 if self.causal else self.padding // 2
        padded = _pad(x, self.padding - right, right + more, self.pad_mode)
        if active:  # padding repeats steps or adds zeros, which ELU leaves: it can come second, and write over the copy
            padded = functional.elu(padded, inplace=padded is not x)
        return self._run(padded)

    def stream(self, x: Tensor, held: Held | None, last: bool, active: bool = False) -> tuple[Tensor, Held]:
        """As `forward` for the next piece of a causal one. Reflection wants the first steps of the stream all at once:
        nothing comes out before they are there. Of a stride, the last piece reaches back over what is left over."""
        given = x
        if held is not None:
            x = torch.cat([held.steps, x], -1)
        begun = held is not None and held.begun
        wanted = self.padding if self.pad_mode == "reflect" and not last else 0
        if not begun:
            if x.shape[-1] <= wanted:
                return self._nothing(x), Held(x, False)
            x = _pad(x, self.padding, 0, self.pad_mode)
        if last and x.shape[-1] > self.padding:
            x = _pad(x, 0, -(x.shape[-1] - self.padding) % self.stride, self.pad_mode)
        used = (x.shape[-1] - self.padding) // self.stride * self.stride
        rest = Held(x[..., used:].clone(), True)
        if not used:
            return self._nothing(x), rest
        if active:
            x = functional.elu(x, inplace=x is not given)
        return self._run(x[..., : used + self.padding]), rest

    @property
    def matrix(self) -> Tensor:
        """(outputs, C) of a convolution that sees one step at a time."""
        return _weight(self.conv)[..., 0]

    def _run(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.outputs, 0)


class TransposedConv(nn.Module):
    """A transposed convolution of twice its stride with its norm, cropped so that T x stride steps come out: on the
    right where it is causal, else on both sides."""

    def __init__(self, settings: SEANetSettings, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        _scale(conv, inputs * 2, _ELU)  # two steps meet in each sample
        self.conv: Any = weight_norm(conv) if settings.norm == "weight" else conv
        self.norm = nn.GroupNorm(1, outputs) if settings.norm == "time_group" else None
        self.outputs, self.stride = outputs, stride
        self.left = 0 if settings.causal else stride - stride // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, outputs, T * stride)."""
        steps = x.shape[-1] * self.stride
        if self.norm is None:
            x = self._spread(functional.pad(x, (1, 1 if self.left else 0)))
        else:
            x = self.norm(self.conv(x))
        return x[..., self.left : self.left + steps]

    def stream(self, x: Tensor, before: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """As `forward` for the next piece of a causal one; `before` is the last step of the piece before."""
        before = x.new_zeros(*x.shape[:2], 1) if before is None else before
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.outputs, 0), before
        return self._spread(torch.cat([before, x], -1)), x[..., -1:].clone()

    def _spread(self, x: Tensor) -> Tensor:
        """(B, C, 1 + T) -> (B, outputs, T * stride): what each step gives together with the one before it, as two
        products of matrices. A kernel of two strides reaches no further, and torch's own transposed convolution takes
        twice as long on a CPU."""
        now, later = (part.permute(1, 2, 0).flatten(0, 1) for part in _weight(self.conv).split(self.stride, 2))
        bias = _bias(self.conv).repeat_interleave(self.stride)[:, None]
        out = torch.baddbmm(bias, now.expand(len(x), -1, -1), x[..., 1:])
        out = out.baddbmm_(later.expand(len(x), -1, -1), x[..., :-1])
        return out.unflatten(1, (self.outputs, self.stride)).transpose(2, 3).flatten(2)


class Recurrence(nn.Module):
    """An LSTM over (B, C, T), added to its input."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.stream(x, None, True)[0]

    def stream(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        if not x.shape[-1]:
            return x, state
        steps = x.permute(2, 0, 1)
        out, state = self.lstm(steps, state)
        return (out + steps).permute(1, 2, 0), state


class ResidualUnit(nn.Module):
    """ELU and a dilated convolution into fewer channels, ELU and one back, added to the input (or a 1 x 1 convolution
    of it)."""

    def __init__(self, settings: SEANetSettings, dim: int, dilation: int) -> None:
        super().__init__()
        hidden = dim // settings.compress
        narrow = Conv(settings, dim, hidden, settings.residual_kernel_size, dilation=dilation)
        widen = Conv(settings, hidden, dim, 1, gain=_ELU * _HALF)
        self.block = nn.ModuleList([nn.ELU(), narrow, nn.ELU(inplace=True), widen])  # as published weights name them
        self.shortcut = Conv(settings, dim, dim, 1, gain=_HALF) if settings.conv_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        _, narrow, _, _ = self.block
        return self._join(x, narrow(x, active=True))

    def stream(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """As `forward`; what the convolution still holds back, the shortcut holds back too."""
        waiting, held = state or (x[..., :0], None)
        _, narrow, _, _ = self.block
        assert isinstance(narrow, Conv)
        hidden, held = narrow.stream(x, held, last, active=True)
        if waiting.shape[-1]:
            x = torch.cat([waiting, x], -1)
        ready = hidden.shape[-1]
        out = self._join(x[..., :ready], hidden) if ready else x[..., :0]
        return out, (x[..., ready:].clone(), held)

    def _join(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, T) and (B, hidden, T) behind the first convolution -> (B, C, T)."""
        widen = self.block[3]
        assert isinstance(widen, Conv)
        hidden = functional.elu(hidden, inplace=True)
        if not isinstance(self.shortcut, Conv) or widen.norm is not None:
            return self.shortcut(x) + widen(hidden)
        # Both see one step: as products of matrices they need no other layout, and add up in one place.
        bias = _bias(self.shortcut.conv) + _bias(widen.conv)
        out = torch.baddbmm(bias[:, None], self.shortcut.matrix.expand(len(x), -1, -1), x)
        return out.baddbmm_(widen.matrix.expand(len(x), -1, -1), hidden)


class SEANetEncoder(nn.Module):
    """(B, channels, N) samples -> (B, D, ceil(N / hop)) latents."""

    def __init__(self, settings: SEANetSettings) -> None:
        super().__init__()
        width = settings.num_filters
        layers: list[nn.Module] = [Conv(settings, settings.channels, width, settings.kernel_size, gain=1 / _LOUDNESS)]
        for ratio in reversed(settings.ratios):
            layers += _residual_units(settings, width)
            layers += [nn.ELU(inplace=True), Conv(settings, width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        layers += [Recurrence(width, settings.num_lstm_layers), nn.ELU(inplace=True)]
        layers += [Conv(settings, width, settings.dim, settings.last_kernel_size)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class SEANetDecoder(nn.Module):
    """(B, D, T) latents -> (B, channels, T * hop) samples."""

    def __init__(self, settings: SEANetSettings) -> None:
        super().__init__()
        width = settings.num_filters << len(settings.ratios)
        layers: list[nn.Module] = [Conv(settings, settings.dim, width, settings.kernel_size, gain=1.0)]
        layers += [Recurrence(width, settings.num_lstm_layers)]
        for ratio in settings.ratios:
            layers += [nn.ELU(inplace=True), TransposedConv(settings, width, width // 2, ratio)]
            width //= 2
            layers += _residual_units(settings, width)
        layers += [
            nn.ELU(inplace=True),
            Conv(settings, width, settings.channels, settings.last_kernel_size, gain=_ELU * _LOUDNESS),
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def stream_through(
    layers: nn.ModuleList, x: Tensor, states: Sequence[Any] | None, last: bool
) -> tuple[Tensor, tuple[Any, ...]]:
    """The next piece of a stream through causal layers.

    Args:
        layers: those with a `stream`, and activations.
        x: (B, C, steps), any number of steps, 0 too.
        states: what the call before gave back; None at the start.
        last: whether the stream ends here.

    Returns:
        (B, C', steps that are ready), and the states.
    """
    kept = []
    for number, layer in enumerate(layers):
        state = None if states is None else states[number]
        if isinstance(layer, nn.ELU):
            x = layer(x) if x.shape[-1] else x
        else:
            x, state = layer.stream(x, state, last)  # pyright: ignore[reportCallIssue]
        kept.append(state)
    return x, tuple(kept)


def _residual_units(settings: SEANetSettings, width: int) -> list[nn.Module]:
    return [
        ResidualUnit(settings, width, settings.dilation_growth**number)
        for number in range(settings.num_residual_layers)
    ]


def _scale(conv: nn.Conv1d | nn.ConvTranspose1d, met: int, gain: float) -> None:
    """Weights at random that keep the scale of what passes: `met` numbers meet in each that comes out.

    PyTorch's own narrow it in each layer, a transposed convolution of stride s to 0.8 / sqrt(s): behind all layers the
    biases are left, and nothing of the speech (latents of a hundredth of their mean, which learning rates above the
    published one do not bring back).
    """
    nn.init.normal_(conv.weight, std=gain / met**0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _weight(conv: nn.Module) -> Tensor:
    """Of a convolution, with its norm."""
    assert isinstance(conv.weight, Tensor)
    return conv.weight


def _bias(conv: nn.Module) -> Tensor:
    assert isinstance(conv.bias, Tensor)
    return conv.bias


def _pad(x: Tensor, left: int, right: int, mode: PadMode) -> Tensor:
    """`x` itself where there is nothing to add; else a copy."""
    if not left and not right:
        return x
    if mode != "reflect":
        return functional.pad(x, (left, right), mode)
    short = max(left, right) - x.shape[-1] + 1
    if short <= 0:
        return functional.pad(x, (left, right), mode)
    padded = functional.pad(functional.pad(x, (0, short)), (left, right), mode)
    return padded[..., : padded.shape[-1] - short]
