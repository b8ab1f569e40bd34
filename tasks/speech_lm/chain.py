"""Speech to speech by a speech LM, one thing after another: units of the source, their translation, the first codec
stream in the voice of a prompt, the other streams, the waveform.

Letters: B batch, U units, T frames, K streams, N samples, P tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...components.errors import UserError
from ...components.joint_vocabulary import PAD
from ...components.roles import Codec, SpeechLM, StreamLM, UnitExtractor
from ...components.search import SearchOptions, generate
from ...components.speech_lm.templates import Template
from ...components.types import Batch, Padded
from .examples import first_streams

RATE = 16000
"""Hz of what comes and goes."""


@dataclass
class Chained:
    """What became of a batch.

    Attributes:
        units: (U,) units of the target, of each row.
        scores: of the translations.
        codes: (B, T, K), and audio: (N,) samples at 16 kHz of each row; None where the parts do not speak.
    """

    units: list[Tensor]
    scores: list[float]
    codes: Padded | None = None
    audio: list[Tensor] | None = None


@dataclass
class Given:
    """What is generated from: pieces of each row, to which generated ones are added, its languages, its name for
    messages."""

    rows: list[dict[str, Tensor]]
    langs: Sequence[tuple[str, str]]
    names: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class SpeechChain:
    """Parts and settings of `SpeechToSpeechLM`, as its arguments say; `seed` is the run's."""

    speech_lm: SpeechLM
    stream_lm: StreamLM | None
    unit_extractor: UnitExtractor | None
    codec: Codec | None
    templates: Mapping[str, Template]
    acoustic_search: SearchOptions
    frames_per_unit: float
    prompt_frames: int | None
    seed: int

    def run(
        self,
        batch: Batch,
        langs: Sequence[tuple[str, str]],
        search: SearchOptions,
        prompts: Batch | None = None,
    ) -> Chained:
        """Translate a batch, and speak where the parts can.

        Args:
            batch: with speech, or units and codes of the source.
            langs: source and target language of each row.
            search: of translations.
            prompts: rows whose source is the prompt; None: those of `batch`.

        Raises:
            UserError: no template that translates, nothing to read, or a prompt that is too long.
        """
        units, prompt = self.source_units(batch), self.prompts(batch if prompts is None else prompts)
        rows = [{"S_src": row} for row in units.unpad()]
        if prompt is not None:
            for row, codes in zip(rows, prompt.unpad(), strict=True):
                row["A_prompt"] = codes[:, 0]
        given = Given(rows, langs, [f"utterance {name}" for name in batch.ids])
        first = self.templates.get("trans") or self.templates.get("chain")
        if first is None:
            raise UserError("this model has no template that translates (trans or chain): it speaks no other language")
        scores = self.write(first, 0, given, search, units.lengths.tolist())
        made = Chained([row["S_tgt"] for row in rows], scores)
        if self.stream_lm is not None and self.codec is not None and prompt is not None:
            made.codes = self.speak(given, prompt)
            made.audio = self.decoded(made.codes)
        return made

    def source_units(self, batch: Batch) -> Padded:
        """(B, U) units of the source: made of speech where the batch brings none."""
        if batch.source_units is not None:
            return batch.source_units
        if self.unit_extractor is None or batch.speech is None:
            raise UserError("this model has no unit extractor: give data.source_units, or train with unit_extractor")
        return self.unit_extractor(batch.speech)

    def prompts(self, batch: Batch) -> Padded | None:
        """(B, P, K) the beginning of the source's codes: made of speech where the batch brings none; None where there
        is neither.

        Raises:
            UserError: codes of too few streams, or of another codec.
        """
        codes, stream = batch.source_codes, self.stream_lm
        if codes is not None and stream is not None:
            codes = first_streams(codes, "source_codes", stream.num_streams, stream.codebook_size)
        if codes is None and self.codec is not None and batch.speech is not None and stream is not None:
            codes = self.codec.encode(batch.speech, stream.num_streams, RATE)
        if codes is not None and self.prompt_frames is not None:
            most = self.prompt_frames
            codes = Padded(codes.data[:, :most], codes.lengths.clamp(max=most))
        return codes

    def write(
        self, template: Template, number: int, given: Given, options: SearchOptions, lengths: Sequence[int]
    ) -> list[float]:
        """Generate a segment of a template for all rows, into the rows; their scores.

        Args:
            template, number: the segment.
            given: what stands before it.
            options: of the search; its limits follow `lengths`.
        """
        segment, vocabulary = template.segments[number], self.speech_lm.vocabulary
        prompts = [
            template.prompt(row, *lang, name, number)
            for row, lang, name in zip(given.rows, given.langs, given.names, strict=True)
        ]
        most = self.speech_lm.max_positions
        for name, prompt in zip(given.names, prompts, strict=True):
            if most is not None and len(prompt) > most:
                raise UserError(
                    f"{name}: a prompt of {len(prompt)} tokens, but speech_lm has positions for {most}: give shorter "
                    "speech (--segment), or lower task.prompt_frames"
                )
        device = prompts[0].device
        memory = Padded.from_list([prompt[:-1] for prompt in prompts], value=PAD).to(device)
        found = generate(
            self.speech_lm,
            memory,
            torch.stack([prompt[-1:] for prompt in prompts]),
            replace(options, suppress=vocabulary.outside(segment.block, segment.end)),
            segment.end,
            PAD,
            PAD,
            generator=torch.Generator(device).manual_seed(self.seed),
            lengths=lengths,
        )
        for row, hypotheses in zip(given.rows, found, strict=True):
            row[segment.piece] = (hypotheses[0].tokens - segment.block.start).to(device)
        return [hypotheses[0].score for hypotheses in found]

    def speak(self, given: Given, prompt: Padded) -> Padded:
        """(B, T, K) codes of the target units of all rows, in the voices of (B, P, K) prompts."""
        stream, rows = self.stream_lm, given.rows
        assert stream is not None
        units = Padded.from_list([row["S_tgt"] for row in rows]).to(prompt.device)
        sizes = [max(round(len(row["S_tgt"]) * self.frames_per_unit), 1) for row in rows]
        if stream.given_streams:
            template, number = (self.templates["gen"], 0) if "gen" in self.templates else (self.templates["chain"], 1)
            self.write(template, number, given, self.acoustic_search, sizes)
            first = Padded.from_list([row["A_tgt"] for row in rows]).to(prompt.device)
            return stream.generate(units, prompt, first)
        generator = torch.Generator(units.device).manual_seed(self.seed)
        return stream.generate(
            units, prompt, frames=torch.tensor(sizes), search=self.acoustic_search, generator=generator
        )

    def decoded(self, codes: Padded) -> list[Tensor]:
        """(N,) samples at 16 kHz of each row, of all channels together."""
        assert self.codec is not None
        found = self.codec.decode(codes, RATE).unpad()
        return [samples if samples.dim() == 1 else samples.mean(1) for samples in found]
