"""What a plan says: sizes of utterances, bytes at the moments of a step, data, and all of it together.

Letters: W devices.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .ledger import Kind

GB = 10**9


@dataclass(frozen=True)
class Sizes:
    """One utterance as a batch holds it.

    Attributes:
        seconds: of source audio as the batch plan counts it.
        spoken: seconds of target audio.
        transcript, source, target: token ids.
        units: unit ids, one per frame.
    """

    seconds: float
    spoken: float
    transcript: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    units: tuple[int, ...]


@dataclass
class Moment:
    """Bytes on each device at one time of a step, by what they are."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass
class Data:
    """What the training data says.

    Attributes:
        note: where the numbers come from, or why there are none.
        utterances, hours, target_tokens, steps: of an epoch; None where there is no manifest yet.
        guessed_tokens: whether tokens are guessed from letters, for there is no vocabulary yet.
        oversized: utterances that exceed the budget of a batch alone; each is a batch of its own.
    """

    note: str
    utterances: int | None = None
    hours: float | None = None
    target_tokens: int | None = None
    guessed_tokens: bool = False
    steps: int | None = None
    oversized: int = 0


@dataclass
class Plan:
    """One task on one kind of device.

    Attributes:
        strategy: one device, ddp, fsdp or fsdp2.
        device: cpu or cuda.
        devices: W, over all machines.
        precision: of the trainer.
        parameters, trainable: counts.
        frozen: part -> parameters that do not learn.
        optimizer: its class.
        states_per_parameter: bytes of optimizer states over bytes of trainable parameters.
        moments: name -> bytes by kind, at the times of a step that may be the fullest.
        batch: the largest batch: utterances, seconds of the longest, padded seconds and target tokens.
        longest: seconds of the longest utterance.
        casts: bytes of the activations that are copies of weights in lower precision.
        flops: of a step, over all devices and accumulated batches.
        data: see `Data`.
        memory: bytes of a device that were asked about, or None.
        fits: whether it fits; None where nothing was asked.
        budget: the largest batch budget that fits: key, value, utterances; None where even one does not fit.
        advice: what would make it fit, each computed.
    """

    strategy: str
    device: Kind
    devices: int
    precision: str
    parameters: int
    trainable: int
    frozen: dict[str, int]
    optimizer: str
    states_per_parameter: float
    moments: dict[str, Moment]
    batch: dict[str, float]
    longest: float
    casts: int
    flops: int
    data: Data
    memory: int | None = None
    fits: bool | None = None
    budget: dict[str, Any] | None = None
    advice: list[dict[str, Any]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(moment.total for moment in self.moments.values())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "moments": {n: m.parts for n, m in self.moments.items()}, "peak": self.peak}
