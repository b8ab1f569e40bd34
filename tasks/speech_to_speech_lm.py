"""Speech to speech by one decoder-only speech LM over units and codes, and a model for the other codec streams.

Letters: B batch, U units, T frames, K streams, N samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor

from ..components.cards import Card
from ..components.errors import UserError
from ..components.losses.cross_entropy import token_loss
from ..components.roles import Codec, Frontend, SpeechLM, StreamLM, UnitExtractor
from ..components.search import SearchOptions
from ..components.speech_lm.templates import LossOn, Template, label_mask
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .processes.console import say
from .speech_lm.chain import RATE, SpeechChain
from .speech_lm.examples import Example, ExampleMaker, Spoken
from .speech_lm.languages import row_languages
from .task import Task
from .units import card_beside, card_of_vocabulary

TEMPLATES = {
    "trans": "<bos> <lang:src> S_src <trans> <lang:tgt> | S_tgt <eos>",
    "gen": "<bos> <lang:tgt> S_tgt A_prompt <gen> | A_tgt <eos>",
}
"""MSLM-S2ST's two tasks (arXiv 2403.12408, section 3.1)."""
CARD = "vocabulary.card.json"
"""The file of a checkpoint that says what its ids are."""
_WAYS = {"both": (False, True), "forward": (False,), "backward": (True,)}
"""Directions -> for each, whether it goes backwards."""


class SpeechToSpeechLM(Task):
    """MSLM-S2ST (arXiv 2403.12408): one speech LM translates units and then writes the first codec stream in the voice
    of an acoustic prompt; a second model writes the other streams.

    In training each row is one example an epoch. Over epochs its tasks follow their `upsample`, 3 translations to 1
    generation as published, and both directions take turns, so that shares are exact and do not depend on how a batch
    is cut up. Validation measures all of them.

    Losses: `lm`, over the target tokens of all tasks, then `streams` of the stream LM. Of each task T there are
    `loss_T`, `accuracy_T` and `perplexity_T`. A speech LM that is frozen beside a stream LM is not run: there is none
    of these.

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
        self.maker = ExampleMaker(
            speech_lm.vocabulary, self.templates, self.upsample, self.ways, self.needs, prompt, prompt_frames,
            self.prompt_share, None if stream_lm is None else stream_lm.num_streams,
            0 if stream_lm is None else stream_lm.codebook_size, speech_lm.max_positions,
        )  # fmt: skip
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
        examples, spoken = self.examples(batch)
        losses, statistics = self._measure_lm(examples) if self.learns_lm else ({}, {})
        if self.stream_lm is not None and spoken is not None:
            found, accuracies = self.stream_lm(*spoken)
            losses.update(found)
            statistics.update({f"accuracy_{name}": value for name, value in accuracies.items()})
        return losses, statistics

    @property
    def learns_lm(self) -> bool:
        """Whether the speech LM has a loss: not where it is frozen and a stream LM learns beside it."""
        return self.stream_lm is None or "speech_lm" not in self.frozen

    def _measure_lm(self, examples: list[Example]) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        packed = self.maker.sequences(examples)
        tokens = packed.tokens
        given = Padded(tokens.data[:, :-1], tokens.lengths - 1)
        states = self.speech_lm.decode(given, packed.starts - 1)
        labels = tokens.data[:, 1:]
        mask = label_mask(tokens.lengths, packed.starts, labels.shape[1], self.loss_on)
        parts, statistics = [], {}
        for number, name in enumerate(self.templates):
            loss, right = token_loss(
                self.speech_lm.project,
                states,
                labels,
                mask=mask & (packed.tasks == number)[:, None],
                label_smoothing=self.label_smoothing,
                weight=self.speech_lm.output_weight,
            )
            parts.append(loss)
            statistics[f"loss_{name}"] = Statistic(loss.total.detach(), loss.count)
            statistics[f"accuracy_{name}"] = right
        return {"lm": sum(parts[1:], parts[0])}, statistics

    def examples(self, batch: Batch) -> tuple[list[Example], Spoken | None]:
        """What is learned from a batch now; see `ExampleMaker.examples`."""
        return self.maker.examples(batch, self._seed, self.current_epoch if self.training else None)

    @property
    def _seed(self) -> int:
        return int(self.config.get("seed", 1))

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
        if not self.trainer.is_global_zero or not hasattr(data, "read_prepared") or not self.learns_lm:
            return
        for line in self.maker.amounts(data):
            say(line)

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
        # Parts of a run that goes on have no weights yet: its checkpoint says what they are.
        parts = (None, None) if self.goes_on else (self.unit_extractor, self.codec)
        card = card_of_vocabulary(self.speech_lm.vocabulary, cards, *parts)
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
            now, before = _card(ours), _card(theirs)
            known = {name: before.values.get(name) if value is None else value for name, value in now.values.items()}
            advice = "the checkpoint learned other ids: train anew under another name"
            Card(now.kind, known).require(before, "this run", advice)

    # Serving

    @torch.inference_mode()
    def predict(
        self,
        batch: Batch,
        *,
        task: str | None = None,
        options: SearchOptions | None = None,
        prompts: Batch | None = None,
    ) -> list[Prediction]:
        """As of `Task`. `prompts`: rows whose source is the acoustic prompt, in place of each one's own."""
        mode = self.pick_mode(task, batch)
        langs = row_languages(batch, self.speech_lm.vocabulary)
        made = self.chain.run(batch, langs, options or self.search, prompts)
        codes = [None] * len(batch) if made.codes is None else [rows.cpu() for rows in made.codes.unpad()]
        audio = [None] * len(batch) if made.audio is None else [samples.float().cpu() for samples in made.audio]
        return [
            Prediction(
                id=name, task=mode, src_lang=source, tgt_lang=target,
                units=units.tolist(), codes=frames, audio=samples, sample_rate=RATE, score=score,
            )
            for name, (source, target), units, frames, samples, score in zip(
                batch.ids, langs, made.units, codes, audio, made.scores, strict=True
            )
        ]  # fmt: skip

    @property
    def chain(self) -> SpeechChain:
        """What serves, of the parts as they are now."""
        return SpeechChain(
            self.speech_lm, self.stream_lm, self.unit_extractor, self.codec, self.templates,
            self.acoustic_search, self.frames_per_unit, self.prompt_frames, self._seed,
        )  # fmt: skip

    @torch.inference_mode()
    def resynthesise(self, batch: Batch) -> list[Tensor] | None:
        """The reference codes through the codec, one (N,) waveform at 16 kHz per row: what perfect codes would give.
        Codes of the batch, or of its target speech; None where there is no codec or neither."""
        codes, stream = batch.codes, self.stream_lm
        if self.codec is None or (codes is None and batch.target_speech is None):
            return None
        if codes is None and batch.target_speech is not None:
            codes = self.codec.encode(batch.target_speech, stream and stream.num_streams, RATE)
        assert codes is not None
        return self.chain.decoded(codes)

    @torch.inference_mode()
    def reference_units(self, batch: Batch) -> list[Tensor] | None:
        """(U,) units of the target of each row: those of the batch, or of its target speech; None where there is
        neither, or no extractor."""
        if batch.units is not None:
            return batch.units.unpad()
        if self.unit_extractor is None or batch.target_speech is None:
            return None
        return self.unit_extractor(batch.target_speech).unpad()

    @property
    def takes_prompts(self) -> bool:
        """Whether it speaks, in the voice of a prompt."""
        return self.stream_lm is not None and self.codec is not None

    @property
    def languages(self) -> tuple[str, ...]:
        return self.speech_lm.vocabulary.languages

    def serving_needs(self) -> frozenset[str]:
        return frozenset({"speech"} if self.unit_extractor is not None else {"source_units", "source_codes"})


def _card(content: Tensor) -> Card:
    return Card.from_dict(json.loads(content.numpy().tobytes()), CARD)
