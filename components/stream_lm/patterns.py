"""Which codec stream is written at which step, by models that write all of them step by step (MusicGen, arXiv
2306.05284, section 2.2).

Letters: B batch, T frames, K streams, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATTERNS = ("delay", "parallel", "flat")


@dataclass(frozen=True)
class Pattern:
    """Stream k of frame t is written at step t x stride + offsets[k].

    Attributes:
        stride: steps of a frame.
        offsets: of each stream.
    """

    stride: int
    offsets: tuple[int, ...]

    @classmethod
    def named(cls, name: str, num_streams: int) -> Pattern:
        """`parallel`: all streams of a frame at once. `delay`: stream k comes k steps later. `flat`: one after the
        other, K steps a frame."""
        if name == "flat":
            return cls(num_streams, tuple(range(num_streams)))
        if name not in PATTERNS:
            raise ValueError(f"a pattern is one of {', '.join(PATTERNS)}; got {name!r}")
        return cls(1, tuple(k if name == "delay" else 0 for k in range(num_streams)))

    def steps(self, frames: int) -> int:
        """S of T frames."""
        return (frames - 1) * self.stride + max(self.offsets) + 1 if frames else 0

    def lay(self, codes: Tensor, fill: int) -> Tensor:
        """(B, T, K) -> (B, S, K), `fill` where a step writes nothing of a stream."""
        batch, frames, streams = codes.shape
        laid = codes.new_full((batch, self.steps(frames), streams), fill)
        for k, offset in enumerate(self.offsets):
            laid[:, offset :: self.stride, k][:, :frames] = codes[:, :, k]
        return laid

    def of_stream(self, steps: Tensor, k: int, frames: int) -> Tensor:
        """(B, S, ...) of all steps -> (B, T, ...) of those that write stream k."""
        return steps[:, self.offsets[k] :: self.stride][:, :frames]

    def gather(self, laid: Tensor, frames: int) -> Tensor:
        """(B, S, K) -> (B, T, K): what `lay` laid out."""
        return torch.stack([self.of_stream(laid[:, :, k], k, frames) for k in range(len(self.offsets))], 2)

    def writes(self, step: int, frames: int) -> list[int]:
        """The streams that a step writes, of T frames."""
        return [
            k
            for k, offset in enumerate(self.offsets)
            if step >= offset and (step - offset) % self.stride == 0 and (step - offset) // self.stride < frames
        ]
