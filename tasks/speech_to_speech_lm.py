"""Speech to speech by one decoder-only speech LM over units and codes, and a model for the other codec streams.

Letters: B batch, U units, T frames, K streams, N samples, P tokens of a prompt.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor

from ..components.cards import Card
from ..components.errors import UserError
from ..components.joint_vocabulary import PAD
from ..components.losses.cross_entropy import token_loss
from ..components.roles import Codec, Frontend, SpeechLM, StreamLM, UnitExtractor
from ..components.search import SearchOptions, generate
from ..components.speech_lm.templates import LossOn, Template, label_mask
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .processes.console import say
from .task import Task
from .units import card_beside, card_of_vocabulary

TEMPLATES = {
    "trans": "<bos> <lang:src> S_src <trans> <lang:tgt> | S_tgt <eos>",
    "gen": "<bos> <lang:tgt> S_tgt A_prompt <gen> | A_tgt <eos>",
}
"""MSLM-S2ST's two tasks (arXiv 2403.12408, section 3.1)."""
CARD = "vocabulary.card.json"
"""The file of a checkpoint that says what its ids are."""
_RATE = 16000
_WAYS = {"both": (False, True), "forward": (False,), "backward": (True,)}
"""Directions -> for each, whether it goes backwards."""


@dataclass(frozen=True)
class _Example:
    """One row of a batch in one task and direction."""

    template: Template
    pieces: dict[str, Tensor]
    langs: tuple[str, str]
    whose: str


class SpeechToSpeechLM(Task):
    """MSLM-S2ST (arXiv 2403.12408): one speech LM translates units and then writes the first codec stream in the voice
    of an acoustic prompt; a second model writes the other streams.

    In training each row is one example an epoch. Over epochs its tasks follow their `upsample`, 3 translations to 1
    generation as published, and both directions take turns, so that shares are exact and do not depend on how a batch
    is cut up. Validation measures all of them.

    Losses: `lm`, over the target tokens of all tasks, then `streams` of the stream LM. Of each task T there are
    `loss_T`, `accuracy_T` and `perplexity_T`.

    Serving goes in the published order: units of the source; their translation; the first stream, prompted by the
    source's; the other streams; the waveform. With a `chain` template and no `trans`, one sequence holds the two
    generations (SeamlessExpressiveLM, arXiv 2405.20410). Without a codec the translated units are all that comes out.

    Args:
        speech_lm: translates and writes the first stream.
        stream_lm: writes the streams that are not the speech LM's; None: units alone.
        unit_extractor, codec: make units and codes of what is served; they do not learn here.
        frontend: waveform to samples, for inference.
        templates: task -> sequence (`components.speech_lm.templates`); null leaves one out. With a stream LM that
            writes all streams step by step (`stream_lm.pattern=delay`), nothing of a codec is the speech LM's: `gen` is
            left out.
        upsample: task -> how often it comes for one time of the others.
        directions: `forward`, each pair from source to target; `backward`, the other way round; or `both`.
        loss_on: `target`, what stands behind a template's bar, or `all` tokens.
        prompt: what the acoustic prompt is in training. `source`: of the source speech, for pairs in one voice.
            `target`: cut out of the target (VALL-E; SeamlessExpressiveLM), for pairs in two. Serving takes the source.
        prompt_frames: most frames of a prompt of source speech; null: all.
        prompt_share: least and greatest part of the target that a prompt of it is.
        frames_per_unit: codec frames of one unit; null: as codec and unit extractor say.
        label_smoothing: share of the probability spread over the vocabulary, fairseq form.
        loss_weights: weights of `lm` and `streams`.
        search: of translations; its limits follow the units of the source.
        acoustic_search: of streams; its limits follow the frames that the units of the target last.

    Raises:
        UserError: templates that name what is not there, or parts that do not fit together.
    """

    needs = frozenset({"units", "source_units", "codes", "source_codes"})
    modes = frozenset({"s2st"})
    reads_speech = True
    roles = ("unit_extractor", "speech_lm", "stream_lm", "codec")

    def __init__(
        self,
        *,
        speech_lm: SpeechLM,
        stream_lm: StreamLM | None = None,
        unit_extractor: UnitExtractor | None = None,
        codec: Codec | None = None,
        frontend: Frontend | None = None,
        templates: Mapping[str, str | None] | None = None,
        upsample: Mapping[str, int] | None = None,
        directions: Literal["both", "forward", "backward"] = "both",
        loss_on: LossOn = "target",
        prompt: Literal["source", "target"] = "source",
        prompt_frames: int | None = 225,
        prompt_share: Sequence[float] = (0.25, 0.3),
        frames_per_unit: float | None = None,
        label_smoothing: float = 0.0,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
        acoustic_search: SearchOptions | None = None,
    ) -> None:
        super().__init__(loss_weights=loss_weights)
        self.speech_lm, self.stream_lm = speech_lm, stream_lm
        self.unit_extractor, self.codec = unit_extractor, codec
        self.frontend = frontend
        if directions not in _WAYS:
            raise UserError(f"task.directions={directions}: expected {', '.join(_WAYS)}")
        self.ways = _WAYS[directions]
        self.loss_on: LossOn = loss_on
        self.prompt, self.prompt_frames = prompt, prompt_frames
        self.prompt_share = (float(prompt_share[0]), float(prompt_share[-1]))
        self.label_smoothing = label_smoothing
        self.search = search or SearchOptions(max_length=2048, max_length_a=3.0, max_length_b=10, min_length_a=0.3)
        self.acoustic_search = acoustic_search or SearchOptions(
            method="sample", beam_size=1, max_length=4096, max_length_a=1.1, max_length_b=2, min_length_a=0.9
        )
        given = {name: text for name, text in (templates or TEMPLATES).items() if text is not None}
        # In order of names: that of keys in a YAML file changes nothing.
        self.templates = {name: Template(name, given[name], speech_lm.vocabulary) for name in sorted(given)}
        if stream_lm is not None and not stream_lm.given_streams:
            self.templates = {
                name: one
                for name, one in self.templates.items()
                if not any(segment.piece == "A_tgt" for segment in one.segments)
            }
        self.upsample = self._upsample(upsample)
        self._refuse_misfits()
        self.frames_per_unit = frames_per_unit or 1.5
        if frames_per_unit is None and codec is not None and unit_extractor is not None:
            self.frames_per_unit = codec.frame_rate / unit_extractor.frame_rate
        self.needs = self._needs()  # pyright: ignore[reportAttributeAccessIssue]
        self.freeze_parts([role for role in ("unit_extractor", "codec") if getattr(self, role) is not None])

    def _upsample(self, upsample: Mapping[str, int] | None) -> dict[str, int]:
        if not self.templates:
            raise UserError("task.templates: nothing is left to learn; name trans, gen or chain")
        shares = {"trans": 3, **(upsample or {})}
        for name, share in (upsample or {}).items():
            if name not in self.templates and name not in TEMPLATES and name != "chain":
                raise UserError(
                    f"task.upsample.{name}: there is no such template; there are: {', '.join(self.templates)}"
                )
            if share < 1:
                raise UserError(f"task.upsample.{name}={share}: expected at least 1; a null template leaves a task out")
        return {name: int(shares.get(name, 1)) for name in self.templates}

    def _refuse_misfits(self) -> None:
        """Refuse parts that do not fit together, naming both."""
        vocabulary, stream = self.speech_lm.vocabulary, self.stream_lm
        sizes: list[tuple[str, int, str, int]] = []
        if self.unit_extractor is not None:
            sizes.append(
                ("speech_lm.num_units", vocabulary.units.size, "unit_extractor", self.unit_extractor.num_units)
            )
        if stream is not None:
            sizes.append(("stream_lm.num_units", stream.num_units, "speech_lm", vocabulary.units.size))
            if stream.given_streams:
                sizes.append(("stream_lm.codebook_size", stream.codebook_size, "speech_lm", vocabulary.codes.size))
        if self.codec is not None and vocabulary.codes.size:
            sizes.append(("speech_lm.codebook_size", vocabulary.codes.size, "codec", self.codec.codebook_size))
        for key, ours, other, theirs in sizes:
            if ours != theirs:
                raise UserError(f"{key} is {ours}, but {other} has {theirs}: one must follow the other")
        if self.codec is not None and stream is not None and stream.num_streams > self.codec.num_codebooks:
            raise UserError(
                f"stream_lm.num_streams is {stream.num_streams}, but codec has {self.codec.num_codebooks} codebooks: "
                "set it to at most that"
            )
        if not 0 < self.prompt_share[0] <= self.prompt_share[1] <= 1:
            raise UserError(f"task.prompt_share={list(self.prompt_share)}: expected [least, greatest] above 0, up to 1")
        if self.prompt_frames is not None and self.prompt_frames < 1:
            raise UserError(f"task.prompt_frames={self.prompt_frames}: expected at least 1, or null for all")

    def _needs(self) -> frozenset[str]:
        """Prepared fields: of both sides where both directions are learned."""
        pieces = {piece for template in self.templates.values() for piece in template.pieces}
        pieces |= {"S_tgt", "A_tgt", "A_prompt"} if self.stream_lm is not None else set()
        # Piece -> field, and whether it is of the source.
        sides = {"S_src": ("units", True), "S_tgt": ("units", False), "A_tgt": ("codes", False)}
        sides["A_prompt"] = ("codes", self.prompt == "source")
        needs = {"units"}  # what batches are planned by
        for piece in pieces:
            field, source = sides[piece]
            needs |= {f"source_{field}" if source != way else field for way in self.ways}
        return frozenset(needs)

    # Learning

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        examples, spoken = self._examples(batch)
        packed = [one.template.pack(one.pieces, *one.langs, one.whose) for one in examples]
        self._refuse_long(examples, packed)
        tokens = Padded.from_list([ids for ids, _ in packed], value=PAD)
        starts = torch.tensor([start for _, start in packed], device=tokens.device)
        given = Padded(tokens.data[:, :-1], tokens.lengths - 1)
        states = self.speech_lm.decode(given, starts - 1)
        labels = tokens.data[:, 1:]
        mask = label_mask(tokens.lengths, starts, labels.shape[1], self.loss_on)
        names = list(self.templates)
        which = torch.tensor([names.index(one.template.name) for one in examples], device=tokens.device)
        parts, statistics = [], {}
        for number, name in enumerate(names):
            loss, right = token_loss(
                self.speech_lm.project,
                states,
                labels,
                mask=mask & (which == number)[:, None],
                label_smoothing=self.label_smoothing,
                weight=self.speech_lm.output_weight,
            )
            parts.append(loss)
            statistics[f"loss_{name}"] = Statistic(loss.total.detach(), loss.count)
            statistics[f"accuracy_{name}"] = right
        losses = {"lm": sum(parts[1:], parts[0])}
        if self.stream_lm is not None:
            found, accuracies = self.stream_lm(*spoken)
            losses.update(found)
            statistics.update({f"accuracy_{name}": value for name, value in accuracies.items()})
        return losses, statistics

    def _examples(self, batch: Batch) -> tuple[list[_Example], tuple[Padded, ...]]:
        """Rows in their tasks and directions, and what the stream LM learns from: units, codes, prompts, stages."""
        columns = {name: self._column(batch, name) for name in sorted(self.needs)}
        shares = [name for name, share in self.upsample.items() for _ in range(share)]
        ways = self.ways
        langs_of = self._row_languages(batch)
        examples: list[_Example] = []
        spoken: list[tuple[Tensor, ...]] = []
        stages: list[int] = []
        for row, name in enumerate(batch.ids):
            turn = self.current_epoch + self._draw(name, "turn")
            if self.training:
                asked = [(shares[turn // len(ways) % len(shares)], ways[turn % len(ways)])]
            else:
                asked = [(task, way) for way in ways for task in self.templates]
            pieces = {way: self._pieces(columns, row, name, way) for way in dict.fromkeys(way for _, way in asked)}
            for task, way in asked:
                source, target = langs_of[row]
                langs = (target, source) if way else (source, target)
                examples.append(_Example(self.templates[task], pieces[way][0], langs, f"utterance {name}"))
            if self.stream_lm is not None:
                for way, (one, codes, prompt) in pieces.items():
                    spoken.append((one["S_tgt"], codes, prompt))
                    draw = self._draw(name, f"stage {self.current_epoch if self.training else ''} {way}")
                    stages.append(1 + draw % (self.stream_lm.num_streams - 1))
        stacked = [Padded.from_list(list(column)) for column in zip(*spoken, strict=True)]
        if stacked:
            stacked.append(torch.tensor(stages, device=stacked[0].device))  # pyright: ignore[reportArgumentType]
        return examples, tuple(stacked)

    def _column(self, batch: Batch, name: str) -> list[Tensor]:
        found: Padded | None = getattr(batch, name)
        assert found is not None
        if name.endswith("codes") and self.stream_lm is not None:
            wanted, there = self.stream_lm.num_streams, found.data.shape[2]
            if there < wanted:
                raise UserError(
                    f"data.{name} has {there} streams, but stream_lm.num_streams is {wanted}: write the codes of "
                    f"{wanted} codebooks, or set stream_lm.num_streams={there}"
                )
            found = found.with_data(found.data[:, :, :wanted])
        return found.unpad()

    def _pieces(
        self, columns: Mapping[str, list[Tensor]], row: int, name: str, backwards: bool
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What templates put in, 0-based; codes (T, K) of the target; codes of the prompt."""

        def side(field: str, source: bool) -> Tensor | None:
            column = columns.get(f"source_{field}" if source != backwards else field)
            return None if column is None else column[row]

        codes = side("codes", source=False)
        prompt = side("codes", source=self.prompt == "source")
        if prompt is not None:
            prompt = self._cut(prompt, name)
        pieces = {
            "S_src": side("units", source=True),
            "S_tgt": side("units", source=False),
            "A_tgt": None if codes is None else codes[:, 0],
            "A_prompt": None if prompt is None else prompt[:, 0],
        }
        empty = torch.empty(0)
        return (
            {key: value for key, value in pieces.items() if value is not None},
            empty if codes is None else codes,
            empty if prompt is None else prompt,
        )

    def _cut(self, codes: Tensor, name: str) -> Tensor:
        """(T, K) -> the frames that are the prompt, drawn anew in each epoch."""
        frames, epoch = len(codes), self.current_epoch if self.training else -1
        if self.prompt == "target":
            least, greatest = self.prompt_share
            share = least + (greatest - least) * (self._draw(name, f"share {epoch}") % 1000) / 1000
            count = max(round(share * frames), 1)
        else:
            count = frames if self.prompt_frames is None else self.prompt_frames
        count = min(count, frames)
        start = self._draw(name, f"start {epoch}") % (frames - count + 1)
        return codes[start : start + count]

    def _draw(self, name: str, what: str) -> int:
        """A number of the seed, an utterance and a word: the same however batches are cut up."""
        return zlib.crc32(f"{self.config.get('seed', 1)} {what} {name}".encode())

    def _row_languages(self, batch: Batch) -> list[tuple[str, str]]:
        """Source and target language of each row."""
        known = self.speech_lm.vocabulary.languages
        if not batch.src_lang and not batch.tgt_lang:  # made up, for a plan
            return [(known[0], known[-1])] * len(batch)
        nothing = ("",) * len(batch)
        said = zip(batch.ids, batch.src_lang or nothing, batch.tgt_lang or nothing, strict=True)
        return [self._languages(source, target, f"utterance {name}") for name, source, target in said]

    def _languages(self, source: str, target: str, whose: str) -> tuple[str, str]:
        """Where one language of two is not said, it is the other."""
        known = self.speech_lm.vocabulary.languages
        if source and target:
            return source, target
        if len(known) != 2 or not (source or target):
            raise UserError(f"{whose}: its languages are not said; give both of {', '.join(known)}")
        said = self.speech_lm.vocabulary.find(source or target)
        other = known[0] if said != known[0] else known[1]
        return (source, other) if source else (other, target)

    def _refuse_long(self, examples: Sequence[_Example], packed: Sequence[tuple[Tensor, int]]) -> None:
        most = self.speech_lm.max_positions
        for one, (ids, _) in zip(examples, packed, strict=True):
            if most is not None and len(ids) - 1 > most:
                raise UserError(
                    f"{one.whose}: {len(ids)} tokens in the template {one.template.name}, but speech_lm has positions "
                    f"for {most}: leave it out (data.max_seconds), shorten prompts (task.prompt_frames), or raise "
                    "speech_lm.max_positions"
                )

    def _means(self, sums: Mapping[str, Loss | Statistic]) -> dict[str, float]:
        means = super()._means(sums)
        found = {}
        for name in self.templates:
            if f"loss_{name}" in means:
                found[f"perplexity_{name}"] = math.exp(min(means[f"loss_{name}"], 80.0))
        return {**means, **found}

    def on_train_start(self) -> None:
        """Say how many utterances and target tokens each task has."""
        super().on_train_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        if not self.trainer.is_global_zero or not hasattr(data, "read_prepared"):
            return
        for line in self.amounts(data):
            say(line)

    def amounts(self, data: Any) -> list[str]:
        """A line for each task: utterances of the training data that have all it needs, and target tokens of all, each
        direction once."""
        ids = [row.id for row in data.rows("train")]
        tables = {name: data.read_prepared(name) for name in sorted(self.needs)}
        whole = [name for name in ids if all(name in table for table in tables.values())]
        lines = []
        for task, template in self.templates.items():
            tokens = 0
            for way in self.ways:
                for segment in template.segments:
                    field = "units" if segment.piece == "S_tgt" else "codes"
                    table = tables[f"source_{field}" if way else field]
                    tokens += sum(len(table[name]) + 1 for name in whole)
            both = "both directions" if len(self.ways) > 1 else "one direction"
            lines.append(
                f"{task}: {len(whole)} utterances, {tokens:,} target tokens in {both}, {self.upsample[task]} of "
                f"{sum(self.upsample.values())} examples"
            )
        return lines

    @classmethod
    def remarks(cls, parameters: Mapping[str, int], config: DictConfig) -> list[str]:
        """How many parameters the same parts take as a cascade: a translation LM a direction, an acoustic LM, and the
        stream LM (arXiv 2403.12408, section 4: about twice as many)."""
        lm, stream = parameters.get("speech_lm", 0), parameters.get("stream_lm", 0)
        texts = config.task.get("templates") or TEMPLATES
        if not (lm and stream and texts.get("trans") and texts.get("gen")):
            return []
        ways = len(_WAYS[config.task.get("directions", "both")])
        shared, cascade = lm + stream, (ways + 1) * lm + stream
        return [
            f"one speech LM for {ways + 1} tasks and a stream LM: {shared:,} parameters; as a cascade ({ways} "
            f"translation and an acoustic LM of this size, and the stream LM) {cascade:,}: {shared / cascade:.2f} of "
            "that"
        ]

    # What the ids are

    def setup(self, stage: str) -> None:
        """Take the card of the data into the checkpoint, and refuse data or parts of other units or codes."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        paths = dict(getattr(data, "prepared_paths", {}) or {})
        cards = {name: card_beside(Path(path)) for name, path in paths.items() if name in self.needs}
        card = self.card(cards)
        self.files[CARD] = torch.frombuffer(bytearray(card.json.encode()), dtype=torch.uint8)

    def card(self, cards: Mapping[str, Card | None]) -> Card:
        """Of this vocabulary, with the units and codes of data (field -> card beside its file) and of the parts.

        Raises:
            UserError: cards that differ.
        """
        return card_of_vocabulary(self.speech_lm.vocabulary, cards, self.unit_extractor, self.codec)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = self.files.get(CARD)
        super().on_load_checkpoint(checkpoint)
        theirs = self.files.get(CARD)
        if ours is not None and theirs is not None:
            _card(ours).require(
                _card(theirs), "this run", "the checkpoint learned other ids: train anew under another name"
            )

    # Serving

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        mode = self.pick_mode(task, batch)
        units, prompt = self._source(batch)
        langs = self._row_languages(batch)
        rows: list[dict[str, Tensor]] = [{"S_src": row} for row in units.unpad()]
        if prompt is not None:
            for row, codes in zip(rows, prompt.unpad(), strict=True):
                row["A_prompt"] = codes[:, 0]
        names = [f"utterance {name}" for name in batch.ids]
        first = self.templates.get("trans") or self.templates.get("chain")
        if first is None:
            raise UserError("this model has no template that translates (trans or chain): it speaks no other language")
        scores = self._write(first, 0, rows, langs, names, options or self.search, units.lengths.tolist())
        speech = None
        if self.stream_lm is not None and self.codec is not None and prompt is not None:
            speech = self._speak(rows, langs, names, prompt)
        found = []
        for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
            audio = None if speech is None else speech[place].float().cpu()
            one = Prediction(
                id=batch.ids[place], task=mode, src_lang=langs[place][0], tgt_lang=langs[place][1],
                units=row["S_tgt"].tolist(), audio=audio, sample_rate=_RATE, score=score,
            )  # fmt: skip
            found.append(one)
        return found

    def _source(self, batch: Batch) -> tuple[Padded, Padded | None]:
        """Units of the source, and the codes that are the prompt: made of speech where the batch brings none."""
        units, codes = batch.source_units, batch.source_codes
        speech = batch.speech
        if units is None:
            if self.unit_extractor is None or speech is None:
                raise UserError(
                    "this model has no unit extractor: give data.source_units, or train with unit_extractor"
                )
            units = self.unit_extractor(speech)
        if codes is None and self.codec is not None and speech is not None and self.stream_lm is not None:
            codes = self.codec.encode(speech, self.stream_lm.num_streams, _RATE)
        if codes is not None and self.prompt_frames is not None:
            most = self.prompt_frames
            codes = Padded(codes.data[:, :most], codes.lengths.clamp(max=most))
        return units, codes

    def _write(
        self,
        template: Template,
        number: int,
        rows: list[dict[str, Tensor]],
        langs: Sequence[tuple[str, str]],
        names: Sequence[str],
        options: SearchOptions,
        lengths: Sequence[int],
    ) -> list[float]:
        """Generate a segment of a template for all rows, into the rows; their scores."""
        segment, vocabulary = template.segments[number], self.speech_lm.vocabulary
        prompts = [
            template.prompt(row, *lang, name, number) for row, lang, name in zip(rows, langs, names, strict=True)
        ]
        most = self.speech_lm.max_positions
        for name, prompt in zip(names, prompts, strict=True):
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
            generator=torch.Generator(device).manual_seed(int(self.config.get("seed", 1))),
            lengths=lengths,
        )
        for row, hypotheses in zip(rows, found, strict=True):
            row[segment.piece] = (hypotheses[0].tokens - segment.block.start).to(device)
        return [hypotheses[0].score for hypotheses in found]

    def _speak(
        self,
        rows: list[dict[str, Tensor]],
        langs: Sequence[tuple[str, str]],
        names: Sequence[str],
        prompt: Padded,
    ) -> list[Tensor]:
        """(N,) samples at 16 kHz of each row, in the voice of its prompt."""
        stream = self.stream_lm
        assert stream is not None
        units = Padded.from_list([row["S_tgt"] for row in rows]).to(prompt.device)
        sizes = [max(round(len(row["S_tgt"]) * self.frames_per_unit), 1) for row in rows]
        if stream.given_streams:
            template, number = (self.templates["gen"], 0) if "gen" in self.templates else (self.templates["chain"], 1)
            self._write(template, number, rows, langs, names, self.acoustic_search, sizes)
            first = Padded.from_list([row["A_tgt"] for row in rows]).to(prompt.device)
            codes = stream.generate(units, prompt, first)
        else:
            frames = torch.tensor(sizes)
            generator = torch.Generator(units.device).manual_seed(int(self.config.get("seed", 1)))
            codes = stream.generate(units, prompt, frames=frames, search=self.acoustic_search, generator=generator)
        return self._decoded(codes)

    def _decoded(self, codes: Padded) -> list[Tensor]:
        """(N,) samples at 16 kHz of each row, of all channels together."""
        assert self.codec is not None
        found = self.codec.decode(codes, _RATE).unpad()
        return [samples if samples.dim() == 1 else samples.mean(1) for samples in found]

    @torch.inference_mode()
    def resynthesise(self, batch: Batch) -> list[Tensor] | None:
        """The batch's reference codes through the codec, one (N,) waveform per row: what perfect codes would give. None
        where there is no codec or the batch has no codes."""
        if self.codec is None or batch.codes is None:
            return None
        return self._decoded(batch.codes)

    @property
    def languages(self) -> tuple[str, ...]:
        return self.speech_lm.vocabulary.languages

    def serving_needs(self) -> frozenset[str]:
        return frozenset({"speech"} if self.unit_extractor is not None else {"source_units", "source_codes"})


def _card(content: Tensor) -> Card:
    return Card.from_dict(json.loads(content.numpy().tobytes()), CARD)
