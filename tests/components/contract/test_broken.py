"""Parts broken on purpose: each is caught by the check that is about it, with a line that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from voxzoo.components import (
    CTCT2U,
    ConformerEncoder,
    Fbank,
    GriffinLimVocoder,
    HiFiGANDiscriminator,
    KMeansUnits,
    RawWaveform,
    StackAdaptor,
    TransformerSeq2Seq,
    TransformerSpeechLM,
    TransformerStreamLM,
)
from voxzoo.components.contract import ContractError, check_part, examine, report
from voxzoo.components.errors import UserError
from voxzoo.components.roles import Adaptor, TextToUnit
from voxzoo.components.types import Adapted, Loss, Padded, UnitOutput
from voxzoo.tasks.planning.shapes import FakeTokenizer


class Sound(Adaptor):
    """Keeps the length; what the others break."""

    def __init__(self, input_dim: int = 8, output_dim: int = 6) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, output_dim
        self.projection = nn.Linear(input_dim, output_dim)

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return Adapted(states.with_data(self.projection(states.data)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths


class GivesStatesAlone(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Any:
        return states.with_data(self.projection(states.data))


class MixesDevices(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        steps = torch.arange(states.data.shape[1], device=states.device)
        mask = steps < states.lengths[:, None]
        return super().forward(states.with_data(states.data * mask[..., None]))


class MasksAll(Sound):
    """Each step sees those before it: the first one none."""

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        steps = states.data.shape[1]
        later = torch.ones(steps, steps, dtype=torch.bool, device=states.device).triu()
        scores = self.projection(states.data)[..., :1].transpose(1, 2).expand(-1, steps, -1)
        weights = (scores + torch.zeros_like(scores).masked_fill(later, -torch.inf)).softmax(-1).nan_to_num(0.0)
        data = self.projection(states.data)
        return Adapted(states.with_data(data + weights @ data))


class MasksAllForPadding(Sound):
    """Steps of padding see none: only in a batch with padding."""

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        steps = states.data.shape[1]
        bias = torch.zeros_like(states.data[..., 0]).masked_fill(~states.mask, -torch.inf)
        data = self.projection(states.zeroed().data)
        scores = data[..., :1].transpose(1, 2).expand(-1, steps, -1) + bias[:, None] + bias[..., None]
        return Adapted(states.with_data(data + scores.softmax(-1).nan_to_num(0.0) @ data))


class ReadsPadding(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return super().forward(states.with_data(states.data - states.data.mean(1, keepdim=True)))


class OneShort(Sound):
    def output_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths - 1).clamp(min=0)


class FloatLengths(Sound):
    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths / 1


class TooNarrow(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return Adapted(states.with_data(self.projection(states.data)[..., 1:]))


class Detached(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        weight, bias = self.projection.weight.detach(), self.projection.bias
        return Adapted(states.with_data(states.data @ weight.T + bias))


class CutsInputGradient(Sound):
    """Right in values; the gradient of a row depends on how long the others are."""

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        data = self.projection(states.data)
        return Adapted(
            states.with_data(data + 0.1 * (data.mean(1, keepdim=True) - data.mean(1, keepdim=True).detach()))
        )


class Logs(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        self.log("norm", states.data.norm())
        return super().forward(states)


class LooksAtTheTrainer(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        scale = 1.0 if self.global_step < 10 else 0.5
        return super().forward(states.with_data(states.data * scale))


class LosesABuffer(Sound):
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(8, 8), persistent=False)

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return super().forward(states.with_data(states.data @ self.directions))


class KeepsAStateOnTheSide(Sound):
    """A plain tensor that training moves: no state_dict knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        self.steps += self.training
        return super().forward(states.with_data(states.data * (1 + self.steps)))


class MixesRows(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return super().forward(states.with_data(states.data - 0.1 * states.zeroed().data.mean(0, keepdim=True)))


class NotInBfloat16(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(6, 6)

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        adapted = super().forward(states).states
        return Adapted(adapted.with_data(adapted.data @ self.scale.to(adapted.device)))


class NeedsValues(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        scale = 1.0 if states.data.abs().max().item() < 1e6 else 0.0
        return super().forward(states.with_data(states.data * scale))


class NamesADevice(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6, device="cpu"))

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        adapted = super().forward(states).states
        return Adapted(adapted.with_data(adapted.data + self.shift))


class WritesIntoItsInput(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        return super().forward(states.with_data(states.data.mul_(2)))


class AlwaysDropsOut(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        adapted = super().forward(states).states
        return Adapted(adapted.with_data(nn.functional.dropout(adapted.data, 0.1, training=True)))


class Raises(Sound):
    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        raise KeyError("nothing works")


class WrongPosition(TransformerSeq2Seq):
    """Starts a step late with a cache."""

    def start(self, memory: Padded, beams: int = 1) -> Any:
        state = super().start(memory, beams)
        self._late = True
        return state

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        if self._late:
            super().step(tokens, state)
        self._late = False
        return super().step(tokens, state)


class ForgetsToReorder(TransformerSeq2Seq):
    def start(self, memory: Padded, beams: int = 1) -> Any:
        state = super().start(memory, beams)
        reorder = state.reorder

        def keep(rows: Tensor) -> None:
            if len(rows) != state.rows:
                reorder(rows)

        state.reorder = keep
        return state


class CacheSeesPadding(TransformerSeq2Seq):
    def start(self, memory: Padded, beams: int = 1) -> Any:
        return super().start(Padded(memory.data, torch.full_like(memory.lengths, memory.data.shape[1])), beams)


class SeesTheFuture(TransformerSeq2Seq):
    def decode(self, memory: Padded, tokens: Padded) -> Padded:
        found = super().decode(memory, tokens)
        ahead = found.zeroed().data.sum(1, keepdim=True) / found.lengths[:, None, None]
        return found.with_data(found.data + 0.1 * ahead)


class NotPicklable(Fbank):
    def __init__(self) -> None:
        super().__init__(num_mel_bins=20)
        self.after: Callable[[Tensor], Tensor] = lambda features: features

    def __call__(self, waveform: Tensor) -> Tensor:
        return self.after(super().__call__(waveform))


class IncompleteFingerprint(Fbank):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(num_mel_bins=20)
        self.gain = gain

    def __call__(self, waveform: Tensor) -> Tensor:
        return self.gain * super().__call__(waveform)


class CountsOneMore(RawWaveform):
    def output_length(self, num_samples: int) -> int:
        return num_samples + 1


class KeysFollowTheBatch(TextToUnit):
    def __init__(self) -> None:
        super().__init__()
        self.input_dim, self.num_units = 8, 5
        self.head = nn.Linear(8, 5)

    def forward(self, states: Padded, targets: Padded, text: Padded | None = None) -> dict[str, Loss]:
        logits = states.with_data(self.head(states.data)).zeroed().data
        losses = {"units": Loss(logits.square().sum(), states.lengths.sum())}
        if not states.full:
            losses["padding"] = Loss.zero()
        return losses

    def generate(self, states: Padded, text: Padded | None = None, **options: Any) -> UnitOutput:
        return UnitOutput(states.with_data(self.head(states.data).argmax(-1)).zeroed())


class Loud(GriffinLimVocoder):
    def forward(self, *args: Any, **kwargs: Any) -> Padded:
        found = super().forward(*args, **kwargs)
        return found.with_data(found.data * 1e6)


TEXT = (20, 16, 2, 24, 1, 2)
LM = (7, 9, ["eng", "spa"], ["<trans>"], 16, 2, None, 24, 2)


class PromptStepOff(TransformerSpeechLM):
    def step(self, tokens: Tensor, state: Any) -> Tensor:
        if not state.steps:
            state.lengths = (state.lengths - 1).clamp(min=0)
        return super().step(tokens, state)


class PromptSeesPadding(TransformerSpeechLM):
    def start(self, prompt: Padded, beams: int = 1) -> Any:
        full = torch.full_like(prompt.lengths, prompt.data.shape[1])
        state = super().start(Padded(prompt.data, full), beams)
        state.lengths = prompt.lengths
        return state


class SaysNoRoom(TransformerSpeechLM):
    def start(self, prompt: Padded, beams: int = 1) -> Any:
        state = super().start(prompt, beams)
        state.room = None
        return state


class OtherVocabulary(TransformerSpeechLM):
    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.vocab_size -= 1


STREAMS = (7, 9, 4, "ar_nar", 16, 2, None, 24, 2)


class SeesItsOwn(TransformerStreamLM):
    def _stage_states(self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor) -> Tensor:
        states = super()._stage_states(units, codes, prompt, stage)
        return states + self._embed(codes.data[:, :, -1], self.num_streams - 1)


class Deaf(TransformerStreamLM):
    def _stage_states(self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor) -> Tensor:
        return super()._stage_states(units, codes, Padded(prompt.data * 0, prompt.lengths), stage)


BROKEN: dict[str, tuple[Callable[[], Any], set[str], str]] = {
    "leaks padding": (ReadsPadding, {"padding", "alone", "gradients"}, "when other values stand in the padding"),
    "lengths one short": (OneShort, {"lengths"}, "output_lengths says 0 steps for 1, forward says 1"),
    "lengths that are no integers": (
        FloatLengths,
        {"lengths"},
        "lengths must be int64 of shape (B,); got torch.float32",
    ),
    "a width of its own": (TooNarrow, {"shapes"}, "instead of (B=4, T, output_dim=6)"),
    "drops a gradient": (Detached, {"learns"}, "projection.weight gets no gradient: look for detach()"),
    "mixes gradients alone": (CutsInputGradient, {"gradients"}, "the gradient of"),
    "logs": (Logs, {"silent"}, "calls self.log"),
    "looks at the trainer": (LooksAtTheTrainer, {"silent"}, "reads self.global_step"),
    "loses a buffer": (LosesABuffer, {"saves"}, "the buffer directions is not saved"),
    "keeps a state on the side": (KeepsAStateOnTheSide, {"saves"}, "neither a parameter nor a saved buffer"),
    "mixes rows": (MixesRows, {"rows", "alone", "gradients"}, "when another row of the batch changes"),
    "not in bfloat16": (NotInBfloat16, {"bfloat16"}, "to have the same dtype"),
    "needs values": (NeedsValues, {"fake"}, "forward needs values"),
    "mixes devices": (MixesDevices, {"fake"}, "use states.mask or lengths.to(data.device)"),
    "masks all inputs": (MasksAll, {"learns"}, "such as a softmax whose inputs are all masked"),
    "masks all inputs of padding": (MasksAllForPadding, {"gradients"}, "such as a softmax whose inputs are all masked"),
    "returns another type": (
        GivesStatesAlone,
        {"runs"},
        "forward returned Padded; an Adaptor returns Adapted(states, losses)",
    ),
    "names a device": (NamesADevice, {"meta"}, "shift is on cpu"),
    "writes into its input": (WritesIntoItsInput, {"inputs"}, "changes its input 1 in place"),
    "drops out in evaluation": (AlwaysDropsOut, {"deterministic"}, "when it is called again in evaluation mode"),
    "does not run": (Raises, {"runs"}, "KeyError: 'nothing works' (test_broken.py:"),
    "a cache a step off": (lambda: WrongPosition(*TEXT), {"cache"}, "step 0 with a cache"),
    "a cache that is not reordered": (lambda: ForgetsToReorder(*TEXT), {"reorder"}, "behind reorder"),
    "a cache that sees padding": (lambda: CacheSeesPadding(*TEXT), {"cache", "beams"}, "with a cache"),
    "sees the future": (lambda: SeesTheFuture(*TEXT), {"causal", "cache"}, "the states before a token"),
    "a prompt read a step off": (lambda: PromptStepOff(*LM), {"cache", "beams"}, "step 0 with a cache"),
    "a prompt whose padding is seen": (lambda: PromptSeesPadding(*LM), {"cache", "beams"}, "with a cache"),
    "a prompt that says nothing of its length": (lambda: SaysNoRoom(*LM, max_positions=40), {"positions"}, "room for"),
    "another vocabulary than it says": (lambda: OtherVocabulary(*LM), {"vocabulary"}, "the vocabulary has"),
    "a stage that sees its own stream": (lambda: SeesItsOwn(*STREAMS), {"later_streams"}, "which comes later"),
    "no prompt": (lambda: Deaf(*STREAMS), {"conditions"}, "does not change with the prompt"),
    "not picklable": (NotPicklable, {"pickle"}, "it cannot be pickled"),
    "a fingerprint that lacks a setting": (IncompleteFingerprint, {"fingerprint"}, "gain="),
    "one step too many": (CountsOneMore, {"lengths"}, "output_length says 1 steps for 0 samples, 0 come out"),
    "loss keys that follow the batch": (KeysFollowTheBatch, {"losses"}, "forward gives units for one row"),
    "samples beyond one": (
        lambda: Loud(5, 8, 1, 3, duration_dim=8, iterations=1),
        {"samples"},
        "they must lie in -1..1",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_it_is_caught_by_name(kind: str):
    make, names, words = BROKEN[kind]
    faults = {outcome.name: outcome.fault for outcome in examine(make) if outcome.fault}
    first = next(iter(names & faults.keys()), None)
    assert first is not None, faults
    assert names <= faults.keys(), faults
    assert any(words in fault for name, fault in faults.items() if name in names), faults
    assert all("\n" not in fault for fault in faults.values())


def test_what_is_not_asked_of_a_part_that_does_not_run_is_one_line():
    outcomes = examine(GivesStatesAlone)
    lines = list(report("adaptor GivesStatesAlone", outcomes))
    idle = [outcome for outcome in outcomes if outcome.note]
    assert len(idle) > 10
    assert len(lines) == 3
    assert lines[1].startswith("  runs: forward returned Padded;")
    assert lines[2] == f"  {len(idle)} not asked: it does not run"


@pytest.mark.parametrize(
    ("make", "method", "words"),
    [
        (lambda: StackAdaptor(8, 6), "forward", "an Adaptor returns Adapted"),
        (lambda: ConformerEncoder(10, 16, 1, 2, 24, 7), "forward", "a SpeechEncoder returns Padded"),
        (lambda: TransformerSeq2Seq(*TEXT), "encode", "a TextSeq2Seq returns Padded"),
        (lambda: GriffinLimVocoder(5, 8, 1, 3, duration_dim=8), "losses", "a UnitVocoder returns a dict of Loss"),
        (lambda: GriffinLimVocoder(5, 8, 1, 3, duration_dim=8), "forward", "a UnitVocoder returns Padded"),
        (lambda: HiFiGANDiscriminator((2,), 0, (4,), 5, 3), "forward", "a Discriminator returns Judgement"),
        (
            lambda: CTCT2U(8, 10, upsample_by="subword", dim=16, num_conv_layers=1, num_heads=2, duration_dim=8),
            "forward",
            "a TextToUnit returns a dict of Loss",
        ),
        (lambda: FakeTokenizer(12, ["eng"]), "encode", "a Tokenizer returns a list of int"),
        (
            lambda: KMeansUnits(4, fft_size=320, window_length=320, num_mel_bins=20, max_frames=400, restarts=1),
            "forward",
            "a UnitExtractor returns Padded(units",
        ),
        (RawWaveform, "__call__", "a Frontend returns a Tensor"),
    ],
)
def test_another_type_is_said_for_each_role(make: Callable[[], Any], method: str, words: str):
    part = make()
    part.__class__ = type("Other", (type(part),), {method: lambda *_, **__: "text"})
    (fault,) = (outcome.fault for outcome in examine(part) if outcome.fault)
    assert f" returned str; {words}" in f" {fault}"


def test_the_sound_one_passes_and_is_not_changed():
    torch.manual_seed(5)
    part = Sound()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    state = torch.random.get_rng_state()
    outcomes = check_part(part)
    assert [outcome.name for outcome in outcomes if outcome.note] == ["meta"]  # it was given no way to build another
    assert part.training
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_error_has_a_line_for_each_broken_check():
    with pytest.raises(ContractError) as caught:
        check_part(OneShort())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("OneShort breaks 1 of ")
    assert lines[1].startswith("  lengths: output_lengths says")
    assert isinstance(caught.value, UserError)
    assert {outcome.name for outcome in caught.value.outcomes if outcome.fault} == {"lengths"}


def test_an_exemption_is_said_and_a_wrong_one_too():
    class Exempt(Sound):
        def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
            weight = self.projection.weight.detach() + 0 * self.projection.weight
            return Adapted(states.with_data(states.data @ weight.T + self.projection.bias))

        exempt: ClassVar = {"learns projection.weight": "a fixed projection"}

    class Mistyped(Sound):
        exempt: ClassVar = {"pading": "no such check"}

    check_part(Exempt)
    faults = [outcome for outcome in examine(Mistyped) if outcome.fault]
    assert [outcome.name for outcome in faults] == ["exempt"]
    assert "'pading'" in str(faults[0].fault)


def test_the_role_is_that_of_the_base_class():
    with pytest.raises(UserError, match="Linear is no part: derive it from one of Frontend"):
        check_part(lambda: nn.Linear(2, 2))
    with pytest.raises(ContractError, match="StackAdaptor is no SpeechEncoder"):
        check_part(lambda: StackAdaptor(8, 6), "speech_encoder")
    with pytest.raises(UserError, match="no role 'adapter'; did you mean 'adaptor'"):
        check_part(lambda: StackAdaptor(8, 6), "adapter")
    assert dataclasses.is_dataclass(examine(Sound)[0])
